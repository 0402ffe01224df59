"""A run's identity, its directory, and its result. Imports no torch."""

import errno
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from normlab.atomic import atomic_write, remove_unfinished
from normlab.config import Config, ConfigError
from normlab.config.model import CustomModelConfig
from normlab.config.norm import CustomNormConfig
from normlab.config.schema import identity, plain
from normlab.run_files import read_result
from normlab.targets import source_file

RESULTS_VERSION = 2
"""Raised whenever a change to the harness makes the same configuration give a different result."""


OF_THE_LAUNCHER = ("lock", "log.txt", "launch.json")
"""Files in a run's directory that belong to the process now training it, not to the training so far."""


@dataclass(frozen=True)
class Run:
    """One config and one seed. `config.world_size` is the number of ranks that train it, never null."""

    config: Config
    directory: Path
    hash: str
    attempt: str = ""
    """Names the command that asked for the run to start over; empty if none did. The run starts over once per
    command, and from then on continues, for example in a requeued job."""

    @property
    def command_again(self) -> str:
        """The command that continues the run."""
        return "the same command without rerun=true" if self.attempt else "the same command"

    @property
    def checkpoint_path(self) -> Path:
        return self.directory / "checkpoint.pt"

    @property
    def metrics_path(self) -> Path:
        return self.directory / "metrics.jsonl"

    @property
    def log_path(self) -> Path:
        """The stdout and stderr of the run's job in a sweep."""
        return self.directory / "log.txt"

    def steps(self, train_samples: int) -> tuple[int, int]:
        """(steps per epoch, steps per run) over `train_samples`; an incomplete last batch is dropped.

        Raises: ConfigError if a global batch is larger than the data, or than max_samples.
        """
        cfg = self.config
        assert cfg.world_size is not None
        batch = cfg.global_batch_size(cfg.world_size)
        keys = ("batch_size", "world_size", "virtual_ranks", "accumulate")
        made_of = " x ".join(f"{key}={getattr(cfg, key)}" for key in keys)
        for key, available in [("training samples", train_samples), ("max_samples", cfg.max_samples)]:
            if available is not None and batch > available:
                fits = available // (batch // cfg.batch_size)
                fix = f"lower batch_size to {fits}" if fits else "lower world_size, virtual_ranks or accumulate"
                asked = {"data." + name: getattr(cfg.data, name, None) for name in ("num_train", "train_samples")}
                asked["data.val_fraction"] = cfg.data.val_fraction or None
                of = ", ".join(f"{name}={value}" for name, value in asked.items() if value is not None)
                raise ConfigError(
                    f"{made_of} makes a global batch of {batch}, more than the {available} {key}"
                    f"{f' ({of})' if of and key != 'max_samples' else ''}; {fix}."
                )
        steps_per_epoch = train_samples // batch
        total = cfg.epochs * steps_per_epoch
        if cfg.max_samples is not None:
            total = min(total, cfg.max_samples // batch)
        if cfg.optim.warmup_epochs * steps_per_epoch >= total:
            raise ConfigError(
                f"optim.warmup_epochs={cfg.optim.warmup_epochs:g} is not shorter than the run of "
                f"{total / steps_per_epoch:g} epochs; lower it, or raise epochs."
            )
        return steps_per_epoch, total

    @property
    def starts_over(self) -> bool:
        """Whether the directory still belongs to an earlier command, and is emptied when training begins."""
        return bool(self.attempt) and self.attempt != self._attempt_there()

    def _attempt_there(self) -> str:
        try:
            return (self.directory / "attempt").read_text(errors="replace")
        except OSError:
            return ""

    def result(self) -> dict[str, Any] | None:
        """result.json; None if the run has not ended, is to start over, or its result cannot be read."""
        return None if self.starts_over else read_result(self.directory)[0]

    def ended(self) -> bool:
        """Whether there is nothing left to train: diverging is a result, failing is not."""
        result = self.result()
        return result is not None and result["status"] in ("finished", "diverged")

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Lock the run inside the block, against processes on all machines that share its file system.

        Yields False if another process holds the lock. Creates the directory. The kernel frees the lock when
        the process dies; over a network the file system must offer flock between its clients.
        Raises: ConfigError if the directory cannot be written, or its file system has no flock.
        """
        # Wait a second: `launch.status` takes locks briefly, and a run that is stopping still holds its own.
        lock = FileLock(self.directory / "lock", timeout=1, fallback_to_soft=False)
        with self._writable():
            self.directory.mkdir(parents=True, exist_ok=True)
            with suppress(Timeout):
                lock.acquire()
        try:
            yield lock.is_locked
        finally:
            lock.release()

    def forget_failure(self) -> None:
        """With the lock held: remove a failed attempt's result, so that `fail` can tell which rank is first.

        Raises: ConfigError if it cannot be removed.
        """
        result = self.result()
        if result is not None and result["status"] == "failed":
            with self._writable():
                (self.directory / "result.json").unlink()

    def create(self) -> None:
        """With the lock held, before training: create the directory with config.yaml; to start over, empty it.

        Raises: ConfigError if it cannot be written.
        """
        with self._writable():
            self.directory.mkdir(parents=True, exist_ok=True)
            remove_unfinished(self.directory, written_by_others="launch.json")
            # First, so that a half-emptied directory is not taken for a run that has ended.
            (self.directory / "result.json").unlink(missing_ok=True)
            if self.starts_over:
                self._empty()
            with atomic_write(self.directory / "config.yaml") as file:
                file.write(OmegaConf.to_yaml(OmegaConf.create(plain(self.config))))

    def _empty(self) -> None:
        # Checkpoints first, since they rely on the other files.
        for path in sorted(self.directory.iterdir(), key=lambda path: path.suffix != ".pt"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in OF_THE_LAUNCHER:
                path.unlink()
        if self.log_path.exists() and not self.log_path.is_symlink():
            os.truncate(self.log_path, 0)  # its writer, which may be this process, appends
        with atomic_write(self.directory / "attempt") as file:
            file.write(self.attempt)

    @contextmanager
    def _writable(self) -> Iterator[None]:
        with writable(self.config.output_dir):
            yield

    def fail(self, error: str, trace: str, *, overrule: bool = False) -> bool:
        """Write result.json for a run that failed, unless another rank has: one rank's exit makes the others fail.

        `overrule` replaces what they wrote with the cause. The files of a run that was to start over, and has not
        done so yet, are kept. Returns whether this rank was the first.
        """
        result = self.result()
        if result is not None and not (overrule and result["status"] == "failed"):
            return result["status"] != "failed"
        if not self.starts_over:
            try:
                self.write_result("failed", {}, {"error": error, "traceback": trace})
            except OSError as problem:  # an error that cannot be recorded must still be shown
                print(f"warning: {self.directory}/result.json cannot be written: {problem}", file=sys.stderr)
        return True

    def write_result(
        self, status: str, metrics: dict[str, float], measured: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Write result.json: what the run was, how it ended, and what was `measured` along the way."""
        cfg = self.config
        assert cfg.world_size is not None
        result = {
            "status": status,
            "metrics": metrics,
            "norm": cfg.norm.name,
            "batch_size": cfg.batch_size,
            "world_size": cfg.world_size,
            "virtual_ranks": cfg.virtual_ranks,
            "accumulate": cfg.accumulate,
            "global_batch_size": cfg.global_batch_size(cfg.world_size),
            "normalization_batch_size": cfg.norm.normalization_batch_size(
                cfg.batch_size, cfg.logical_ranks(cfg.world_size)
            ),
            "model": cfg.model.name,
            "data": cfg.data.name,
            "seed": cfg.seed,
            "epochs": cfg.epochs,
            "precision": cfg.precision.value,
            "hash": self.hash,
            "results_version": RESULTS_VERSION,
            **(measured or {}),
        }
        with atomic_write(self.directory / "result.json") as file:
            json.dump(result, file, indent=2, allow_nan=False)
            file.write("\n")
        return result


@contextmanager
def writable(output_dir: str) -> Iterator[None]:
    """Turn disk errors inside the block into a ConfigError that names `output_dir`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise ConfigError(
                f"output_dir={output_dir} is on a file system without flock ({error.strerror}), so nothing would "
                "keep two processes from training one run at once; choose a folder on another file system."
            ) from None
        where = f" ({error.filename})" if error.filename else ""  # none if the disk is full
        raise ConfigError(f"output_dir={output_dir} cannot be written: {error.strerror}{where}.") from None


def weights_path(init_from: str) -> Path:
    """The file that `model.init_from` names; for a run's directory, its checkpoint. Raises: ConfigError."""
    path = Path(os.path.expanduser(init_from))
    path = path / "checkpoint.pt" if os.path.isdir(path) else path
    if not os.path.isfile(path):  # unlike Path's methods, neither raises for a name that is not a valid path
        raise ConfigError(
            f"model.init_from={init_from}: there is no {path}; give a run's directory, or a file of weights."
        )
    return path


def name_run(cfg: Config, *, world_size: int, study: str, data_fingerprint: str) -> Run:
    """The run of `cfg` on `world_size` ranks, with the same name and hash at any time and on any machine.

    The hash covers what changes the result and nothing else: the configuration's values that differ from their
    defaults, the content of the data and of initial weights (not their paths), and RESULTS_VERSION.
    """
    cfg = replace(cfg, world_size=world_size, study=study or cfg.study)
    content = {
        "config": identity(cfg),
        "data": data_fingerprint,
        "results_version": RESULTS_VERSION,
    }
    if cfg.model.init_from is not None:
        path = weights_path(cfg.model.init_from)
        try:
            with path.open("rb") as file:
                content["init_from"] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ConfigError(
                f"model.init_from={cfg.model.init_from}: {path} cannot be read ({error.strerror}); "
                "let it be read, or choose another."
            ) from None
    for section in (cfg.model, cfg.norm):
        if isinstance(section, CustomModelConfig | CustomNormConfig):
            source = source_file(section.key("target"), section.target).read_bytes()
            content[section.group] = hashlib.sha256(source).hexdigest()
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    ranks = f"w{world_size}" + f"v{cfg.virtual_ranks}" * (cfg.virtual_ranks > 1)
    name = f"{cfg.norm.name}-b{cfg.batch_size}-{ranks}-{cfg.model.name}-{cfg.data.name}-s{cfg.seed}-{digest}"
    return Run(cfg, Path(cfg.output_dir) / study / name, digest, uuid.uuid4().hex if cfg.rerun else "")

"""A run's identity, its directory, and its result. Imports no torch."""

import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from normlab.atomic import atomic_write
from normlab.config import Config, ConfigError, plain

RESULTS_VERSION = 1
"""Raised whenever the harness changes so that the same configuration gives another result."""


@dataclass(frozen=True)
class Run:
    """One config and one seed. `config.world_size` is the number of ranks that train it, never null."""

    config: Config
    directory: Path
    hash: str

    @property
    def checkpoint_path(self) -> Path:
        return self.directory / "checkpoint.pt"

    @property
    def metrics_path(self) -> Path:
        return self.directory / "metrics.jsonl"

    def steps(self, train_samples: int) -> tuple[int, int]:
        """(steps of an epoch, steps of the run) over `train_samples`; an incomplete last batch is dropped.

        Raises: ConfigError where a global batch is larger than the data, or than max_samples.
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
                raise ConfigError(
                    f"{made_of} makes a global batch of {batch}, more than the {available} {key}; {fix}."
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

    def result(self) -> dict[str, Any] | None:
        """result.json, or None where the run has not ended."""
        try:
            return json.loads((self.directory / "result.json").read_text())
        except FileNotFoundError:
            return None

    def ended(self) -> bool:
        """Whether there is nothing left to train: diverging is a result, failing is not."""
        result = self.result()
        return result is not None and result["status"] in ("finished", "diverged")

    def create(self) -> None:
        """Make the directory, with config.yaml in it; `rerun` empties it first.

        Raises: ConfigError where it cannot be written.
        """
        try:
            if self.config.rerun and self.directory.exists():
                shutil.rmtree(self.directory)
            self.directory.mkdir(parents=True, exist_ok=True)
            (self.directory / "result.json").unlink(missing_ok=True)  # of an attempt that failed
            with atomic_write(self.directory / "config.yaml") as file:
                file.write(OmegaConf.to_yaml(OmegaConf.create(plain(self.config))))
        except OSError as error:
            raise ConfigError(
                f"output_dir={self.config.output_dir} cannot be written: {error.strerror} ({error.filename})."
            ) from None

    def fail(self, error: str, trace: str) -> bool:
        """Write result.json for a run that broke, unless another rank has: the others fail of its leaving.

        Returns whether this rank was the first.
        """
        if self.result() is not None:
            return False
        self.write_result("failed", {}, {"error": error, "traceback": trace})
        return True

    def write_result(
        self, status: str, metrics: dict[str, float], measured: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Write result.json: what the run was, how it ended, and what was `measured` on the way."""
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
            "eval_split": "val" if cfg.data.val_fraction else "test",
            "seed": cfg.seed,
            "epochs": cfg.epochs,
            "precision": cfg.precision.value,
            "hash": self.hash,
            "results_version": RESULTS_VERSION,
            **(measured or {}),
        }
        with atomic_write(self.directory / "result.json") as file:
            json.dump(result, file, indent=2)
            file.write("\n")
        return result


def name_run(cfg: Config, *, world_size: int, study: str, data_fingerprint: str) -> Run:
    """The run that `cfg` on `world_size` ranks is: same name and hash wherever and whenever it is asked for.

    The hash is over what changes the result and nothing else: the identity fields of the configuration, the
    content of the data (not its path), and the version of the harness's results.
    """
    cfg = replace(cfg, world_size=world_size)
    identity = {
        "config": plain(cfg, identity_only=True),
        "data": data_fingerprint,
        "results_version": RESULTS_VERSION,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    ranks = f"w{world_size}" + f"v{cfg.virtual_ranks}" * (cfg.virtual_ranks > 1)
    name = f"{cfg.norm.name}-b{cfg.batch_size}-{ranks}-{cfg.model.name}-{cfg.data.name}-s{cfg.seed}-{digest}"
    return Run(cfg, Path(cfg.output_dir) / study / name, digest)

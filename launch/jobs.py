"""The jobs of a sweep: planned before any is started, and how they ended.

Imports torch only while it plans, so that a launcher's plugin stays light.
"""

import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from launch.composing import Composer, given_overrides
from launch.environment import rank_environment, training_command
from launch.norm_options import leave_out_options_of_others, swept_norms
from normlab.atomic import atomic_write
from normlab.config import Config, ConfigError
from normlab.config.data import DataConfig
from normlab.config.mistakes import explain, to_typed
from normlab.config.schema import plain
from normlab.console import show_loading
from normlab.run import Run, writable
from normlab.run_files import read_result, trained_on

if TYPE_CHECKING:
    from normlab.data.dataset import Dataset


NOTES_BYTES = 1 << 20
"""Enough for multirun.yaml, and for launch.json of a few hundred runs."""


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a sweep. `run.config.world_size` is the number of its ranks, never null."""

    run: Run
    study: str
    overrides: tuple[str, ...]
    """The command line of this job alone: `norm=gn`, `seed=1`."""

    total_samples: int
    """Samples that the whole run trains on."""

    places: tuple[int, ...]
    """Its positions in the sweeper's list; two if two jobs of the list are the same run."""

    name: str
    """Its own overrides, without those that the command sets for all jobs."""


@dataclass(frozen=True)
class Ended:
    """How a job ended: finished, diverged, failed, skipped, stopped or queued, with details."""

    job: Job
    state: str
    detail: str = ""

    @property
    def is_left(self) -> bool:
        """Whether the same command would train it, or continue it."""
        return self.state in ("failed", "stopped")


_record: ContextVar[list[Ended]] = ContextVar("record")


@contextmanager
def sweep_record() -> Iterator[list[Ended]]:
    """How the jobs of every launcher that Hydra calls in the block ended.

    A sweeper such as Optuna's calls its launcher many times and returns nothing, so the caller has to make the
    summary and the exit code of the sweep.
    """
    record: list[Ended] = []
    token = _record.set(record)
    try:
        yield record
    finally:
        _record.reset(token)


def record_ended(ended: Sequence[Ended]) -> None:
    """Called by a launcher before it returns to its sweeper."""
    _record.get().extend(ended)


def forget_ended() -> None:
    """Called by a sweeper that reports its own results: the summary then lists only what is left to train."""
    record = _record.get()
    record[:] = [ended for ended in record if ended.is_left]


def refuse_inside_rank() -> None:
    """Raises: ConfigError inside a rank of torchrun or srun, since a sweep starts its own ranks."""
    if rank_environment(os.environ):
        command = " ".join([training_command(), *sys.argv[1:]])
        raise ConfigError(f"a sweep starts its own ranks; run it outside torchrun and srun: {command}")


def make_sweep_folder(folder: str) -> None:
    """Make the folder before Hydra's sweeper writes to it, which would end in a traceback if it cannot.

    Raises: ConfigError if it cannot be made, or has no room for what a sweep writes at its start.
    """
    with writable(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(NOTES_BYTES))
            file.flush()
            os.fsync(file.fileno())


def study_name(cfg: Config, choices: Mapping[str, Any]) -> str:
    """The name of a run's study: `study`, else the experiment's name, else default."""
    return cfg.study or choices.get("experiment") or "default"


def plan_jobs(
    master_config: DictConfig, config_loader: ConfigLoader, sweep_overrides: Sequence[Sequence[str]]
) -> list[Job]:
    """The jobs that a sweeper asks for, each run once, after all checks. Writes nothing.

    Raises: ConfigError with one line per mistake, which names the jobs that have it.
    """
    from normlab import data
    from normlab.preflight import plan

    composer = Composer(master_config, config_loader)
    swept = swept_norms(master_config, config_loader)
    given = OverridesParser.create().parse_overrides(given_overrides(master_config))
    fixed = {
        text
        for one in given
        if not one.is_sweep_override()
        for text in (one.input_line, f"{one.get_key_element()}={one.get_value_element_as_str()}")
    }
    jobs: dict[str, Job] = {}
    datasets: dict[str, Dataset] = {}
    checked: set[str] = set()
    mistakes: dict[str, list[str]] = {}

    def load(cfg: DataConfig, progress: bool) -> "Dataset":
        key = json.dumps([type(cfg).__name__, plain(cfg)])
        if key not in datasets:
            datasets[key] = data.load(cfg, show_loading if progress else None)
            for note in datasets[key].notes:
                print(note, file=sys.stderr)
        return datasets[key]

    for place, overrides in enumerate(sweep_overrides):
        try:
            task, choices = composer.compose(overrides)
            left_out = leave_out_options_of_others(task.norm, swept)
            begins = tuple(f"{key}{end}" for key in left_out for end in "=.")  # norm.args={}, norm.args.groups=4
            overrides = [word for word in overrides if not word.lstrip("+").startswith(begins)]
            cfg = to_typed(task)
            study = study_name(cfg, choices)
            dataset = load(cfg.data, cfg.progress)
            run = plan(cfg, dataset, world_size=cfg.world_size or 1, study=study, checked=checked)
            _, total_steps = run.steps(len(dataset.train))
        except (ConfigError, HydraException, OmegaConfBaseException) as error:
            said = str(error) if isinstance(error, ConfigError) else explain(error, overrides)
            mistakes.setdefault(said, []).append(" ".join(filter_overrides(overrides)))
            continue
        known = jobs.get(str(run.directory))
        if known is None:
            total_samples = total_steps * cfg.global_batch_size(run.config.world_size or 1)
            own = [word for word in filter_overrides(overrides) if word not in fixed]
            name = " ".join(own) or run.directory.name
            job = Job(run, study, tuple(overrides), total_samples, (place,), name)
        else:
            job = replace(known, places=(*known.places, place))
        jobs[str(run.directory)] = job
    if mistakes:
        raise ConfigError("\n".join(f"{_some(who)}: {what}" for what, who in mistakes.items()))
    return list(jobs.values())


def _some(names: list[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def sweep_value(run: Run) -> float:
    """`sweep_metric` of a run, for the sweeper; the worst value if it did not finish.

    The worst loss is infinite. The worst value of any other metric (accuracies, IoUs) is 0, also for a class that
    is neither in the masks nor predicted.
    """
    metric = run.config.returned_metric
    result = run.result()
    worst = math.inf if metric.endswith("loss") else 0.0
    if result is None or result["status"] != "finished":
        return worst
    return result["metrics"].get(metric, worst)


def job_returns(jobs: Sequence[Job]) -> list[JobReturn]:
    """What a launcher returns to its sweeper: a value for each job that it asked for, in order.

    Even a failed job returns one, since a FAILED JobReturn would make Hydra raise and stop the sweep.
    """
    returns = {}
    for job in jobs:
        returned = JobReturn(overrides=list(job.overrides), working_dir=os.getcwd(), status=JobStatus.COMPLETED)
        returned.return_value = sweep_value(job.run)
        returns.update(dict.fromkeys(job.places, returned))
    return [returns[place] for place in sorted(returns)]


def to_train(jobs: Sequence[Job], *, retry_failed: bool) -> tuple[list[Job], list[Ended]]:
    """(jobs to train, jobs that are skipped); with `rerun`, none is skipped."""
    left: list[Job] = []
    skipped: list[Ended] = []
    for job in jobs:
        result = None if job.run.config.rerun else job.run.result()
        if result is None:
            if problem := read_result(job.run.directory)[1]:
                print(f"warning: {job.run.directory}: {problem}; it is trained again", file=sys.stderr)
            left.append(job)
        elif result["status"] == "failed" and retry_failed:
            left.append(job)
        elif result["status"] == "failed":
            skipped.append(Ended(job, "skipped", "failed before; hydra.launcher.retry_failed=true tries again"))
        else:
            score = f" with {metric}" if (metric := main_metric(job, result)) else ""
            before = f"{result['status']} before{trained_on(result, job.run.config.device.value)}{score}"
            skipped.append(Ended(job, "skipped", f"{before}; rerun=true starts it over"))
    return left, skipped


def ended_well(job: Job, result: Mapping[str, Any] | None) -> Ended | None:
    """How the job ended, if its run has finished or diverged according to `result`; else None."""
    if result is None or result["status"] == "failed":
        return None
    return Ended(job, result["status"], main_metric(job, result))


def interrupted(job: Job, *words: str) -> Ended:
    """A job that stopped before its end, with `words` about it."""
    return Ended(job, "stopped", "; ".join([*words, f"{job.run.command_again} goes on from its checkpoint"]))


def main_metric(job: Job, result: Mapping[str, Any]) -> str:
    """The metric of an ended run, as a sweep shows it: "val/accuracy 0.5000"; empty if it diverged."""
    metric = job.run.config.returned_metric
    value = result["metrics"].get(metric)
    return "" if value is None else f"{metric} {value:.4f}"


def announce(run: Run, launch: Mapping[str, Any]) -> None:
    """Write to launch.json which process will train the run; `launch.status` and result.json show it.

    {"launcher": "local", "host": ..., "pid": ..., "began": ...} or {"launcher": "slurm", "job_id": "12_3", ...},
    with "total_samples" (for the remaining time) and whatever else the launcher keeps.
    Raises: ConfigError if the directory cannot be written.
    """
    with writable(run.config.output_dir):
        run.directory.mkdir(parents=True, exist_ok=True)
        with atomic_write(run.directory / "launch.json") as file:
            json.dump(dict(launch), file)

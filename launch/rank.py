"""What one rank does, however it was started."""

import os
import sys
import traceback
from contextlib import ExitStack, suppress
from typing import Any

from launch.environment import keep_freed_memory
from launch.failure import report_failure
from launch.process import RUN_IS_BUSY, USER_ERROR, StopSignal, Surroundings, end_with_parent
from normlab import data, distributed
from normlab.config import Config, ConfigError
from normlab.console import show_loading
from normlab.data.dataset import Dataset
from normlab.data.decode import UnreadableError
from normlab.logger import FileLogger, LoggerList
from normlab.preflight import plan
from normlab.progress import ProgressLogger
from normlab.run import Run, name_run
from normlab.run_files import read_launch, read_result, trained_on
from normlab.trainer import Outcome, Trainer


def run_started_rank(
    environment: dict[str, str], cfg: Config, study: str, run: Run, surroundings: Surroundings
) -> None:
    """Run a rank that `launch.local` started. It ends with its launcher, and its exit code says how it ended."""
    end_with_parent()
    os.environ.update(environment)
    with StopSignal():  # until here, stop signals are blocked, as in the fork server
        surroundings.enter()
        sys.exit(run_rank(cfg, study, run))


def run_rank(cfg: Config, study: str, run: Run | None = None) -> int:
    """Prepare, join the ranks, train the run, leave. Returns the exit code: 0, 2, 3, or 128 + the stop signal.

    `run` was named by the process that started the ranks; without one, rank 0 names it and tells the others. Every
    rank reads its data before it joins: one decodes what is not cached yet, the others wait for its lock. Rank 0
    holds the run's lock while it is trained.
    Collective: every rank must call.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    claimed = ""
    keep_freed_memory()

    def prepare_here() -> tuple[Dataset, Run]:
        dataset = load(cfg)
        if rank == 0 and run is None:
            show_notes(dataset)
            return dataset, plan(cfg, dataset, world_size=world_size, study=study)
        return dataset, name_run(cfg, world_size=world_size, study=study, data_fingerprint=dataset.fingerprint)

    with StopSignal() as stop_signal, ExitStack() as held:
        try:
            ranks, (dataset, here) = distributed.join(cfg.device, prepare_here)
            given = run
            run, claimed = ranks.on_rank0(lambda: claim(given or here, held))
            code = RUN_IS_BUSY if claimed == "busy" else 0
            if claimed == "train":
                code = _train(run, here.hash, dataset, ranks, stop_signal)
        except ConfigError as error:
            # Every rank has the same error, so only one prints it; but a picture is read by a single rank.
            if rank == 0 or isinstance(error, UnreadableError):
                print(f"error: {error}", file=sys.stderr)
                if claimed == "train" or (run is not None and _lock(run, held)):
                    assert run is not None
                    run.fail(str(error), "")
            code = USER_ERROR
        except Exception as error:
            report_failure(error, rank, run if claimed == "train" else None, stop_signal)
            traceback.clear_frames(error.__traceback__)  # they hold the model
            code = 1
        distributed.leave()
    return code


def prepare(cfg: Config, study: str, world_size: int) -> Run:
    """Check and name the run, in one process. Raises: ConfigError."""
    dataset = load(cfg)
    show_notes(dataset)
    return plan(cfg, dataset, world_size=world_size, study=study)


def show_notes(dataset: Dataset) -> None:
    """Print the notes of the data, once, in the process that names the run."""
    for note in dataset.notes:
        print(note, file=sys.stderr)


def load(cfg: Config) -> Dataset:
    """The run's data. Raises: ConfigError."""
    return data.load(cfg.data, show_loading if cfg.progress else None)


def claim(run: Run, held: ExitStack) -> tuple[Run, str]:
    """Take the run's lock until `held` is closed. Returns "train", or "ended" or "busy" without the lock."""
    if ended(run):
        return run, "ended"
    if not held.enter_context(run.lock()):
        print(
            f"error: {run.directory} is being trained by another process; wait for it to end, or stop it.",
            file=sys.stderr,
        )
        return run, "busy"
    if ended(run):  # while we waited for the lock
        return run, "ended"
    if problem := read_result(run.directory)[1]:
        print(f"warning: {run.directory}: {problem}; training it again, from its checkpoint", file=sys.stderr)
    run.forget_failure()
    return run, "train"


def _lock(run: Run, held: ExitStack) -> bool:
    """Take the lock of a run that failed early, to write its result. Returns whether that was possible."""
    with suppress(ConfigError):
        if held.enter_context(run.lock()):
            run.forget_failure()
            return True
    return False


def ended(run: Run) -> bool:
    """Whether the run has ended before and is not to start over; if so, print that and its result."""
    if not run.ended():
        return False
    where = trained_on(run.result() or {}, run.config.device.value)
    print(f"This run has ended before{where}; rerun=true starts it over.", file=sys.stderr)
    report(run)
    return True


def describe(run: Run, train_samples: int) -> str:
    """What will be trained, in two lines."""
    cfg = run.config
    assert cfg.world_size is not None
    _, total_steps = run.steps(train_samples)
    nbs = cfg.norm.normalization_batch_size(cfg.batch_size, cfg.logical_ranks(cfg.world_size))
    each = f" standing in for {cfg.virtual_ranks} each" if cfg.virtual_ranks > 1 else ""
    return (
        f"{cfg.norm.name} in {cfg.model.name} on {cfg.data.name}: {total_steps} steps of "
        f"{cfg.global_batch_size(cfg.world_size)} samples on {cfg.world_size} rank(s){each}, "
        f"{nbs} sharing statistics\n"
        f"run: {run.directory}"
    )


def _train(run: Run, hash_here: str, dataset: Dataset, ranks: distributed.Ranks, stop_signal: StopSignal) -> int:
    cfg = run.config
    if hash_here != run.hash:  # changed while the job was queued, or different on this node
        raise RuntimeError(
            f"the data here, or normlab's code, are no longer those that run {run.hash} was named for"
        )
    watchers: list[Any] = []
    if ranks.rank == 0:
        print(describe(run, len(dataset.train)), file=sys.stderr)
        watchers.append(FileLogger(run))
        if cfg.progress:
            _, total_steps = run.steps(len(dataset.train))
            watchers.append(ProgressLogger(total_steps * cfg.global_batch_size(ranks.world_size)))
    logger = LoggerList(*watchers)
    try:
        trainer = Trainer(run, dataset, ranks)
        ranks.on_rank0(run.create)
        outcome = trainer.train(logger, stop_signal)
    except BaseException:
        for watcher in watchers:
            with suppress(Exception):  # an error while closing must not hide the first one
                watcher.close()
        raise
    if ranks.rank == 0:
        _end(run, outcome, logger)
    return 128 + outcome.stop_signal if outcome.status == "stopped" else 0


def _end(run: Run, outcome: Outcome, logger: LoggerList) -> None:
    logger.close(outcome.metrics if outcome.status == "finished" else None)
    if outcome.status == "stopped":
        print(f"stopped; {run.command_again} goes on from {run.checkpoint_path}", file=sys.stderr)
        return
    launch, problem = read_launch(run.directory)
    if problem:
        print(f"warning: {problem}; {run.directory}/result.json will not hold it", file=sys.stderr)
    run.write_result(outcome.status, outcome.metrics, outcome.measured | ({"launch": launch} if launch else {}))
    report(run)


def report(run: Run) -> None:
    """Print the result, the run's directory, and the command that shows its curves."""
    result = run.result()
    assert result is not None
    shown = {name: value for name, value in result["metrics"].items() if "/iou" not in name}  # one per class
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
    print(f"{result['status']}: {metrics or 'the loss was no longer finite'}")
    print(f"run: {run.directory}")
    print(f"see: tensorboard --logdir {run.config.output_dir}")

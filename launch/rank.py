"""What one rank does, however it was started."""

import os
import sys
import traceback
from typing import Any

from launch.process import USER_ERROR, StopSignal, end_with_parent
from normlab import data, distributed
from normlab.config import Config, ConfigError
from normlab.logger import FileLogger, LoggerList
from normlab.preflight import plan
from normlab.progress import ProgressLogger
from normlab.run import Run
from normlab.trainer import Outcome, Trainer


def run_started_rank(cfg: Config, study: str, run: Run) -> None:
    """A rank that `launch.local` started: ends with its launcher, and tells it how by its exit code."""
    end_with_parent()
    sys.exit(run_rank(cfg, study, run))


def run_rank(cfg: Config, study: str, run: Run | None = None) -> int:
    """Join the ranks, train the run, leave. Returns the exit code: 0, 2, or 128 + the stop signal.

    `run` was named by the process that started the ranks; where nobody did, rank 0 names it and tells the
    others. Collective: every rank must call.
    """
    with StopSignal() as stop_signal:
        try:
            ranks = distributed.join(cfg.device)
            if run is None:
                run = ranks.on_rank0(lambda: prepare(cfg, study, ranks.world_size))
            code = 0 if run.ended() else _train(run, ranks, stop_signal)
        except ConfigError as error:
            # Every rank has the same error, so one of them says it.
            if int(os.environ.get("RANK", 0)) == 0:
                print(f"error: {error}", file=sys.stderr)
            code = USER_ERROR
        except Exception as error:
            if run is None or run.fail(f"rank {os.environ.get('RANK', 0)}: {error}", traceback.format_exc()):
                print(f"rank {os.environ.get('RANK', 0)}:\n{traceback.format_exc()}", file=sys.stderr)
            traceback.clear_frames(error.__traceback__)  # they hold the model
            code = 1
        distributed.leave()
    return code


def prepare(cfg: Config, study: str, world_size: int) -> Run:
    """In one process: find what is wrong, name the run, make its directory unless it has ended.

    Says what is there already where it has. Raises: ConfigError.
    """
    dataset = data.load(cfg.data, ProgressLogger.loading if cfg.progress else None)
    run = plan(cfg, dataset, world_size=world_size, study=study)
    if run.ended() and not cfg.rerun:
        print("This run has ended before; rerun=true starts it over.", file=sys.stderr)
        report(run)
    else:
        run.create()
        print(describe(run, len(dataset.train)), file=sys.stderr)
    return run


def describe(run: Run, train_samples: int) -> str:
    """What is about to be trained, in two lines."""
    cfg = run.config
    assert cfg.world_size is not None
    _, total_steps = run.steps(train_samples)
    nbs = cfg.norm.normalization_batch_size(cfg.batch_size, cfg.world_size)
    return (
        f"{cfg.norm.name} in {cfg.model.name} on {cfg.data.name}: {total_steps} steps of "
        f"{cfg.global_batch_size(cfg.world_size)} samples on {cfg.world_size} rank(s), {nbs} sharing statistics\n"
        f"run: {run.directory}"
    )


def _train(run: Run, ranks: distributed.Ranks, stop_signal: StopSignal) -> int:
    cfg = run.config
    dataset = data.load(cfg.data)
    logger = LoggerList()
    if ranks.rank == 0:
        watchers: list[Any] = [FileLogger(run)]
        if cfg.progress:
            _, total_steps = run.steps(len(dataset.train))
            watchers.append(ProgressLogger(total_steps * cfg.global_batch_size(ranks.world_size)))
        logger = LoggerList(*watchers)
    outcome = Trainer(run, dataset, ranks).train(logger, stop_signal)
    if ranks.rank == 0:
        _end(run, outcome, logger)
    return 128 + outcome.stop_signal if outcome.status == "stopped" else 0


def _end(run: Run, outcome: Outcome, logger: LoggerList) -> None:
    logger.close(outcome.metrics if outcome.status == "finished" else None)
    if outcome.status == "stopped":
        print(f"stopped; the same command goes on from {run.checkpoint_path}", file=sys.stderr)
        return
    run.write_result(outcome.status, outcome.metrics, outcome.measured)
    report(run)


def report(run: Run) -> None:
    """The result, the run's directory, and what to type to see its curves."""
    result = run.result()
    assert result is not None
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in result["metrics"].items())
    print(f"{result['status']}: {metrics or 'the loss was no longer finite'}")
    print(f"run: {run.directory}")
    print(f"see: tensorboard --logdir {run.config.output_dir}")

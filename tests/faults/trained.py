"""Whole runs in processes of their own, forked from one that has torch imported: a fraction of a second each."""

import gc
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from normlab.run import Run
from tests.faults.injection import Fault, Injector

RUN = ["data.num_train=16", "data.num_test=12", "batch_size=8", "epochs=3", "model.width=4", "threads=1"]
RUN += ["eval_batch_size=8", "eval_train_samples=8", "diagnostics=false", "log_every=1", "progress=false"]
RUN += ["eval_every_epochs=2"]
"""Six steps, three checkpoints and two evaluations."""


@dataclass(frozen=True)
class Attempt:
    """One process that trains a run, or goes on with it."""

    run: Run
    number: int
    """How often it was begun before. Each attempt is begun a minute after the last: TensorBoard reads files of
    events in the order of their names, and those begin with a second."""
    fault: Fault | None = None
    kill_after_s: float | None = None
    largest_file: int | None = None

    @property
    def log(self) -> Path:
        return self.run.directory.with_suffix(".log")

    @property
    def trace(self) -> Path:
        return self.run.directory.with_suffix(".trace")


@dataclass(frozen=True)
class Ended:
    code: int
    """-9 where it was killed."""
    operations: list[str]
    """What it did to files, as far as it came."""


class Trained:
    """`train(attempt)` in a fork of one process, which has loaded everything a run needs."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._server = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._server.start()
        theirs.close()
        self.run: Run = self._pipe.recv()

    def train(self, attempt: Attempt) -> Ended:
        self._pipe.send(attempt)
        code = self._pipe.recv()
        return Ended(code, attempt.trace.read_text().splitlines())

    def close(self) -> None:
        self._pipe.close()
        self._server.join()


def _serve(pipe: Connection) -> None:
    import launch.rank
    from normlab import data
    from normlab.preflight import plan
    from tests.runs import typed

    cfg = replace(typed(*RUN), world_size=1)
    dataset = data.load(cfg.data)
    launch.rank.data = SimpleNamespace(load=lambda *_: dataset)  # type: ignore[assignment]
    pipe.send(plan(cfg, dataset, world_size=1, study="test"))
    gc.freeze()  # what is there before a run needs no second look at its end
    while True:
        try:
            attempt: Attempt = pipe.recv()
        except EOFError:
            return
        process = os.fork()
        if process == 0:
            pipe.close()
            _begin(attempt)
        if attempt.kill_after_s is not None:
            time.sleep(attempt.kill_after_s)
            os.kill(process, signal.SIGKILL)  # a zombie where it has ended
        pipe.send(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))


def _begin(attempt: Attempt) -> None:
    import tensorboard.summary.writer.event_file_writer as events

    from launch.rank import run_rank

    code = 70
    try:
        log = os.open(attempt.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        now = 1_700_000_000 + 60 * attempt.number
        events.time: Any = SimpleNamespace(time=lambda: now)  # type: ignore[misc]
        if attempt.largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (attempt.largest_file, resource.RLIM_INFINITY))
        Injector(attempt.run.directory, attempt.trace, attempt.fault).install()
        code = run_rank(attempt.run.config, "test", attempt.run)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)

"""Signals, parents and exit codes of one process."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
USER_ERROR = 2
RUN_IS_BUSY = 3
"""A rank's exit code where another process trains the same run: an error of a single run, not of a sweep."""


@dataclass(frozen=True)
class Surroundings:
    """What a process forked from the fork server must be told, since it inherits the server's own."""

    log: Path | None = None
    """Where its output goes. None: where the server's goes."""

    cuda_visible_devices: str | None = None
    """The GPUs it may see. None: all."""

    def enter(self) -> None:
        if self.log is not None:
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.close(log)
        if self.cuda_visible_devices is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.cuda_visible_devices


class StopSignal:
    """Inside the block the first SIGTERM, SIGINT or SIGUSR2 is remembered instead of ending the process.

    Called, it gives that signal's number, or 0. A rank asks once a step, so that a step is never cut.
    Inside another such block, what that one remembers already counts.
    """

    def __enter__(self) -> "StopSignal":
        self._signal = 0
        self._former = {s: signal.signal(s, self._remember) for s in STOP_SIGNALS}
        for former in self._former.values():
            outer = getattr(former, "__self__", None)
            if isinstance(outer, StopSignal):
                self._signal = self._signal or outer()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stop_signal, handler in self._former.items():
            signal.signal(stop_signal, handler)

    def __call__(self) -> int:
        return self._signal

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._signal = self._signal or number


def end_with_parent() -> None:
    """End this process at once when the one that launched it dies, killed ones included.

    A child of a fork server has the server as its parent, so its launcher is watched through the sentinel;
    a child of torchrun, which hands it none, through its parent's process id.
    """
    launcher = multiprocessing.parent_process()
    parent_id = os.getppid()

    def watch() -> None:
        if launcher is not None:
            multiprocessing.connection.wait([launcher.sentinel])
        else:
            while os.getppid() == parent_id:
                time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()

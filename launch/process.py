"""Signals, parents, output and exit codes of one process."""

import io
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)
REPEATED_WITHIN_S = 1.0
"""A signal repeated within this time is the same request: `timeout` signals a process, then its whole group."""
USER_ERROR = 2
RUN_IS_BUSY = 3
"""A rank's exit code if another process trains the same run: an error for a single run, but not for a sweep."""


@dataclass(frozen=True)
class Surroundings:
    """Settings of a process forked from the fork server, which would otherwise inherit the server's."""

    log: Path | None = None
    """The file for its output. None: the server's output."""

    cuda_visible_devices: str | None = None
    """The GPUs it may see. None: all."""

    def enter(self) -> None:
        outlive_output()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # see `stop_signals_blocked`
        if self.log is not None:
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.close(log)
        if self.cuda_visible_devices is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.cuda_visible_devices


class _Output(io.FileIO):
    """Takes all output, and discards it once it can no longer be written."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self.fileno())
            return memoryview(data).nbytes


def _writes_to(stream: io.TextIOBase, descriptor: int) -> bool:
    try:
        return stream.fileno() == descriptor
    except (OSError, ValueError):
        return False


def outlive_output() -> None:
    """Go on if stdout or stderr fails: a closed pipe or terminal, or a full disk, must not end a run.

    Everything that matters about a run is in its directory.
    """
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOBase) and not _writes_to(stream, descriptor):
            continue  # something has replaced it
        if stream is None:  # closed from the start: the next file that is opened would take its place
            nowhere = os.open(os.devnull, os.O_WRONLY)
            if nowhere != descriptor:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
        raw = io.BufferedWriter(_Output(descriptor, "w", closefd=False))
        setattr(
            sys,
            name,
            io.TextIOWrapper(
                raw,
                encoding=getattr(stream, "encoding", "utf-8"),
                errors=getattr(stream, "errors", "backslashreplace"),
                # Also for python -u, whose own streams are unbuffered: ours has a buffer underneath.
                line_buffering=getattr(stream, "line_buffering", True) or getattr(stream, "write_through", False),
                write_through=getattr(stream, "write_through", False),
            ),
        )


def begin_command() -> None:
    """Call this first, before imports that take seconds, so that Ctrl-C ends them without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    outlive_output()


def stop_signals() -> list[signal.Signals]:
    """STOP_SIGNALS, without SIGHUP if it is ignored, as nohup does."""
    hangup_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [s for s in STOP_SIGNALS if not (s is signal.SIGHUP and hangup_ignored)]


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Block stop signals in this thread during the block, and for good in processes that are started in it.

    This is for the fork server, which must outlive its ranks: Ctrl-C and `timeout` signal a whole process group.
    """
    former = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


@contextmanager
def stop_signals_raise(error: Callable[[signal.Signals], Exception]) -> Iterator[None]:
    """In the block, the first stop signal raises `error(signal)`. A second one is handled as before the block."""
    began = 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal began
        if not began:
            began = time.monotonic()
            raise error(signal.Signals(number))
        if time.monotonic() - began > REPEATED_WITHIN_S:
            signal.signal(number, former[signal.Signals(number)])
            signal.raise_signal(number)

    former = {each: signal.signal(each, handle) for each in stop_signals()}
    try:
        yield
    finally:
        for each, handler in former.items():
            signal.signal(each, handler)


class StopSignal:
    """In the block, the first SIGTERM, SIGINT, SIGUSR2 or SIGHUP is remembered and does not end the process.

    Calling it returns that signal's number, or 0. A rank asks once per step, so that no step is cut short.
    A signal that an enclosing block remembers counts as well.
    """

    def __init__(self, *, second_ends: bool = False) -> None:
        """With `second_ends`, a second signal does what it does outside the block, even if a job hangs."""
        self._second_ends, self._began = second_ends, 0.0

    def __enter__(self) -> "StopSignal":
        self._signal = 0
        self._former = {s: signal.signal(s, self._remember) for s in stop_signals()}
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
        now = time.monotonic()
        if self._second_ends and self._signal and now - self._began > REPEATED_WITHIN_S:
            signal.signal(number, self._former[signal.Signals(number)])
            signal.raise_signal(number)
        self._began = self._began or now
        self._signal = self._signal or number


def end_with_parent() -> None:
    """End this process at once when the one that launched it dies, even if that is killed.

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

"""Faults at the operations that a process asks its file system for: one is chosen, the others go on as they are.

Files are replaced below Python's buffers, so that what is counted is one system call each: opening for writing,
write, fsync, rename, link, unlink, truncate, mkdir.
"""

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal

Kind = Literal["kill", "torn", "EIO", "ENOSPC"]
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass(frozen=True)
class Fault:
    """At the operation number `at`: the process is killed before it ("kill") or halfway through it ("torn"), or it
    fails once (EIO), or so does everything that takes space from then on (ENOSPC).
    """

    kind: Kind
    at: int


class Injector:
    """Counts what is done to files below `folder`, writes each to `trace`, a line each, and injects `fault`."""

    def __init__(self, folder: Path, trace: Path, fault: Fault | None) -> None:
        self._folder, self._fault = str(folder) + os.sep, fault
        self._trace = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._seen, self._lock = 0, Lock()
        self._log: Callable[[int, bytes], int] = os.write

    def install(self) -> None:
        """For the rest of this process's life."""
        builtins.open = io.open = self._opened(io.open)  # type: ignore[assignment]
        real_open, real_fsync = os.open, os.fsync

        def open_descriptor(path: Any, flags: int, *rest: Any, **options: Any) -> int:
            if flags & WRITES:
                self.meet("open", path)
            return real_open(path, flags, *rest, **options)

        def fsync(descriptor: int) -> None:
            self.meet("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
            real_fsync(descriptor)

        os.open, os.fsync = open_descriptor, fsync
        for name in ("unlink", "remove", "truncate", "mkdir", "rmdir"):
            setattr(os, name, self._met(name, getattr(os, name), 0))
        for name in ("rename", "replace", "link"):
            setattr(os, name, self._met(name, getattr(os, name), 1))

    def meet(self, operation: str, path: Any, data: Any = None, descriptor: int = -1) -> None:
        """What happens to this one. Raises: OSError, or does not return."""
        path = os.fsdecode(path)
        if not (path + os.sep).startswith(self._folder):
            return
        with self._lock:
            self._seen += 1
            self._log(self._trace, f"{operation} {Path(path).name}\n".encode())
            fault, due = self._fault, self._fault is not None and self._seen == self._fault.at
            later = self._fault is not None and self._seen > self._fault.at
            if fault is None or not (due or later):
                return
            if due and fault.kind == "torn" and data is not None:
                os.write(descriptor, memoryview(data).cast("B")[: len(memoryview(data).cast("B")) // 2])
            if due and fault.kind in ("kill", "torn"):
                os.kill(os.getpid(), signal.SIGKILL)
            if due and fault.kind == "EIO":
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
            if fault.kind == "ENOSPC" and operation in ("open", "write", "link", "mkdir"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def _met(self, name: str, real: Callable[..., Any], of: int) -> Callable[..., Any]:
        def call(*paths: Any, **options: Any) -> Any:
            self.meet(name, paths[of])
            return real(*paths, **options)

        return call

    def _opened(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            if not set(mode) & set("wax+") or not os.fsdecode(file).startswith(self._folder):
                return real(file, mode, *rest, **options)
            self.meet("open", file)
            buffered = io.BufferedWriter(_FaultyFile(self, os.fspath(file), mode.translate({98: None, 116: None})))
            return buffered if "b" in mode else io.TextIOWrapper(buffered, "utf-8")

        return call


class _FaultyFile(io.FileIO):
    def __init__(self, injector: Injector, path: str, mode: str) -> None:
        super().__init__(path, mode)
        self._injector, self._path = injector, path

    def write(self, data: Any) -> int:
        self._injector.meet("write", self._path, data, self.fileno())
        return super().write(data)

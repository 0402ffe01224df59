"""Files that are there whole or not at all, after a crash of the machine too."""

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

MARK = ".unfinished~"


@contextmanager
def atomic_write(path: Path, mode: str = "w", *, former: Path | None = None) -> Iterator[IO[Any]]:
    """Open a file that takes `path`'s place when the block ends well, and leaves no trace when it does not.

    What stood there before is kept as `former`, beside it.
    """
    unfinished = _unfinished(path)
    try:
        with unfinished.open(mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if former is not None and path.exists():
            _keep(path, former)
        unfinished.replace(path)
    except BaseException as error:
        _name_file(error, path)
        with suppress(OSError):  # what it would say hides the first error
            unfinished.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # not every file system can be asked to write a directory
        sync(path.parent)


def _name_file(error: BaseException, path: Path) -> None:
    """Say in a disk's refusal to write which file it is of; torch.save raises an error of its own from it."""
    refusal: BaseException | None = error
    while refusal is not None and not isinstance(refusal, OSError):
        refusal = refusal.__context__
    if refusal is not None and refusal.filename is None:
        refusal.filename = str(path)


def sync(path: Path) -> None:
    """Have what was written to a file, or the names in a directory, on disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_unfinished(directory: Path, *, written_by_others: str) -> None:
    """Remove what killed processes left of an `atomic_write`; for the one process that writes in `directory`.

    Others may write `written_by_others` at any time: what is left of it goes if its writer is known to be gone.
    """
    for path in directory.glob(".*"):
        if found := re.fullmatch(rf"\.(.+){re.escape(MARK)}(.+)~(\d+)", path.name):
            name, host, pid = found.groups()
            if name != written_by_others or (host == socket.gethostname() and not _alive(int(pid))):
                path.unlink(missing_ok=True)


def _unfinished(path: Path) -> Path:
    # Beside its place, since a rename is atomic within one file system alone; named for this process, since
    # others may be writing the same file, on other machines too.
    return path.with_name(f".{path.name}{MARK}{socket.gethostname()}~{os.getpid()}")


def _keep(path: Path, former: Path) -> None:
    second_name = _unfinished(former)
    try:
        os.link(path, second_name)  # so that `path` is there at every moment
    except OSError:  # a file system without hard links
        path.replace(former)
        return
    second_name.replace(former)
    second_name.unlink(missing_ok=True)  # renaming one name of a file to another of its names does nothing


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

"""Files that are either complete or absent, even after a crash of the machine."""

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
    """Open a file that replaces `path` if the block succeeds, and leaves no trace if it does not.

    The file that was there before is kept as `former`, if that is given.
    """
    unfinished = unfinished_name(path)
    try:
        with unfinished.open(mode, encoding=None if "b" in mode else "utf-8") as file:  # in any locale
            yield file
            file.flush()
            os.fsync(file.fileno())
        if former is not None and path.exists():
            _keep(path, former)
        unfinished.replace(path)
    except BaseException as error:
        _name_file(error, path)
        with suppress(OSError):  # it would hide the first error
            unfinished.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # not every file system can sync a directory
        sync(path.parent)


def _name_file(error: BaseException, path: Path) -> None:
    """Add the file's name to an OSError that lacks it; torch.save wraps that in an error of its own."""
    refusal: BaseException | None = error
    while refusal is not None and not isinstance(refusal, OSError):
        refusal = refusal.__context__
    if refusal is not None and refusal.filename is None:
        refusal.filename = str(path)


def sync(path: Path) -> None:
    """Sync the content of a file, or the names in a directory, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_unfinished(directory: Path, *, written_by_others: str) -> None:
    """Remove the unfinished files of killed processes; called by the only process that writes in `directory`.

    Only `written_by_others` may be written by others at any time: it goes if its writer is known to be gone.
    """
    for path, name, abandoned in unfinished_in(directory):
        if name != written_by_others or abandoned:
            path.unlink(missing_ok=True)


def unfinished_in(directory: Path) -> Iterator[tuple[Path, str, bool]]:
    """Files with an `unfinished_name`: path, final name, and whether the writer is known to be gone."""
    for path in directory.glob(".*"):
        if found := re.fullmatch(rf"\.(.+){re.escape(MARK)}(.+)~(\d+)", path.name):
            name, host, pid = found.groups()
            yield path, name, host == socket.gethostname() and not _alive(int(pid))


def unfinished_name(path: Path) -> Path:
    """Where this process writes the file that will be at `path`."""
    # In the same folder, since renaming is atomic only within a file system; named after this process, since
    # others, even on other machines, may be writing the same file.
    return path.with_name(f".{path.name}{MARK}{socket.gethostname()}~{os.getpid()}")


def _keep(path: Path, former: Path) -> None:
    second_name = unfinished_name(former)
    try:
        os.link(path, second_name)  # so that `path` exists at every moment
    except OSError:  # a file system without hard links
        path.replace(former)
        return
    second_name.replace(former)
    second_name.unlink(missing_ok=True)  # renaming did nothing if both names were links to one file


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

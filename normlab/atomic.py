"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that takes `path`'s place when the block ends well, and leaves no trace when it does not."""
    # Beside its place, since a rename is atomic within one file system alone; named for this process, since
    # another may be writing the same file.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open(mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException as error:
        _name_file(error, path)
        unfinished.unlink(missing_ok=True)
        raise


def _name_file(error: BaseException, path: Path) -> None:
    """Say in a disk's refusal to write which file it is of; torch.save raises an error of its own from it."""
    refusal: BaseException | None = error
    while refusal is not None and not isinstance(refusal, OSError):
        refusal = refusal.__context__
    if refusal is not None and refusal.filename is None:
        refusal.filename = str(path)

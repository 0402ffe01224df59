"""Folders of arrays kept on disk: made once by one process, then memory-mapped by all that read them."""

import mmap
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
import torch
from filelock import FileLock

T = TypeVar("T")


class DamagedError(Exception):
    """What lies in a cache is not whole: it is made anew."""


def read_or_build(folder: Path, key: str, read: Callable[[Path], T], build: Callable[[Path], None]) -> T:
    """read(folder/key), after build() has filled it if it is missing or read raises DamagedError.

    build fills a temporary folder, which is renamed into place when whole: `folder/key` is there entirely
    or not at all. A lock lets one process build and the others wait. Whatever else lies in `folder` (other
    keys, what a killed process left) is deleted after a build; a process that has it mapped keeps it.
    Raises: OSError if the cache cannot be written; what read and build raise.
    """
    place = folder / key
    with suppress(DamagedError):
        return read(place)  # without the lock, so that a finished cache may be read-only
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f"{folder.name}.lock"):
        with suppress(DamagedError):
            return read(place)
        folder.mkdir(exist_ok=True)
        half_made = Path(tempfile.mkdtemp(prefix="half-made-", dir=folder))
        try:
            build(half_made)
            shutil.rmtree(place, ignore_errors=True)
            half_made.rename(place)
            _sync(folder)
        except BaseException:
            shutil.rmtree(half_made, ignore_errors=True)
            with suppress(OSError):
                folder.rmdir()  # only if nothing else is in it
            raise
        for other in folder.iterdir():
            if other != place:
                shutil.rmtree(other, ignore_errors=True)
        return read(place)


class ArrayWriter:
    """Writes a .npy file block by block along its first axis, and syncs it to disk when it closes.

    By plain writes: a full disk is then an OSError, where a memory map would end the process with SIGBUS.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._file = path.open("wb")
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def write(self, block: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(block).data)

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())


def write_text(path: Path, text: str) -> None:
    """A small file, synced to disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def map_array(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> torch.Tensor:
    """A .npy file as a read-only memory-mapped tensor: its pages are shared by all processes that map it.

    Writing to the tensor ends the process: the pages are protected.
    Raises: DamagedError if the file is not a whole array of this shape and type.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DamagedError(f"{path}: {error}") from error
    if array.shape != shape or array.dtype != dtype:
        raise DamagedError(f"{path} holds {array.dtype} {array.shape} instead of {dtype} {shape}")
    if isinstance(array.base, mmap.mmap):
        # Rows are taken at random. What fits into memory is best read ahead as a whole; of what does not,
        # the kernel's read-ahead would fetch many neighbours that are never asked for.
        fits = array.nbytes < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        array.base.madvise(mmap.MADV_WILLNEED if fits else mmap.MADV_RANDOM)
    return torch.from_dlpack(array)  # from_numpy warns of arrays that cannot be written


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

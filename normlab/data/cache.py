"""Folders of arrays on disk, made once by one process and memory-mapped by every process that reads them."""

import hashlib
import json
import mmap
import os
import platform
import re
import shutil
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
import torch
import xxhash
from filelock import FileLock

from normlab.atomic import atomic_write, sync
from normlab.data.decode import in_threads

T = TypeVar("T")

CHECKSUMS = "checksums.json"
"""A file in each folder, with the xxh3 (128 bits) of every other file of the build."""

MADE = (".npy", ".json")
"""The suffixes of a cache's files."""


class DamagedError(Exception):
    """The content of a cache is incomplete or altered, so it has to be rebuilt."""


def read_or_build(folder: Path, key: str, read: Callable[[Path], T], build: Callable[[Path], None]) -> T:
    """read(folder/key), after build() has filled it if it is missing, or damaged according to checksums or read.

    build fills a temporary folder, which is renamed into place when complete, so `folder/key` is either complete
    or absent. A lock lets one process build while others wait. Anything else that was built in `folder` (other
    keys, leftovers of a killed process) is deleted after a build; processes that have it mapped keep it.
    Raises: OSError if the cache cannot be written; whatever read and build raise.
    """
    entry = folder / key
    with suppress(DamagedError):
        return _read(entry, read)  # without the lock: a finished cache may be read-only
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f"{folder.name}.lock"):
        try:
            return _read(entry, read)
        except DamagedError as error:
            if entry.exists():
                print(f"warning: a damaged cache is rebuilt: {error}", file=sys.stderr)
        folder.mkdir(exist_ok=True)
        half_made = folder / f"half-made-{uuid.uuid4().hex}"
        half_made.mkdir()  # mkdtemp would make it inaccessible to other users, for good
        try:
            build(half_made)
            write_text(half_made / CHECKSUMS, json.dumps(_checksums(half_made), indent=1))
            if entry.exists():  # moved aside, and removed below if it is ours
                entry.rename(folder / f"half-made-{uuid.uuid4().hex}")
            half_made.rename(entry)
            sync(folder)
        except BaseException:
            shutil.rmtree(half_made, ignore_errors=True)
            with suppress(OSError):
                folder.rmdir()  # fails if anything else is in it
            raise
        _remember(entry, _stamp(entry))
        for other in folder.iterdir():
            if other != entry:
                _remove(other)
        return _read(entry, read)


def _read(entry: Path, read: Callable[[Path], T]) -> T:
    try:
        _verify(entry)
    except (OSError, ValueError, AttributeError) as error:
        raise DamagedError(f"{entry} ({error})") from error
    return read(entry)


def _remove(folder: Path) -> None:
    """Delete a folder that a build made. One with another name or other content is left alone."""
    if not re.fullmatch(r"[0-9a-f]{16}|half-made-\w+", folder.name) or folder.is_symlink() or not folder.is_dir():
        return
    files = list(folder.iterdir())
    if all(file.suffix in MADE and file.is_file() for file in files):
        shutil.rmtree(folder, ignore_errors=True)


def _verify(entry: Path) -> None:
    """Compare the files of a cache with their checksums, once per machine and cache.

    The user's own folder records which files were compared, by size, inode and times of change, since the cache
    may be shared or read-only. 1 GB takes 0.3 s if its pages are in memory.
    Raises: DamagedError; OSError or ValueError if there are no readable checksums.
    """
    stamp = _stamp(entry)
    with suppress(OSError, RuntimeError):
        if _note(entry).read_bytes() == stamp.encode():
            return
    expected = json.loads((entry / CHECKSUMS).read_text())
    found = _checksums(entry)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise DamagedError(f"{entry / name} does not hold what was decoded into it")
    _remember(entry, stamp)


def _checksums(entry: Path) -> dict[str, str]:
    def checksum(file: Path) -> str:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, xxhash.xxh3_128).hexdigest()

    files = sorted(file for file in entry.iterdir() if file.suffix in MADE and file.name != CHECKSUMS)
    return dict(zip((file.name for file in files), in_threads(checksum, files), strict=True))


def _stamp(entry: Path) -> str:
    stats = [(file.name, file.stat()) for file in sorted(entry.iterdir())]
    return digest(entry, *((name, s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats))


def _remember(entry: Path, stamp: str) -> None:
    with suppress(OSError, RuntimeError):  # if the user has no such folder, verify at each start
        note = _note(entry)
        note.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(note) as file:
            file.write(stamp)


def _note(entry: Path) -> Path:
    """The file that records which cache was verified on this machine; a later key overwrites it."""
    return user_folder() / "verified" / digest(platform.node(), entry.parent)


def user_folder() -> Path:
    """The user's own folder for files that can be recreated. Raises: RuntimeError if there is no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "normlab"


def digest(*parts: object) -> str:
    """A short hash of the parts as text, in order."""
    return hashlib.blake2b("\n".join(map(str, parts)).encode(errors="surrogateescape"), digest_size=8).hexdigest()


class ArrayWriter:
    """Writes a .npy file block by block along its first axis, and syncs it to disk when it closes.

    It uses plain writes, for which a full disk is an OSError; with a memory map, SIGBUS would end the process.
    """

    def __init__(self, path: Path, row_shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._row_shape, self._dtype, self._rows = row_shape, dtype, 0
        self._file = path.open("wb")
        self._write_header()

    def write(self, block: np.ndarray) -> None:
        """Append rows, as (n, *row_shape)."""
        assert (block.shape[1:], block.dtype) == (self._row_shape, self._dtype)
        self._file.write(np.ascontiguousarray(block).data)
        self._rows += len(block)

    def _write_header(self) -> None:
        """Write it at the start of the file, over an earlier one: NumPy leaves room for any number of rows."""
        self._file.seek(0)
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self._rows, *self._row_shape)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                self._write_header()
            self._file.flush()
            os.fsync(self._file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a small file, and sync it to disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def map_array(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> torch.Tensor:
    """A .npy file as a read-only memory-mapped tensor, whose pages are shared by all processes that map it.

    Writing to the tensor ends the process, since the pages are protected.
    Raises: DamagedError unless the file is a complete array of this shape and type.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DamagedError(f"{path}: {error}") from error
    if array.shape != shape or array.dtype != dtype:
        raise DamagedError(f"{path} holds {array.dtype} {array.shape} instead of {dtype} {shape}")
    if isinstance(array.base, mmap.mmap):
        # Rows are taken at random. An array that fits into memory is best read ahead as a whole. For a larger
        # one, the kernel's read-ahead would fetch many neighbours that are never used.
        fits = array.nbytes < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        array.base.madvise(mmap.MADV_WILLNEED if fits else mmap.MADV_RANDOM)
    return torch.from_numpy(np.asarray(_Writable(array)))


class _Writable:
    """A read-only array that claims to be writable: else from_numpy would warn, and older DLPack fail."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array  # arrays made from this keep it, and so the array, alive
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = array.__array_interface__ | {"data": (address, False)}

"""What lies under data.root, and where the pixels of it are cached."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from normlab.config import ConfigError
from normlab.data.cache import read_or_build
from normlab.data.decode import SUFFIXES

T = TypeVar("T")


def data_root(given: str | None, expected: str) -> Path:
    """data.root as an absolute path. Raises: ConfigError where it is not given, or holds no train/."""
    if given is None:
        raise ConfigError(f"data.root is not given; set it to the folder that holds {expected}.")
    root = Path(given).expanduser()
    for folder in (root, root / "train"):
        if not folder.is_dir():
            raise ConfigError(f"data.root={given}: {folder} is not a folder; it must hold {expected}.")
    return root.resolve()


def files_under(folder: str) -> list[tuple[str, int, int]]:
    """Path, size and time of change in ns of each image under a folder, at any depth; hidden ones are left out."""
    found = []
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            found += files_under(entry.path)
        elif entry.name.lower().endswith(SUFFIXES):
            stat = entry.stat()
            found.append((entry.path, stat.st_size, stat.st_mtime_ns))
    return found


def digest(*parts: object) -> str:
    """A short hash of the parts as text, in their order."""
    return hashlib.blake2b("\n".join(map(str, parts)).encode(errors="surrogateescape"), digest_size=8).hexdigest()


def cached(
    cache_dir: str | None,
    root: Path,
    size: int | None,
    key: str,
    read: Callable[[Path], T],
    build: Callable[[Path], None],
) -> T:
    """What `read` gives of the cache of `root` at `size` pixels, built where there is none for `key`.

    It lies at <cache_dir>/<root's name>-<hash of its path and size>/<key>.
    Raises: ConfigError where it cannot be written.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "normlab"
    place = Path(cache_dir).expanduser() if cache_dir else default
    try:
        return read_or_build(place / f"{root.name}-{digest(root, size)}", key, read, build)
    except OSError as error:
        raise ConfigError(
            f"data.cache_dir={place} cannot be written ({error.strerror or error}); choose a folder that can."
        ) from error

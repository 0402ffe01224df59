"""The files under data.root, and where their pixels are cached."""

import json
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from normlab.atomic import atomic_write
from normlab.config import ConfigError
from normlab.config.data import ImageFolderConfig, MaskFilesConfig
from normlab.data.cache import digest, read_or_build, user_folder
from normlab.data.decode import SUFFIXES

T = TypeVar("T")


class Tell(Protocol):
    """Tells the user what is being made for the first time and, given a total, how much of it is done."""

    def __call__(self, text: str, done: int = 0, total: int = 0) -> None: ...


def data_root(given: str | None, expected: str) -> Path:
    """data.root as an absolute path. Raises: ConfigError if it is not given, or has no train/ in it."""
    if given is None:
        raise ConfigError(f"data.root is not given; set it to the folder that holds {expected}.")
    root = Path(os.path.expanduser(given))
    for folder in (root, root / "train"):
        if not os.path.isdir(folder):
            raise ConfigError(f"data.root={given}: {folder} is not a folder; it must hold {expected}.")
    return root.resolve()


def held_out_folders(root: Path) -> list[str]:
    """Which of test/ and val/ exist."""
    return [name for name in ("test", "val") if os.path.isdir(root / name)]


def entries(folder: str) -> list[tuple[str, os.stat_result]]:
    """Path and status of each entry of a folder, by name; links are followed, hidden entries left out.

    Raises: ConfigError if the folder or an entry cannot be read, such as a broken or circular link.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    except OSError as error:
        raise _unreadable(folder, error) from error
    return [(path, status(path)) for path in (os.path.join(folder, name) for name in names)]


def status(path: str) -> os.stat_result:
    """os.stat. Raises: ConfigError if that fails."""
    try:
        return os.stat(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: OSError) -> ConfigError:
    link = " as a link" if os.path.islink(path) else ""
    return ConfigError(f"{path} cannot be read{link} ({error.strerror}); mend or remove it.")


def file_status(path: str) -> os.stat_result:
    """os.stat of a regular file. Raises: ConfigError for anything else, such as a pipe, which never ends."""
    found = status(path)
    _require_file(path, found)
    return found


def _require_file(path: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path} is not a file but a folder, pipe, socket or device; remove it.")


def read_bytes(path: str) -> bytes:
    """The content of a file. Raises: ConfigError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise _unreadable(path, error) from error


def files_under(folder: str) -> list[tuple[str, int, int]]:
    """Path, size and time of change in ns of each image under a folder, at any depth; hidden ones are left out.

    Raises: ConfigError naming an entry that cannot be read, that has an image's name but is no file, or that
    links back to a parent folder.
    """
    found = []
    left: list[tuple[str, list[tuple[int, int]]]] = [(folder, [])]
    while left:
        folder, above = left.pop()
        here = status(folder)
        if (here.st_dev, here.st_ino) in above:
            raise ConfigError(f"{folder} is a link to one of its own parent folders; remove it.")
        for path, entry in entries(folder):
            if stat.S_ISDIR(entry.st_mode):
                left.append((path, [*above, (here.st_dev, here.st_ino)]))
            elif path.lower().endswith(SUFFIXES):
                _require_file(path, entry)
                found.append((path, entry.st_size, entry.st_mtime_ns))
    return found


def listed(cfg: ImageFolderConfig | MaskFilesConfig, root: Path, look: Callable[[], Any]) -> Any:
    """What look() finds below `root`, as JSON values; without cfg.check_files, what it found the first time.

    The first call without cfg.check_files writes that to <cache_dir>/<root's name>-<hash of its path and of
    cfg.name>.files.json, and every later call with it updates the file.
    Raises: ConfigError if it cannot be written; whatever look raises.
    """
    caches = _caches(cfg.cache_dir)
    file = caches / f"{root.name}-{digest(root, cfg.name)}.files.json"
    if not cfg.check_files:
        with suppress(FileNotFoundError, ValueError):
            return json.loads(file.read_bytes())
    found = look()
    try:
        if not cfg.check_files or file.exists():
            text = json.dumps(found)
            if file.exists() and file.read_text() == text:
                return found
            caches.mkdir(parents=True, exist_ok=True)
            with atomic_write(file) as opened:
                opened.write(text)
    except OSError as error:
        if not cfg.check_files:
            raise _unwritable(caches, error) from error
        # A shared cache may be read-only; users who can write to it update the list.
    return found


def cached(
    cache_dir: str | None,
    root: Path,
    size: int | None,
    key: str,
    read: Callable[[Path], T],
    build: Callable[[Path], None],
) -> T:
    """What `read` returns for the cache of `root` at `size` pixels, which is built if there is none for `key`.

    It lies at <cache_dir>/<root's name>-<hash of its path and size>/<key>.
    Raises: ConfigError if it cannot be written.
    """
    caches = _caches(cache_dir)
    folder = caches / f"{root.name}-{digest(root, size)}"
    try:
        return read_or_build(folder, key, read, build)
    except OSError as error:
        # An existing cache that has to be written is damaged. If it is shared, its owner should know.
        damaged = f", and {folder / key} is damaged" if os.path.exists(folder / key) else ""
        raise _unwritable(caches, error, damaged) from error


def _caches(cache_dir: str | None) -> Path:
    try:
        return Path(os.path.expanduser(cache_dir)) if cache_dir else user_folder()
    except RuntimeError as error:
        raise ConfigError(
            f"data.cache_dir is not given, and there is no home folder ({error}); give it."
        ) from error


def _unwritable(caches: Path, error: OSError, damaged: str = "") -> ConfigError:
    reason = error.strerror or error
    return ConfigError(f"data.cache_dir={caches} cannot be written ({reason}){damaged}; choose a folder that can.")


def announce(folder: Path, what: str, size: int, tell: Tell) -> None:
    """Tell how many bytes will be decoded, and to where. Raises: ConfigError if the disk has no room for them."""
    tell(f"decoding {what} into {folder.parent} ({gigabytes(size)})")
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ConfigError(
            f"the pixels of {what} take {gigabytes(size)}, and {gigabytes(free)} are free at {folder.parent}; "
            "lower data.image_size, or choose a data.cache_dir with more room."
        )


def gigabytes(size: int) -> str:
    """A number of bytes, in words."""
    return f"{size / 1e9:.4g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"

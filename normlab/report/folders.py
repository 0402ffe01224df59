"""The folders that a report writes. It replaces and removes only what a report wrote."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from normlab.atomic import unfinished_in, unfinished_name
from normlab.config import ConfigError
from normlab.run_files import SIGNS_OF_LIFE

MARK = ".made-by-normlab-report"
"""The name of a file in every folder that a report wrote."""
MARK_TEXT = "python -m normlab.report wrote this folder, and replaces what is in it when it is run again.\n"


def check_own(folder: Path) -> None:
    """Raises: ConfigError unless `folder` is absent or empty, or was written by a report and holds no run."""
    if problem := _problem(folder):
        raise ConfigError(
            f"{folder} is not replaced, since it {problem}; move it away, or give another folder with --out."
        )


def mark(folder: Path) -> None:
    """Note in `folder` that a report wrote it."""
    (folder / MARK).write_text(MARK_TEXT)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder that takes `folder`'s place when the block ends well. Raises: ConfigError, as `check_own`."""
    folder = folder.resolve()  # the target of a link
    former = folder.with_name(f"{folder.name}.former")
    unfinished, old = unfinished_name(folder), unfinished_name(former)
    for path in (folder, unfinished, old):
        check_own(path)
    _remove(unfinished, old)
    for path, name, abandoned in unfinished_in(folder.parent):  # by reports that were killed
        if abandoned and name in (folder.name, former.name):
            _remove(path)
    unfinished.mkdir(parents=True)
    mark(unfinished)
    try:
        yield unfinished
        check_own(folder)  # again: a run may have begun there
        if folder.exists():
            folder.rename(old)
        unfinished.rename(folder)
    finally:
        _remove(unfinished, old)


def _remove(*folders: Path) -> None:
    for folder in folders:
        if not _problem(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _problem(folder: Path) -> str:
    """Why `folder` must not be replaced; empty if it may be."""
    if not os.path.lexists(folder):
        return ""
    if not folder.is_dir():
        return "is not a folder"
    if (found := _sign_of_a_run(folder)) is not None:
        return f"holds a run ({found.relative_to(folder)})"
    if not _is_marked(folder) and any(folder.iterdir()):
        return f"has no {MARK} in it, which says that a report wrote it"
    return ""


def _is_marked(folder: Path) -> bool:
    try:
        return (folder / MARK).read_text() == MARK_TEXT
    except (OSError, UnicodeDecodeError):
        return False


def _sign_of_a_run(folder: Path) -> Path | None:
    """A file below `folder` that marks a run, even one that has only just begun."""
    for path, _, files in os.walk(folder):
        if found := sorted(set(files).intersection(SIGNS_OF_LIFE)):
            return Path(path) / found[0]
    return None

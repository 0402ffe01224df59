"""Atomic save and verified load of a run's state."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from normlab.atomic import atomic_write
from normlab.config import ConfigError

FORMAT = 1


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, and containers of them); a reader sees the old file or the new."""
    with atomic_write(path, "wb") as file:
        torch.save({"format": FORMAT, **state}, file)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, every byte checked against its CRC and nothing unpickled but tensors.

    Raises: ConfigError for a damaged file, or one of another format.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"bad checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, RuntimeError, EOFError) as error:
        raise ConfigError(f"{path} is damaged ({error}); delete it, or start over with rerun=true.") from None
    if state.get("format") != FORMAT:
        raise ConfigError(
            f"{path} has format {state.get('format')}, this normlab reads {FORMAT}; start over with rerun=true."
        )
    return state

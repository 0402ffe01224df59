"""Atomic save and verified load of a run's state."""

import pickle
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
    state = _verified(path, "delete it, or start over with rerun=true")
    if state.get("format") != FORMAT:
        raise ConfigError(
            f"{path} has format {state.get('format')}, this normlab reads {FORMAT}; start over with rerun=true."
        )
    return state


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint of ours, or in any file of a state dict, by name, on the CPU.

    Raises: ConfigError for a damaged file, or one that holds no weights.
    """
    state = _verified(path, "choose another model.init_from")
    for key in ("model", "state_dict"):
        state = state[key] if isinstance(state, dict) and isinstance(state.get(key), dict) else state
    tensors = {
        str(name).removeprefix("module."): value
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise ConfigError(f"{path} holds no weights; choose another model.init_from.")
    return tensors


def _verified(path: Path, fix: str) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"bad checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"{path} is damaged ({reason}); {fix}.") from None
    if not isinstance(state, dict):
        raise ConfigError(f"{path} holds a {type(state).__name__} and no state; {fix}.")
    return state

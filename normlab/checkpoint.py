"""Atomic save and verified load of a run's state. The checkpoint before the newest is kept beside it."""

import errno
import pickle
import re
import sys
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from normlab.atomic import atomic_write
from normlab.config import ConfigError

FORMAT = 2
FIX = "delete it, or start over with rerun=true"


class Damaged(ConfigError):
    """A file whose content is not what was saved."""

    def __init__(self, path: Path, reason: str, fix: str = FIX) -> None:
        super().__init__(f"{path} is damaged ({reason}); {fix}.")
        self.reason = reason


class Unpicklable(Damaged):
    """An intact file that holds an object of a class that is never unpickled."""


def former(path: Path) -> Path:
    """Where the checkpoint before the one at `path` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, and containers of them); a reader sees the old file or the new.

    The old file is kept as `former(path)`.
    """
    state = {"format": FORMAT, **state}
    with atomic_write(path, "wb", former=former(path)) as file:
        torch.save({**state, "checksum": _checksum(state)}, file)


def recover(path: Path) -> bool:
    """Make sure that the checkpoint at `path` is intact; if not, say so and put the previous one in its place.

    Returns whether there is one. Raises: ConfigError if there are checkpoints, but none is intact.
    """
    try:
        load(path)
        return True
    except FileNotFoundError:  # a crash on a file system that has no hard links
        if not former(path).exists():
            return False
        problem = "missing"
    except Damaged as error:
        if not former(path).exists():
            raise
        problem = f"damaged ({error.reason})"
    load(former(path))
    if path.exists():  # kept, since it may only seem damaged when memory is short
        path.replace(path.with_name(f"{path.stem}.damaged{path.suffix}"))
    former(path).replace(path)
    print(f"warning: {path} was {problem}; going on from the checkpoint before it", file=sys.stderr)
    return True


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU and verify its checksum. Only tensors and plain values are unpickled.

    Raises: FileNotFoundError; Damaged; ConfigError for a file of another format.
    """
    state = _verified(path, FIX)
    if state.get("format") != FORMAT:
        raise ConfigError(
            f"{path} has format {state.get('format')}; this normlab reads {FORMAT}. Start over with rerun=true."
        )
    if state.pop("checksum", None) != _checksum(state):
        raise Damaged(path, "its checksum does not match")
    return state


def check(path: Path, state: Mapping[str, Any], run_hash: str, total_steps: int, model: nn.Module) -> None:
    """Raises: ConfigError unless a run with this hash, length and `model` saved `state`."""
    shapes = {name: tensor.shape for name, tensor in state["model"].items()}
    if state["hash"] != run_hash:
        problem = f"it was saved by run {state['hash']}"
    elif not 0 < state["step"] <= total_steps:
        problem = f"it was saved after step {state['step']} of a run of {total_steps}"
    elif any(shapes.get(name) != parameter.shape for name, parameter in model.named_parameters()):
        problem = "its parameters have other names or shapes"
    else:
        return
    raise ConfigError(f"{path} is not this run's ({problem}); {FIX}.")


def copy_into(tensors: Iterable[torch.Tensor], values: torch.Tensor) -> None:
    """Fill `tensors`, one after another, from the flat `values`; surplus values are ignored."""
    at = 0
    for tensor in tensors:
        tensor.copy_(values[at : at + tensor.numel()].view(tensor.shape))
        at += tensor.numel()


def _checksum(value: Any, start: int = 0) -> int:
    """CRC-32 of all values and names, which finds a change even in a file that was rewritten."""
    if isinstance(value, torch.Tensor):
        start = zlib.crc32(f"{value.dtype}{tuple(value.shape)}".encode(), start)
        content: Any = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        return zlib.crc32(content, start)
    if not isinstance(value, dict | list | tuple):
        return zlib.crc32(f"{value!r} ".encode(), start)
    start = zlib.crc32(f"{len(value)} in ".encode(), start)
    for part in value.items() if isinstance(value, dict) else value:
        start = _checksum(part, start)
    return start


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint of ours, or in any file of a state dict, by name, on the CPU.

    Reads safetensors and every format that torch.save has ever written. safetensors and files from before torch
    1.6 have no checksums, so only their structure is checked.
    Raises: ConfigError for a damaged file, one without weights, or one with more than tensors and plain values.
    """
    try:
        state = _verified(path, "choose another model.init_from")
    except Unpicklable as error:
        raise ConfigError(
            f"{path}: {error.reason}, which is not unpickled, since that may run any code; save the model's "
            "state_dict() alone, or choose another model.init_from."
        ) from None
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
        state = _read(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); {fix}.") from None
    except (pickle.UnpicklingError, SafetensorError) as error:
        if other := re.search(r"GLOBAL (\S+) was not an allowed global", str(error)):
            raise Unpicklable(path, f"it holds a {other[1]}", fix) from None
        raise Damaged(path, next(iter(str(error).splitlines()), type(error).__name__), fix) from None
    if not isinstance(state, dict):
        raise ConfigError(f"{path} holds a {type(state).__name__}, not a dict of weights; {fix}.")
    return state


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        beginning = file.read(9)
    if beginning[8:] == b"{":  # the header, after its length
        return safetensors.torch.load_file(path)
    try:
        if beginning.startswith(b"PK"):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged:
                raise zipfile.BadZipFile(f"bad checksum of {damaged}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an error says it better
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # reading bytes that are not a pickle may raise anything
        if (
            isinstance(error, OSError) and error.errno != errno.EINVAL
        ):  # EINVAL: an offset before the file's beginning
            raise
        raise pickle.UnpicklingError(str(error) or type(error).__name__) from None

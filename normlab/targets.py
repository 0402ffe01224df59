"""Users' own code, named as `module:name` and imported from the folder in which the command is run.

A mistake in it is a ConfigError that says where: the one line that a rank or a sweep can pass on.
"""

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from normlab.config import ConfigError

OWN_MODULES = Path(__file__).parents[1] / "own_modules"
"""The user's modules as they were when a job was submitted, in the copy of the code that the job runs."""


def source_file(key: str, target: str) -> Path:
    """The file that holds `target`'s module. Raises: ConfigError if there is none."""
    module, _, _ = target.partition(":")
    _look_here()
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:  # its package does not exist
        spec = None
    except Exception as error:
        raise ConfigError(f"{key}={target}: {said_in(error)}.") from error
    if spec is None or spec.origin is None or not os.path.isfile(spec.origin):
        raise ConfigError(
            f"{key}={target}: there is no module {module} in {os.getcwd()} or among what is installed; give "
            "module:name, from the folder that holds the module."
        )
    return Path(spec.origin)


def imported_target(key: str, target: str) -> Callable[..., Any]:
    """The callable that `target` names. Raises: ConfigError if it cannot be imported, or called."""
    module, _, name = target.partition(":")
    file = source_file(key, target)
    try:
        found = import_module(module)
    except Exception as error:
        raise ConfigError(f"{key}={target}: {said_in(error)}.") from error
    made = getattr(found, name, None)
    if not callable(made):
        has = [
            known
            for known, one in vars(found).items()
            if callable(one) and getattr(one, "__module__", "") == module
        ]
        raise ConfigError(
            f"{key}={target}: {file} has no {name} that can be called; it has {', '.join(has) or 'none at all'}."
        )
    return made


def call_target(key: str, target: str, args: dict[str, Any], **ours: Any) -> Any:
    """What `target` returns for `ours` and `args`. Raises: ConfigError if it raises, saying where."""
    made = imported_target(key, target)
    try:
        return made(**ours, **args)
    except Exception as error:
        raise ConfigError(f"{key}={target}: {said_in(error)}.") from error


def _look_here() -> None:
    """Import from the folder of the command first, as a script in it would. It is the same on every rank."""
    for folder in (Path.cwd(), OWN_MODULES):
        if str(folder) not in sys.path and folder.is_dir():
            sys.path.insert(0, str(folder))


def said_in(error: Exception) -> str:
    """The error, and the user's line that it came from: the last one outside normlab and libraries."""
    where = ""
    for frame in traceback.extract_tb(error.__traceback__):
        for folder in (Path.cwd(), OWN_MODULES):
            if Path(frame.filename).is_relative_to(folder):
                where = f" at {Path(frame.filename).relative_to(folder)}:{frame.lineno}"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{where}" + (f": {text}" if text else "")


def named(value: Any) -> str:
    """A description of what the user's code returned."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        kind = "a tensor" if type(value).__name__ == "Tensor" else "an array"
        return f"{kind} {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(str, value))}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if type(value).__module__.startswith("PIL.") and hasattr(value, "mode"):
        return f"a picture of PIL in mode {value.mode}"
    return f"something of type {type(value).__name__}"


def without_gradient(module: Any) -> str:
    """A module's trainable parameters that have no gradient after a backward, in words, or ""."""
    found = [name for name, one in module.named_parameters() if one.requires_grad and one.grad is None]
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"no gradient reaches {', '.join(found[:3])}{more}" if found else ""

"""What users name as `module:name`, in the folder in which they give the command.

A mistake in their code is a ConfigError that says where in it: the one line that a rank or a sweep can pass on.
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
"""The user's modules as they were when a job was submitted, in the copy of the code that such a job runs."""


def source_file(key: str, target: str) -> Path:
    """The file that holds `target`'s module. Raises: ConfigError where there is none."""
    module, _, _ = target.partition(":")
    _look_here()
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:  # of a package
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
    """What goes by `target`. Raises: ConfigError where it cannot be imported, or called."""
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
    """What `target` gives for `ours` and `args`. Raises: ConfigError where it raises, saying where."""
    made = imported_target(key, target)
    try:
        return made(**ours, **args)
    except Exception as error:
        raise ConfigError(f"{key}={target}: {said_in(error)}.") from error


def _look_here() -> None:
    """The folder of the command comes first, as it does for a script of its own. Each rank has the same one."""
    for folder in (Path.cwd(), OWN_MODULES):
        if str(folder) not in sys.path and folder.is_dir():
            sys.path.insert(0, str(folder))


def said_in(error: Exception) -> str:
    """What was raised, and at which line of the user's: the last that is neither ours nor a library's."""
    where = ""
    for frame in traceback.extract_tb(error.__traceback__):
        for folder in (Path.cwd(), OWN_MODULES):
            if Path(frame.filename).is_relative_to(folder):
                where = f" at {Path(frame.filename).relative_to(folder)}:{frame.lineno}"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{where}" + (f": {text}" if text else "")


def named(value: Any) -> str:
    """What the user's code gave, in words."""
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
    """The parameters that a module trains and that have no gradient after a backward, in words, or ""."""
    found = [name for name, one in module.named_parameters() if one.requires_grad and one.grad is None]
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"no gradient reaches {', '.join(found[:3])}{more}" if found else ""

"""What every part of the configuration is made of: fields with ranges, checked when a section is made."""

import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from importlib import import_module
from typing import Any, ClassVar, TypeVar

from omegaconf import MISSING

LARGEST_INT = 2**31 - 1
"""The largest integer that a key takes unless it says otherwise: what C code behind torch and NumPy holds."""


class ConfigError(ValueError):
    """A user's mistake: one line that names the key, the value and the fix. Entry points exit with code 2."""


def setting(
    default: Any,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    identity: bool = True,
) -> Any:
    """A dataclass field with its range, and whether it is part of a run's identity (changes its result)."""
    limits = {"minimum": minimum, "above": above, "maximum": maximum, "below": below}
    metadata = {"limits": {k: v for k, v in limits.items() if v is not None}, "identity": identity}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


_HOLDS = {
    "minimum": lambda value, limit: value >= limit,
    "above": lambda value, limit: value > limit,
    "maximum": lambda value, limit: value <= limit,
    "below": lambda value, limit: value < limit,
}
_WORDS = {"minimum": "at least", "above": "above", "maximum": "at most", "below": "below"}


def in_words(limits: dict[str, float]) -> str:
    """A range, such as "at least 1 and at most 1024"."""
    return " and ".join(f"{_WORDS[k]} {v}" for k, v in sorted(limits.items(), key=lambda one: one[1]))


def check_text(key: str, value: str) -> None:
    """Raises: ConfigError for a control character, a line's end or half a character."""
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in value):
        raise ConfigError(f"{key}={value!r} has a character in it that cannot be printed; leave it out.")


def check_folder_name(key: str, value: str) -> None:
    """Raises: ConfigError for what cannot stand in a folder's name, or would make it another folder."""
    check_text(key, value)
    if (
        not value
        or value.startswith(".")
        or any(letter in value for letter in "/\\=")
        or len(value.encode()) > 100
    ):
        raise ConfigError(
            f"{key}={value} cannot name a folder; give 1 to 100 characters without / \\ and =, the first no dot."
        )


@dataclass(kw_only=True)
class Section:
    """A part of the configuration whose fields are checked against their ranges when it is made."""

    group: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, str):
                    check_text(self.key(spec.name), one)
                elif isinstance(one, (int, float)) and not isinstance(one, bool):
                    self._check_number(spec.name, one, spec.metadata.get("limits", {}))

    def _check_number(self, name: str, value: float, limits: dict[str, float]) -> None:
        if isinstance(value, int):
            limits = {"maximum": LARGEST_INT} | limits
        elif not math.isfinite(value):
            raise ConfigError(f"{self.key(name)}={value} is out of range: it must be a finite number.")
        if any(not _HOLDS[k](value, v) for k, v in limits.items()):
            raise ConfigError(f"{self.key(name)}={value} is out of range: it must be {in_words(limits)}.")

    def key(self, name: str) -> str:
        """The name by which a user sets this field."""
        return f"{self.group}.{name}" if self.group else name


SCHEMAS: dict[str, dict[str, "type[Choice]"]] = {"norm": {}, "model": {}, "data": {}, "optim": {}}
"""Config group -> name of a schema -> its dataclass, in the order in which they are declared."""


@dataclass(kw_only=True)
class Choice(Section):
    """A section that is chosen by name: `norm=gn`. Its name says what it is, so it has none but its own."""

    names: ClassVar[tuple[str, ...] | None] = ()
    """Names that it may have: () is its default alone, None any, which its builder then looks up."""

    in_yaml: ClassVar[bool] = False
    """Whether it is chosen by files under conf/<group>, each with values of its own."""

    library: ClassVar[str] = ""
    """Whose names they are, where several libraries have one name for several things: part of a run's identity."""

    builder: ClassVar[str] = ""
    """`module:name` of what makes the thing that is chosen: imported where it is made, so that the configuration
    imports no torch."""

    name: str = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        check_folder_name(self.key("name"), self.name)
        own = self.own_names()
        if own and self.name not in own and MISSING not in own:
            raise ConfigError(
                f"{self.key('name')}={self.name} is not the name of this choice, which is {' or '.join(own)}; "
                f"leave it out, or choose with {self.chosen_by(self.name)} alone."
            )

    @classmethod
    def own_names(cls) -> tuple[str, ...]:
        """The names that are known without asking a library."""
        return (cls.name,) if cls.names == () else cls.names or ()

    def made_by(self) -> Any:
        """What makes it.

        Raises: ConfigError for a section that is none of the choices.
        """
        if not self.builder:
            known = ", ".join(SCHEMAS[self.group])
            raise ConfigError(f"{self.group}={self.name} is unknown; choose one of {known}.")
        return imported(self.builder)

    @classmethod
    def chosen_by(cls, name: str) -> str:
        """What a command line says to have what goes by `name`."""
        return f"{cls.group}={name}"


def imported(path: str) -> Any:
    """What goes by `module:name`."""
    module, name = path.split(":")
    return getattr(import_module(module), name)


C = TypeVar("C", bound=type[Choice])


def name_of_target(section: Choice, target: str, example: str) -> str:
    """What a section is called that holds something of the user's own, `module:name`: module.name.

    Raises: ConfigError where the target is none, or the section has another name.
    """
    if not re.fullmatch(r"\w+(\.\w+)*:\w+", target):
        key = section.key("target")
        raise ConfigError(f"{key}={target} is no module:name; give one, such as {key}={example}.")
    made = target.replace(":", ".")
    if section.name not in ("", made):
        raise ConfigError(
            f"{section.key('name')}={section.name} is no name of {section.key('target')}={target}; leave it out."
        )
    return made


def choice(name: str) -> Callable[[C], C]:
    """Declare a section as one that users may choose, under the name of its schema: `<group>=<name>`.

    YAML files under conf/<group> choose it under further names, with values of their own.
    """

    def declare(section: C) -> C:
        SCHEMAS[section.group][name] = section
        return section

    return declare

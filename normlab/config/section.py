"""What every part of the configuration is made of: fields with ranges, checked when a section is made."""

import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar


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
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


_HOLDS = {
    "minimum": lambda value, limit: value >= limit,
    "above": lambda value, limit: value > limit,
    "maximum": lambda value, limit: value <= limit,
    "below": lambda value, limit: value < limit,
}
_WORDS = {"minimum": "at least", "above": "above", "maximum": "at most", "below": "below"}


@dataclass(kw_only=True)
class Section:
    """A part of the configuration whose fields are checked against their ranges when it is made."""

    group: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            values = value if isinstance(value, list) else [value]
            for number in values:
                if isinstance(number, (int, float)) and not isinstance(number, bool):
                    self._check_number(spec.name, number, spec.metadata.get("limits", {}))

    def _check_number(self, name: str, value: float, limits: dict[str, float]) -> None:
        broken = not math.isfinite(value) or any(not _HOLDS[k](value, v) for k, v in limits.items())
        if broken:
            words = " and ".join(f"{_WORDS[k]} {v:g}" for k, v in limits.items()) or "a finite number"
            raise ConfigError(f"{self.key(name)}={value} is out of range: it must be {words}.")

    def key(self, name: str) -> str:
        """The name by which a user sets this field."""
        return f"{self.group}.{name}" if self.group else name

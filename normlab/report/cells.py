"""A cell of a study, and how its settings are shown."""

import zlib
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from normlab.report.statistics import Estimate, estimate
from normlab.run_files import is_number

MOST_CHARACTERS = 80
"""Longer values are cut off."""
Axis = str
Value = Hashable


@dataclass(frozen=True, eq=False)
class Cell:
    """Runs that differ only in their seed."""

    norm: str
    at: tuple[tuple[Axis, Value], ...]
    """The value of every swept key; a norm's own key is left out unless this norm takes several values of it."""
    runs: tuple[dict[str, Any], ...]
    """Rows of Records.runs; if several have the same seed, the one written last."""

    @property
    def values(self) -> dict[Axis, Value]:
        return dict(self.at)

    @property
    def variant(self) -> tuple[tuple[Axis, Value], ...]:
        """The norm's own keys among the swept ones."""
        return tuple((axis, value) for axis, value in self.at if axis.startswith("norm."))

    @property
    def series(self) -> str:
        """The name of a line in a figure and of a row in a table: the norm, and its own keys that are swept."""
        return " ".join([self.norm, *(f"{axis.removeprefix('norm.')}={show(v)}" for axis, v in self.variant)])

    @property
    def states(self) -> Counter[str]:
        return Counter(run["state"] for run in self.runs)

    @property
    def nbs(self) -> float:
        sizes = [run["normalization_batch_size"] for run in self.runs if "normalization_batch_size" in run]
        return next(filter(is_number, sizes), np.nan)

    def by_seed(self, metric: str) -> dict[int, float]:
        """The metric of each finished run that has it."""
        return {
            run["seed"]: run[metric]
            for run in self.runs
            if run["state"] == "finished" and is_number(run.get(metric))
        }

    def estimate(self, metric: str) -> Estimate:
        return estimate(list(self.by_seed(metric).values()))

    def value(self, x: Axis) -> Value:
        """Its value of `x`, also if all runs share it; None if it has no such key."""
        if x in self.values:
            return self.values[x]
        return next((plain_value(run[x]) for run in self.runs if x in run), None)

    def without(self, *axes: Axis) -> tuple[tuple[Axis, Value], ...]:
        return tuple((axis, value) for axis, value in self.at if axis not in axes)

    def name(self, *, seed: int | None = None) -> str:
        words = [self.norm, *(f"{axis}={show(value)}" for axis, value in self.at)]
        return " ".join(words + ([f"seed={seed}"] if seed is not None else []))


def plain_value(value: Any) -> Value:
    """A number as it was written: pandas turns the 4 in a column with gaps into 4.0."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def show(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if len(text) <= MOST_CHARACTERS:
        return text
    return f"{text[:MOST_CHARACTERS]}...{zlib.crc32(text.encode()):08x}"  # distinct values stay distinct


def sort_key(value: Value) -> tuple[int, float, str]:
    """Sort numbers by size, followed by words."""
    if isinstance(value, int | float):
        return (0, float(value), "")
    return (1, 0.0, str(value))


def describe(place: Mapping[Axis, Value] | tuple[tuple[Axis, Value], ...]) -> str:
    return ", ".join(f"{axis}={show(value)}" for axis, value in dict(place).items())

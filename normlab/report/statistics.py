"""Means and intervals over seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its 95 percent interval, mean ± half_width."""

    n: int
    mean: float
    """nan where n = 0."""
    half_width: float
    """nan where n < 2: one seed says nothing of the spread."""

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width


def estimate(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """Mean and Student t interval of n independent values.

        mean ± t((1 + level) / 2, n - 1) * s / sqrt(n),   s^2 = sum (x - mean)^2 / (n - 1)

    The interval holds for values that are normal; with few seeds that is an assumption.
    Source: Student 1908, "The probable error of a mean".
    """
    n = len(values)
    if n == 0:
        return Estimate(0, math.nan, math.nan)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(1, mean, math.nan)
    t = float(stdtrit(n - 1, (1 + level) / 2))
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return Estimate(n, mean, t * math.sqrt(variance / n))


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate:
    """Mean and interval of value - baseline over the seeds that both have.

    Runs of one seed share initial weights, order of the data and augmentation, so what these do to both falls
    out of the difference; its interval is that of `estimate` on the differences.
    """
    return estimate([values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())])

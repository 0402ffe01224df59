"""Means and intervals over seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtr, stdtrit

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its 95 percent interval, mean ± half_width."""

    n: int
    mean: float
    """nan if n = 0."""
    half_width: float
    """nan if n < 2: one seed says nothing about the spread."""

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width

    @property
    def percent(self) -> str:
        """Fractions in percent: 2.1 ± 0.7, or 0.19 ± 0.16 if the half-width is below half a point."""
        places = 2 if self.half_width < 0.005 else 1
        return f"{100 * self.mean:.{places}f} ± {100 * self.half_width:.{places}f}"


def estimate(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """Mean and Student t interval of n independent values.

        mean ± t((1 + level) / 2, n - 1) * s / sqrt(n),   s^2 = sum (x - mean)^2 / (n - 1)

    The interval assumes normally distributed values, which few seeds cannot confirm.
    Source: Student 1908, "The probable error of a mean".
    """
    n = len(values)
    if n == 0:
        return Estimate(0, math.nan, math.nan)
    largest = max(map(abs, values))
    unit = largest if largest > 1e150 else 1.0  # its square would overflow
    scaled = [value / unit for value in values]
    mean = math.fsum(scaled) / n
    if n == 1:
        return Estimate(1, mean * unit, math.nan)
    t = float(stdtrit(n - 1, (1 + level) / 2))
    variance = math.fsum((value - mean) ** 2 for value in scaled) / (n - 1)
    return Estimate(n, mean * unit, t * math.sqrt(variance / n) * unit)


@dataclass(frozen=True)
class Difference(Estimate):
    """A mean paired difference, its interval, and its p-values."""

    p: float
    """Two-sided p-value of the paired t test that the true difference is 0; nan if n < 2."""
    p_holm: float
    """`p`, adjusted for the family of differences that it belongs to."""


NO_PAIR = Difference(0, math.nan, math.nan, math.nan, math.nan)


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate:
    """Mean and interval of value - baseline over the seeds that both have.

    Runs of one seed share initial weights, data order and augmentation, whose common effect cancels in the
    difference. The interval is that of `estimate` on the differences.
    """
    return estimate([values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())])


def with_p_values(differences: Sequence[Estimate]) -> list[Difference]:
    """Each with its p-value, and with one adjusted for all of them by Holm's method."""
    ps = [_p_value(one) for one in differences]
    adjusted = holm(ps)
    return [
        Difference(one.n, one.mean, one.half_width, p, p_holm)
        for one, p, p_holm in zip(differences, ps, adjusted, strict=True)
    ]


def _p_value(difference: Estimate) -> float:
    """2 P(T > |mean| / (s / sqrt(n))), with Student's T of n - 1 degrees of freedom."""
    if difference.n < 2:
        return math.nan
    if difference.mean == 0:  # also if all seeds agree
        return 1.0
    degrees = difference.n - 1
    standard_error = difference.half_width / float(stdtrit(degrees, (1 + LEVEL) / 2))
    t = abs(difference.mean) / standard_error if standard_error else math.inf
    return 2 * float(stdtr(degrees, -t))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: Holm's method rejects at 0.05 those that are below 0.05. nan stays nan, uncounted.

        adjusted_(i) = max over j <= i of min(1, (m - j + 1) p_(j)),   p_(1) <= ... <= p_(m)

    Rejecting all that are below alpha includes a false rejection with probability at most alpha, whatever the
    dependence between them.
    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    places = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    adjusted, highest = [math.nan] * len(p_values), 0.0
    for rank, place in enumerate(places):
        highest = max(highest, min(1.0, (len(places) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted

"""Repeated measurements as a median with an interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """The median of `n` values, and the interval that holds the true median with probability `coverage`."""

    median: float
    low: float
    high: float
    n: int
    coverage: float


def summarize(values: Sequence[float]) -> Summary:
    """Median and its order-statistic interval, which assumes no distribution.

    The interval [x_k, x_(n+1-k)] of n sorted values misses the true median with probability
    2 P(Binomial(n, 1/2) < k). k is the largest with a coverage of at least 95 percent. Fewer than 6 values have no
    such k: the interval is then their range, with the coverage that this has.
    Raises: AssertionError if there is no value.
    """
    ordered, n = sorted(values), len(values)
    assert n, "no values"
    k, missed = 1, 2 * 0.5**n
    while (more := missed + 2 * math.comb(n, k) * 0.5**n) <= 1 - CONFIDENCE:
        k, missed = k + 1, more
    return Summary(median(ordered), ordered[k - 1], ordered[n - k], n, max(0.0, 1 - missed))


def relative_to(values: Sequence[float], reference: Sequence[float]) -> Summary:
    """The ratio of two measurements that took turns, within each round, so that drift affects both alike."""
    return summarize([a / b for a, b in zip(values, reference, strict=True)])

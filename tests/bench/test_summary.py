"""Medians and their intervals."""

import math

import pytest

from normlab.bench.summary import relative_to, summarize


@pytest.mark.parametrize(
    ("n", "low", "high"),
    [(6, 1, 6), (9, 2, 8), (15, 4, 12), (20, 6, 15)],  # ranks as tabulated for the sign test at 95 percent
)
def test_the_interval_is_that_of_the_sign_test(n, low, high):
    summary = summarize([float(value) for value in reversed(range(1, n + 1))])
    assert (summary.low, summary.high, summary.n) == (low, high, n)
    assert summary.median == (n + 1) / 2
    outside = 2 * sum(math.comb(n, k) for k in range(low)) / 2**n
    assert summary.coverage == pytest.approx(1 - outside)
    assert 1 - outside >= 0.95


def test_few_values_give_their_range_and_say_how_little_it_covers():
    summary = summarize([3.0, 1.0, 2.0])
    assert (summary.median, summary.low, summary.high, summary.coverage) == (2.0, 1.0, 3.0, 0.75)
    assert summarize([5.0]).coverage == 0


def test_a_ratio_is_that_of_each_round():
    assert relative_to([1.0, 20.0, 3.0], [1.0, 10.0, 1.0]).median == 2.0

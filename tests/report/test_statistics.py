"""Means and intervals, against the formula by hand and scipy's own."""

import math

import pytest
import scipy.stats

from normlab.report.statistics import estimate, paired_difference


def test_an_interval_is_students_by_hand():
    """1, 2, 3: mean 2, s = 1, t(0.975, 2) = 4.302653."""
    found = estimate([1.0, 2.0, 3.0])
    assert (found.n, found.mean) == (3, 2.0)
    assert found.half_width == pytest.approx(4.302652729911275 / math.sqrt(3), rel=1e-9)
    assert (found.low, found.high) == (found.mean - found.half_width, found.mean + found.half_width)


@pytest.mark.parametrize("values", [[0.31, 0.44], [0.1, 0.5, 0.4, 0.35], [2.0] * 5 + [2.5]])
def test_an_interval_is_scipys(values):
    error = scipy.stats.sem(values)
    low, high = scipy.stats.t.interval(0.95, len(values) - 1, loc=sum(values) / len(values), scale=error)
    found = estimate(values)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)


def test_one_seed_has_no_interval_and_none_has_no_mean():
    assert (estimate([0.5]).n, estimate([0.5]).mean) == (1, 0.5)
    assert math.isnan(estimate([0.5]).half_width)
    assert estimate([]).n == 0
    assert math.isnan(estimate([]).mean)


def test_a_paired_difference_is_the_estimate_of_differences_of_seeds_that_both_have():
    ours, theirs = {0: 0.50, 1: 0.62, 2: 0.70, 9: 0.1}, {2: 0.60, 1: 0.50, 0: 0.42, 7: 0.9}
    found = paired_difference(ours, theirs)
    reference = scipy.stats.ttest_rel([0.50, 0.62, 0.70], [0.42, 0.50, 0.60]).confidence_interval()
    assert found.n == 3
    assert found.mean == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), rel=1e-9)
    assert found.half_width < estimate([0.50, 0.62, 0.70]).half_width  # what the seeds share falls out

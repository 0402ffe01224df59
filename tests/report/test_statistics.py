"""Means and intervals, against the formula by hand and scipy's own."""

import math

import pytest
import scipy.stats

from normlab.report.statistics import Estimate, estimate, holm, paired_difference, with_p_values


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


@pytest.mark.parametrize("unit", [1e149, 1e200, -1e300])
def test_values_whose_squares_no_float_holds_have_an_interval(unit):
    found, small = estimate([1.0 * unit, 2.0 * unit, 3.5 * unit]), estimate([1.0, 2.0, 3.5])
    assert found.mean == pytest.approx(small.mean * unit, rel=1e-12)
    assert found.half_width == pytest.approx(small.half_width * abs(unit), rel=1e-12)


def test_a_paired_difference_is_the_estimate_of_differences_of_seeds_that_both_have():
    ours, theirs = {0: 0.50, 1: 0.62, 2: 0.70, 9: 0.1}, {2: 0.60, 1: 0.50, 0: 0.42, 7: 0.9}
    found = paired_difference(ours, theirs)
    reference = scipy.stats.ttest_rel([0.50, 0.62, 0.70], [0.42, 0.50, 0.60]).confidence_interval()
    assert found.n == 3
    assert found.mean == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), rel=1e-9)
    assert found.half_width < estimate([0.50, 0.62, 0.70]).half_width  # what the seeds share falls out


def test_holms_adjustment_by_hand():
    """Sorted: 4 * 0.005 = 0.02; 3 * 0.01 = 0.03; 2 * 0.03 = 0.06; 1 * 0.04, but none is below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], rel=1e-12)
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_what_has_no_p_value_does_not_count_in_the_family():
    first, gap, second = holm([0.01, math.nan, 0.5])
    assert (first, second) == (0.02, 0.5)
    assert math.isnan(gap)


def test_p_values_are_those_of_the_paired_t_test():
    ours, theirs = [0.50, 0.62, 0.70], [0.42, 0.50, 0.60]
    pair = paired_difference(dict(enumerate(ours)), dict(enumerate(theirs)))
    [found] = with_p_values([pair])
    assert found.p == pytest.approx(scipy.stats.ttest_rel(ours, theirs).pvalue, rel=1e-9)
    assert found.p_holm == found.p  # of a family of one
    assert (found.n, found.mean, found.half_width) == (pair.n, pair.mean, pair.half_width)


def test_equal_runs_have_p_1_and_a_constant_difference_0_and_a_single_pair_none():
    equal, constant, single = with_p_values([Estimate(3, 0.0, 0.0), Estimate(3, 0.25, 0.0), estimate([0.5])])
    assert (equal.p, constant.p) == (1.0, 0.0)
    assert math.isnan(single.p)
    assert math.isnan(single.p_holm)

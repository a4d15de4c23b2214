"""Intervals cover what they say; k attempts and comparisons against counts by hand and scipy."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from qedmeg.evaluation.statistics import (
    Interval,
    best_at_k,
    bootstrap_interval,
    difference,
    differences,
    mean_interval,
    pass_at_k,
    repeat_interval,
)
from tests.evaluation.drawn_points import EVEN, MIDDLING, STRONG, VERY_WEAK, WEAK, Population

SIMULATIONS = 1000
SKEWED = [7, 7, 6, 1, 1, 0, 0, 0, 0, 0, 0, 0]
KINDS = [(*kind, scale) for kind in (MIDDLING, EVEN, WEAK, STRONG, VERY_WEAK) for scale in ("0/1/6/7", "0..7")]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]} {kind[-1]}")
@pytest.mark.parametrize("problems", [60, 30])
def test_intervals_over_problems_cover_the_truth(kind, problems):
    population = Population(*kind)
    points, _ = population.draw(np.random.default_rng(5), SIMULATIONS, problems, 3)
    found = [mean_interval(values) for values in points.mean(2)]
    covered = np.mean([interval.holds(population.true_mean()) for interval in found])
    assert 0.93 <= covered <= 0.97


@pytest.mark.parametrize("kind", KINDS[:4], ids=lambda kind: f"{kind[0]} {kind[-1]}")
def test_intervals_of_a_repeat_cover_the_problems_own_mean(kind):
    points, truths = Population(*kind).draw(np.random.default_rng(6), SIMULATIONS, 60, 3)
    covered = [repeat_interval(one.tolist()).holds(truth) for one, truth in zip(points, truths, strict=True)]
    assert 0.93 <= np.mean(covered) <= 0.97


def test_the_studentised_bootstrap_agrees_with_the_interval():
    points, _ = Population(*WEAK, "0..7").draw(np.random.default_rng(7), 20, 60, 3)
    for values in points.mean(2):
        one, other = mean_interval(values), bootstrap_interval(values)
        width = one.high - one.low
        assert abs(one.low - other.low) < 0.12 * width
        assert abs(one.high - other.high) < 0.12 * width


def test_the_studentised_bootstrap_covers_the_truth():
    population = Population(*WEAK, "0/1/6/7")
    points, _ = population.draw(np.random.default_rng(8), 400, 60, 3)
    found = [bootstrap_interval(values, resamples=500) for values in points.mean(2)]
    assert 0.93 <= np.mean([interval.holds(population.true_mean()) for interval in found]) <= 0.99


def test_an_interval_without_skewness_is_the_normal_one():
    values = np.linspace(1, 6, 11)
    low, high = stats.norm.interval(0.95, values.mean(), stats.sem(values))
    assert mean_interval(values) == Interval(pytest.approx(low), pytest.approx(high))


def test_the_transformation_is_solved_for():
    # T from the interval's ends, put into Hall's g(T), gives the normal quantiles back.
    mean, error = np.mean(SKEWED), stats.sem(SKEWED)
    a = stats.skew(SKEWED) / math.sqrt(len(SKEWED))
    found = mean_interval(SKEWED, lowest=-math.inf)
    for end, quantile in ((found.low, 0.975), (found.high, 0.025)):
        t = (mean - end) / error
        assert t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6 == pytest.approx(stats.norm.ppf(quantile))
    assert found.high - mean > mean - found.low


def test_intervals_stay_on_the_scale_and_are_mirrored_with_it():
    low, high = mean_interval(SKEWED), mean_interval([7 - value for value in SKEWED])
    nearly_none = [0.0] * 9 + [0.5]  # unbounded it begins below 0
    assert mean_interval(nearly_none, lowest=-math.inf).low < 0
    assert mean_interval(nearly_none).low == 0
    assert (7 - high.high, 7 - high.low) == (pytest.approx(low.low), pytest.approx(low.high))


def test_where_nothing_varies_the_interval_is_the_rule_of_three_and_a_bit():
    # P(none of 30 shows anything) = 0.025 at a share of 0.1157, of which each may be worth 7: Clopper and Pearson.
    share = stats.binomtest(0, 30).proportion_ci().high
    expected = Interval(0.0, pytest.approx(7 * share))
    assert mean_interval([0.0] * 30) == bootstrap_interval([0.0] * 30) == expected
    assert mean_interval([7.0] * 30) == Interval(pytest.approx(7 - 7 * share), 7.0)
    assert repeat_interval([[0.0] * 3] * 10) == expected


def test_few_problems_have_no_interval():
    assert mean_interval([0, 7, 1, 6, 0, 7, 1, 6, 0]) is None
    assert bootstrap_interval([0, 7, 1, 6, 0, 7, 1, 6, 0]) is None
    assert repeat_interval([[0, 7]] * 9) is None
    assert repeat_interval([[0.0], [7.0]] * 10) is None


def test_a_repeat_varies_as_attempts_do():
    # Ten problems with variances 8 (0, 4) or 0 (2, 2), two attempts each: error² = Σ s²/2 / 10² = 5 · 4 / 100.
    points = [[0, 4], [2, 2]] * 5
    # Satterthwaite: (5 · 4)² / (5 · 4² / 1) = 5 degrees of freedom.
    half = stats.t.ppf(0.975, 5) * math.sqrt(0.2)
    assert repeat_interval(points) == Interval(pytest.approx(2 - half), pytest.approx(2 + half))
    # Ten more with one attempt vary as the others on average, by 4 each: (20 + 40) / 20².
    half = stats.t.ppf(0.975, 5) * math.sqrt(0.15)
    assert repeat_interval([*points, *[[2.0]] * 10]) == Interval(pytest.approx(2 - half), pytest.approx(2 + half))


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_k_attempts_are_the_mean_over_all_choices(k):
    points = [0, 6, 1, 7, 6]
    choices = list(itertools.combinations(points, k))
    assert best_at_k(points, k) == pytest.approx(np.mean([max(choice) for choice in choices]))
    assert pass_at_k(points, k, 6) == pytest.approx(np.mean([max(choice) >= 6 for choice in choices]))
    assert best_at_k([3] * 40, k) == pytest.approx(3)


def test_more_attempts_than_there_are():
    for k in (0, 3):
        with pytest.raises(ValueError, match=f"k = {k}: there are 2 attempts"):
            best_at_k([1, 2], k)
        with pytest.raises(ValueError, match=f"k = {k}: there are 2 attempts"):
            pass_at_k([1, 2], k, 6)


def test_a_comparison_is_over_the_problems_in_common():
    first = {"a": [7, 5], "b": [1], "c": [], "d": [3], "e": [2]}
    second = {"b": [0, 1], "a": [2], "c": [7], "d": [3], "f": [7]}
    assert differences(first, second) == [("a", 4.0), ("b", 0.5), ("d", 0.0)]
    found = difference(first, second)
    assert (found.problems, found.mean, found.interval, found.exact) == (3, 1.5, None, True)
    # Of the four signs of 4 and 0.5 two are as far from 0 in sum: + + and − −.
    assert found.p == 0.5
    assert difference({"a": [1]}, {"b": [1]}) is None
    assert difference({"a": [1]}, {"a": [1, 1]}).p == 1.0
    assert difference({"a": [1]}, {"a": [7]}).p == 1.0


def test_exact_sign_flips_against_all_of_them():
    rng = np.random.default_rng(0)
    apart = rng.integers(-7, 8, 12)
    found = difference(*as_runs(apart))
    flips = np.array(list(itertools.product([1, -1], repeat=12))) @ apart
    assert found.exact
    assert found.p == pytest.approx(np.mean(np.abs(flips) >= abs(apart.sum())))


def test_drawn_sign_flips_are_near_the_t_test_and_repeat_with_the_seed():
    apart = np.random.default_rng(1).normal(0.6, 2, 120)
    found = difference(*as_runs(apart))
    assert not found.exact
    assert found.p == pytest.approx(stats.ttest_1samp(apart, 0).pvalue, rel=0.1)
    assert found == difference(*as_runs(apart))
    assert found.p != difference(*as_runs(apart), seed=1).p
    other = difference(*reversed(as_runs(apart)))
    assert (other.mean, other.interval.low) == (pytest.approx(-found.mean), pytest.approx(-found.interval.high))


def as_runs(apart):
    return {str(i): [float(one)] for i, one in enumerate(apart)}, {str(i): [0.0] for i in range(len(apart))}

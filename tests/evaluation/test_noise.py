"""The sources of noise: by hand, and from data whose sources are known."""

import numpy as np
import pytest

from qedmeg.evaluation.noise import noise


def test_balanced_data_by_hand():
    # Two problems of two attempts of two grades. Problem means 2 and 6, attempt means 1 3 5 7, each grade ± 1.
    found = noise([[[0, 2], [2, 4]], [[4, 6], [6, 8]]])
    # Mean squares: grades 8·1/4 = 2, attempts 8·1/2 = 4, problems 8·4/1 = 32.
    assert found.grader.deviation**2 == pytest.approx(2)
    assert found.attempts.deviation**2 == pytest.approx((4 - 2) / 2)
    assert found.problems.deviation**2 == pytest.approx((32 - 4) / 4)
    # Of the mean of 2 problems of 2 attempts of one grade each: 4 attempts, 2 problems.
    assert found.grader.error**2 == pytest.approx(2 / 4)
    assert found.attempts.error**2 == pytest.approx(1 / 4)
    assert found.problems.error**2 == pytest.approx(7 / 2)
    assert found.regraded == 4


def test_unbalanced_data_give_their_sources_back_on_average():
    rng = np.random.default_rng(0)
    found = [noise(drawn(rng)) for _ in range(200)]
    for part, truth in (("problems", 4.0), ("attempts", 1.0), ("grader", 0.25)):
        variances = [getattr(one, part).deviation ** 2 for one in found]
        assert np.mean(variances) == pytest.approx(truth, abs=4 * np.std(variances) / 200**0.5)


def test_the_errors_are_those_of_the_means_of_many_runs():
    rng = np.random.default_rng(1)
    benchmarks = [drawn(rng, attempts=(3, 4)) for _ in range(400)]
    means = [np.mean([np.mean([one[0] for one in problem]) for problem in each]) for each in benchmarks]
    parts = [noise(each) for each in benchmarks]
    expected = np.mean(
        [sum(getattr(one, part).error ** 2 for part in ("problems", "attempts", "grader")) for one in parts]
    )
    assert np.var(means) == pytest.approx(expected, rel=0.25)


def drawn(rng, attempts=(1, 5)):
    """60 problems; standard deviations 2, 1 and 0.5; up to three grades an attempt."""
    return [
        [
            (of_attempt + 0.5 * rng.normal(size=rng.integers(1, 4))).tolist()
            for of_attempt in 3 + 2 * rng.normal() + rng.normal(size=rng.integers(*attempts))
        ]
        for _ in range(60)
    ]


def test_what_grades_do_not_tell_is_none():
    assert noise([]).problems is None
    one = noise([[[3.0]]])
    assert (one.problems, one.attempts, one.grader, one.regraded) == (None, None, None, 0)
    once = noise([[[1.0], [3.0]], [[5.0], [7.0]]])
    assert once.grader is None
    assert once.attempts.deviation**2 == pytest.approx(2)  # the grader's within it
    single = noise([[[1.0]], [[5.0]], [[], [3.0]]])
    assert (single.attempts, single.grader) == (None, None)
    assert single.problems.deviation**2 == pytest.approx(4)


def test_an_estimate_below_zero_is_zero():
    found = noise([[[0, 7], [7, 0]], [[0, 7], [7, 0]]])
    assert (found.attempts.deviation, found.problems.deviation) == (0, 0)
    assert found.grader.deviation**2 == pytest.approx(24.5)

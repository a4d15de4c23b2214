"""How sure the numbers of an evaluation are: intervals, k attempts at a problem, and two models on the same problems.

Pure functions over plain numbers. A problem's score is the mean of the points of its graded attempts, and a benchmark's
the mean of its problems' scores, each counted once. What was not graded is in none of them.

Shape suffixes: N problems, R resamples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from qedmeg.grading.rubric import RUBRIC_POINTS

CONFIDENCE = 0.95
_UPPER = (1 + CONFIDENCE) / 2
_NORMAL = float(stats.norm.ppf(_UPPER))
FEWEST_PROBLEMS = 10
"""No interval is given of fewer: it would cover less than it says."""
RESAMPLES = 10_000
SIGN_FLIPS = 2**16
"""All of them up to 16 problems that differ, so many drawn ones above."""

Points = Sequence[Sequence[float]]
"""By problem, the points of its graded attempts."""
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, both included."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


def mean_interval(values: Sequence[float], lowest: float = 0.0, highest: float = RUBRIC_POINTS) -> Interval | None:
    """Where the mean over all problems of this kind lies, from the values of those in the benchmark; each value is
    from `lowest` to `highest`. None for fewer than 10.

    The normal interval of the mean after Hall's transformation, which takes out the skewness (P. Hall, On the removal
    of skewness by transformation, JRSS B 54, 1992: with T the studentised mean and a the skewness over √N,
    g = T + a T²/3 + a² T³/27 + a/6, solved for T). Scores of weak and of strong models are skewed: there, of 30 and 60
    problems with three attempts, Student's t and percentiles of resampled means cover the truth in 89 to 95 %, this in
    94.6 to 97.2 % (tests/benchmarks/interval_coverage.py). Resampling attempts inside resampled problems counts their
    variance twice, since it is in the problems' values already: up to 98 %, and 91 % where skewness outweighs that. The
    studentised bootstrap covers as this does, and is up to twice as wide below 30 problems. Of 10 problems that are
    hardly ever solved this covers 88 % at worst.

    Where all values are the same there is no variance to go by: then it goes as far as a share of problems with other
    values would move the mean that has a chance of 2.5 % not to show in so many.
    """
    values_N = np.asarray(values, dtype=np.float64)
    count = len(values_N)
    if count < FEWEST_PROBLEMS:
        return None
    mean, deviation = values_N.mean(), values_N.std(ddof=1)
    if np.ptp(values_N) < 1e-12:
        return _of_a_constant(mean, count, lowest, highest)
    error = deviation / math.sqrt(count)
    a = float(stats.skew(values_N)) / math.sqrt(count)
    low, high = mean - error * _without_skewness(_NORMAL, a), mean - error * _without_skewness(-_NORMAL, a)
    return _clipped(low, high, lowest, highest)


def bootstrap_interval(
    values: Sequence[float],
    lowest: float = 0.0,
    highest: float = RUBRIC_POINTS,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """The same as `mean_interval` by another way, for comparison: the studentised bootstrap over problems (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, section 12.5). It assumes no distribution."""
    values_N = np.asarray(values, dtype=np.float64)
    count = len(values_N)
    if count < FEWEST_PROBLEMS:
        return None
    mean = values_N.mean()
    if np.ptp(values_N) < 1e-12:
        return _of_a_constant(mean, count, lowest, highest)
    weights_RN = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples) / count
    apart_R = weights_RN @ values_N - mean
    variances_R = weights_RN @ (values_N - mean) ** 2 - apart_R**2
    errors_R = np.sqrt(variances_R.clip(min=1e-24) / (count - 1))
    below, above = np.quantile(apart_R / errors_R, [1 - _UPPER, _UPPER])
    error = values_N.std(ddof=1) / math.sqrt(count)
    return _clipped(mean - above * error, mean - below * error, lowest, highest)


def repeat_interval(points: Points) -> Interval | None:
    """Where the mean over these very problems lies if each were attempted for ever: the noise of attempts and of
    their grading alone. None for fewer than 10 problems, or where no problem was attempted twice.

    Student's t with the degrees of freedom of Satterthwaite (An approximate distribution of estimates of variance
    components, Biometrics 2, 1946). A problem with one attempt is taken to vary as the others do on average.
    """
    attempts = [np.asarray(one, dtype=np.float64) for one in points if len(one)]
    several = [one for one in attempts if len(one) > 1]
    if len(attempts) < FEWEST_PROBLEMS or not several:
        return None
    mean = float(np.mean([one.mean() for one in attempts]))
    if all(np.ptp(one) < 1e-12 for one in several):
        return _of_a_constant(mean, sum(map(len, several)), 0.0, RUBRIC_POINTS)
    variances = np.array([one.var(ddof=1) / len(one) for one in several])
    freedoms = np.array([len(one) - 1 for one in several])
    typical = float(np.mean([one.var(ddof=1) for one in several]))
    whole = variances.sum() + typical * (len(attempts) - len(several))
    freedom = max(1.0, variances.sum() ** 2 / float((variances**2 / freedoms).sum()))
    half = float(stats.t.ppf(_UPPER, freedom)) * math.sqrt(whole) / len(attempts)
    return _clipped(mean - half, mean + half, 0.0, RUBRIC_POINTS)


def _without_skewness(g: float, a: float) -> float:
    """Hall's transformation, solved for T."""
    return g if abs(a) < 1e-9 else 3 / a * (float(np.cbrt(1 + a * (g - a / 6))) - 1)


def _of_a_constant(value: float, count: int, lowest: float, highest: float) -> Interval:
    """All of `count` values are `value`. With another one in a share q of cases that has a chance of (1 − q)^count:
    q is where this falls to half of what may go wrong (Clopper and Pearson's bound of a share, for none of count)."""
    share = 1 - (1 - _UPPER) ** (1 / count)
    return Interval(float(value - share * (value - lowest)), float(value + share * (highest - value)))


def _clipped(low: float, high: float, lowest: float, highest: float) -> Interval:
    return Interval(float(max(low, lowest)), float(min(high, highest)))


# --- k attempts at a problem ----------------------------------------------------------------------------------------


def best_at_k(points: Sequence[float], k: int) -> float:
    """The expected points of the best of k attempts, from n of them: the mean of the maximum over all choices of k,
    Σ_i x_(i) C(i−1, k−1) / C(n, k) with x_(1) ≤ ... ≤ x_(n). Raises ValueError for k above n or below 1."""
    count = _enough(len(points), k)
    chosen = sum(value * math.comb(i, k - 1) for i, value in enumerate(sorted(points)))
    return chosen / math.comb(count, k)


def pass_at_k(points: Sequence[float], k: int, threshold: float) -> float:
    """The chance that at least one of k attempts has `threshold` points or more, unbiased: 1 − C(n−c, k) / C(n, k) with
    c passes of n (Chen et al., arXiv 2107.03374, equation 1). Raises ValueError for k above n or below 1."""
    count = _enough(len(points), k)
    passed = sum(value >= threshold for value in points)
    return 1 - math.comb(count - passed, k) / math.comb(count, k)


def _enough(count: int, k: int) -> int:
    if not 1 <= k <= count:
        raise ValueError(f"k = {k}: there are {count} attempts")
    return count


# --- two models on the same problems --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """The first model less the second, in points, over the problems that both have a graded attempt at."""

    problems: int
    mean: float
    interval: Interval | None
    """Over problems of this kind."""
    bootstrap: Interval | None
    p: float
    """Of a difference at least as large, either way, if it made none which model an answer is of."""
    exact: bool
    """Whether `p` is of all sign flips, or of as many as `SIGN_FLIPS` drawn ones."""


def difference(
    first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]], *, seed: int = 0
) -> Difference | None:
    """Compare two models' points by problem; None where they have no problem in common.

    The p-value is of the sign-flip permutation test over the differences of problems' means. Problems without a
    difference tell it nothing and are left out of the flips.
    """
    apart = [apart for _, apart in differences(first, second)]
    if not apart:
        return None
    telling_N = np.array([one for one in apart if abs(one) > 1e-12])
    exact = 2 ** len(telling_N) <= SIGN_FLIPS
    p = _sign_flip(telling_N, exact, seed) if len(telling_N) > 1 else 1.0  # one problem: both signs are as far
    bounds = -float(RUBRIC_POINTS), float(RUBRIC_POINTS)
    return Difference(
        problems=len(apart),
        mean=float(np.mean(apart)),
        interval=mean_interval(apart, *bounds),
        bootstrap=bootstrap_interval(apart, *bounds, seed=seed),
        p=p,
        exact=exact,
    )


def differences(first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]]) -> list[tuple[str, float]]:
    """By problem that both have points of, the first's mean less the second's; in the first's order."""
    common = [name for name in first if first[name] and second.get(name)]
    return [(name, float(np.mean(first[name]) - np.mean(second[name]))) for name in common]


def _sign_flip(apart_N: Vector, exact: bool, seed: int) -> float:
    found = stats.permutation_test(
        (apart_N,),
        lambda signed, axis: np.mean(signed, axis=axis),
        permutation_type="samples",
        n_resamples=np.inf if exact else SIGN_FLIPS,
        batch=2**12,
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)

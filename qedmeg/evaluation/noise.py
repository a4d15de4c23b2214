"""Where a benchmark's noise comes from: its problems, the attempts at them, and the grader."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Part:
    """One source of noise, in points of 7."""

    deviation: float
    """Standard deviation of what it adds to one grade."""
    error: float
    """Standard error of the benchmark's mean that comes from it."""


@dataclass(frozen=True)
class Noise:
    """The sources of noise. None is what the grades do not tell: it is within the next part that is told."""

    problems: Part | None
    """Of problems of this kind; the problems of a benchmark that is run again are the same, and do not add it."""
    attempts: Part | None
    """From attempt to attempt at a problem, as if graded without noise. Without regrades the grader's is in it."""
    grader: Part | None
    """From grade to grade of the same attempt."""
    regraded: int
    """Attempts with more than one grade."""


def noise(grades: Sequence[Sequence[Sequence[float]]]) -> Noise:
    """Take the noise apart: `grades` holds, by problem and attempt, the points that the attempt was given each time.

    The usual estimators of nested random effects for unbalanced data: sums of squares between problems, between
    attempts inside problems and between grades inside attempts are set equal to what is expected of them (Searle,
    Casella and McCulloch, Variance Components, 1992, chapter 5, there "Henderson's Method I"). An estimate below
    zero, which they allow, is taken as zero. The errors are those of the mean over problems of the mean over attempts
    of one grade each.
    """
    attempts = [[np.asarray(one, dtype=np.float64) for one in problem if len(one)] for problem in grades]
    attempts = [problem for problem in attempts if problem]
    means = [np.array([one.mean() for one in problem]) for problem in attempts]
    sizes = [np.array([len(one) for one in problem], dtype=np.float64) for problem in attempts]
    problem_sizes = np.array([size.sum() for size in sizes])
    problem_means = np.array([mean @ size / size.sum() for mean, size in zip(means, sizes, strict=True)])
    count, many = float(problem_sizes.sum()), len(attempts)
    free_grader = int(count) - sum(map(len, attempts))
    free_attempts, free_problems = sum(map(len, attempts)) - many, many - 1

    grader = attempt = problem = 0.0
    if free_grader:
        grader = sum(float(((one - one.mean()) ** 2).sum()) for each in attempts for one in each) / free_grader
    # Squares of the attempts' sizes over their problem's: the share of an attempt's effect in its problem's mean.
    inside = sum(float((size**2).sum() / size.sum()) for size in sizes)
    if free_attempts:
        squares = sum(
            float(size @ (mean - whole) ** 2) for mean, size, whole in zip(means, sizes, problem_means, strict=True)
        )
        attempt = max(0.0, (squares / free_attempts - grader) / ((count - inside) / free_attempts))
    if free_problems > 0:
        squares = float(problem_sizes @ (problem_means - problem_sizes @ problem_means / count) ** 2)
        of_attempts = (inside - sum(float((size**2).sum()) for size in sizes) / count) / free_problems
        of_problems = (count - float((problem_sizes**2).sum()) / count) / free_problems
        problem = max(0.0, (squares / free_problems - grader - of_attempts * attempt) / of_problems)

    # The variance of the mean of a problem's attempts is a part of that of one attempt; of the mean over problems so:
    attempts_share = sum(1 / len(one) for one in attempts) / many**2 if many else 0.0
    return Noise(
        problems=_part(problem, 1 / many) if free_problems > 0 else None,
        attempts=_part(attempt, attempts_share) if free_attempts else None,
        grader=_part(grader, attempts_share) if free_grader else None,
        regraded=sum(len(one) > 1 for each in attempts for one in each),
    )


def _part(variance: float, share: float) -> Part:
    return Part(math.sqrt(variance), math.sqrt(variance * share))

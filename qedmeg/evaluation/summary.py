"""A run in numbers: as a whole, by level and by category."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import fmean, mean, stdev

from qedmeg.evaluation.noise import Noise, noise
from qedmeg.evaluation.scores import ScoredProblem, ScoredRun
from qedmeg.evaluation.statistics import (
    Interval,
    best_at_k,
    bootstrap_interval,
    mean_interval,
    pass_at_k,
    repeat_interval,
)
from qedmeg.grading.rubric import RUBRIC_POINTS

PASS_POINTS = 6.0
"""A proof of 6 of 7 points or more is a pass; so is a right answer."""


@dataclass(frozen=True)
class AtK:
    """What k attempts at each problem give, over the problems that have so many graded ones."""

    k: int
    problems: int
    best: float
    """Expected points of the best of them, of 7."""
    best_interval: Interval | None
    passed: float
    """Chance that at least one is a pass."""
    passed_interval: Interval | None


@dataclass(frozen=True)
class Cost:
    """What attempts took, graded or not. None: there are none to tell it by."""

    tokens_per_problem: float | None
    """Generated for one attempt at a problem: the mean over problems of the mean over their attempts."""
    money_per_problem: float | None
    """For the model, in the same way."""
    grading_per_problem: float | None
    """For the grades, in the same way."""
    tokens_per_point: float | None
    """All tokens of graded attempts over all their points."""
    money_per_point: float | None
    """The same for the model's money."""


@dataclass(frozen=True)
class Group:
    """The problems of a level or a category, or all of a run's."""

    name: str
    problems: int
    """With a graded attempt; the mean is over these."""
    ungraded: tuple[str, ...]
    """Problems without one, by id: they are in no mean."""
    graded: int
    """Attempts."""
    failed: dict[str, int]
    """Attempts whose grade failed, by kind: they are in no mean."""
    missing: int
    """Attempts that were asked for, and are not there or not given to the grader yet."""
    mean: float | None
    """Points of 7."""
    percent: float | None
    """The mean as a share of 7, in percent."""
    interval: Interval | None
    """Of the mean, over problems of this kind."""
    repeat_interval: Interval | None
    """Of the mean, if the same problems were attempted and graded again."""
    at_k: tuple[AtK, ...]
    cost: Cost


@dataclass(frozen=True)
class Summary:
    """A run in numbers."""

    run: str
    benchmark: str
    model: str
    scaffold: str
    grader: str | None
    other_graders: tuple[str, ...]
    samples: int
    """Attempts at each problem that were asked for."""
    pass_points: float
    whole: Group
    levels: tuple[Group, ...]
    categories: tuple[Group, ...]
    bootstrap: Interval | None
    """The whole's interval by the studentised bootstrap over problems, for comparison."""
    sample_percents: tuple[float, ...]
    """By number of the attempt, the mean over problems in percent, as if each were a run of its own."""
    sample_deviation: float | None
    """Sample standard deviation of these: what papers put in brackets. It says nothing of the choice of problems."""
    noise: Noise
    ended: dict[str, int]
    """Attempts by how they ended."""


def summarize(scored: ScoredRun, pass_points: float = PASS_POINTS) -> Summary:
    """All numbers of a run."""
    problems, asked = scored.problems, scored.run.samples
    by_number: dict[int, list[float]] = defaultdict(list)
    for problem in problems:
        for sample in problem.samples:
            if sample.points is not None:
                by_number[sample.number].append(sample.points)
    percents = tuple(fmean(by_number[number]) / RUBRIC_POINTS * 100 for number in sorted(by_number))
    return Summary(
        run=scored.run.name,
        benchmark=scored.run.benchmark,
        model=scored.run.model,
        scaffold=scored.run.scaffold,
        grader=scored.grader,
        other_graders=scored.others,
        samples=asked,
        pass_points=pass_points,
        whole=_group("all", problems, asked, pass_points),
        levels=tuple(_group(*one, asked, pass_points) for one in grouped(problems, "level")),
        categories=tuple(_group(*one, asked, pass_points) for one in grouped(problems, "category")),
        bootstrap=bootstrap_interval([fmean(problem.points) for problem in problems if problem.points]),
        sample_percents=percents,
        sample_deviation=stdev(percents) if len(percents) > 1 else None,
        noise=noise([[sample.grades for sample in problem.samples] for problem in problems]),
        ended=dict(Counter(sample.ended for problem in problems for sample in problem.samples)),
    )


def grouped(problems: Sequence[ScoredProblem], field: str) -> list[tuple[str, list[ScoredProblem]]]:
    """The problems by `level` or `category`, in the order in which these come first; none where all have the same."""
    groups: dict[str, list[ScoredProblem]] = {}
    for problem in problems:
        groups.setdefault(getattr(problem, field), []).append(problem)
    return [(name or "-", group) for name, group in groups.items()] if len(groups) > 1 else []


def _group(name: str, problems: Sequence[ScoredProblem], asked: int, pass_points: float) -> Group:
    points = [problem.points for problem in problems if problem.points]
    samples = [sample for problem in problems for sample in problem.samples]
    failed = Counter(sample.failed for sample in samples if sample.failed is not None)
    graded = sum(map(len, points))
    values = [fmean(one) for one in points]
    return Group(
        name=name,
        problems=len(points),
        ungraded=tuple(problem.id for problem in problems if not problem.points),
        graded=graded,
        failed=dict(failed.most_common()),
        missing=asked * len(problems) - graded - failed.total(),
        mean=fmean(values) if values else None,
        percent=fmean(values) / RUBRIC_POINTS * 100 if values else None,
        interval=mean_interval(values),
        repeat_interval=repeat_interval(points),
        at_k=tuple(_at_k(points, k, pass_points) for k in _ks(max(map(len, points), default=0))),
        cost=_cost(problems),
    )


def _ks(most: int) -> list[int]:
    """1, 2, 4, 8, ... and the most that any problem has."""
    return sorted({2**n for n in range(most.bit_length())} | ({most} if most else set()))


def _at_k(points: Sequence[Sequence[float]], k: int, pass_points: float) -> AtK:
    enough = [one for one in points if len(one) >= k]
    best = [best_at_k(one, k) for one in enough]
    passed = [pass_at_k(one, k, pass_points) for one in enough]
    return AtK(k, len(enough), fmean(best), mean_interval(best), fmean(passed), mean_interval(passed, 0.0, 1.0))


def _cost(problems: Sequence[ScoredProblem]) -> Cost:
    tried = [problem.samples for problem in problems if problem.samples]
    graded = [sample for samples in tried for sample in samples if sample.points is not None]
    points = sum(sample.points or 0.0 for sample in graded)
    if not tried:
        return Cost(None, None, None, None, None)
    money = sum((sample.money for sample in graded), Decimal(0))
    return Cost(
        tokens_per_problem=fmean(fmean(sample.tokens for sample in samples) for samples in tried),
        money_per_problem=float(mean(mean(sample.money for sample in samples) for samples in tried)),
        grading_per_problem=float(mean(mean(sample.grading_money for sample in samples) for samples in tried)),
        tokens_per_point=sum(sample.tokens for sample in graded) / points if points else None,
        money_per_point=float(money) / points if points else None,
    )

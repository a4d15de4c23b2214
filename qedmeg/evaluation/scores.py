"""A run's grades and costs as plain data: what statistics are made of, without the texts."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from qedmeg.errors import UserError, near_miss
from qedmeg.evaluation.results import EvaluationRun, Results, StoredGrade
from qedmeg.grading.grade import Graded
from qedmeg.grading.rubric import RUBRIC_POINTS


@dataclass(frozen=True)
class Sample:
    """One attempt, as one grader saw it. Points are of 7."""

    number: int
    ended: str
    tokens: int
    money: Decimal
    """Of the model's requests."""
    grading_money: Decimal
    """Of all its grades by this grader."""
    points: float | None
    """The grade that counts; None where there is none, and then `failed` says why if it was tried."""
    failed: str | None
    """The kind of failure."""
    grades: tuple[float, ...]
    """The points of all of its grades, with those that were given to see the grader's noise."""


@dataclass(frozen=True)
class ScoredProblem:
    """A problem with its attempts, by number."""

    id: str
    statement: str
    level: str
    category: str
    samples: tuple[Sample, ...]

    @property
    def points(self) -> tuple[float, ...]:
        """Of the graded attempts."""
        return tuple(sample.points for sample in self.samples if sample.points is not None)


@dataclass(frozen=True)
class ScoredRun:
    """A run as one grader saw it."""

    run: EvaluationRun
    grader: str | None
    """None: nothing is graded yet."""
    others: tuple[str, ...]
    """Graders that graded the run too."""
    problems: tuple[ScoredProblem, ...]

    def points(self) -> dict[str, tuple[float, ...]]:
        """By problem, those of its graded attempts."""
        return {problem.id: problem.points for problem in self.problems}


def open_results(path: Path) -> Results:
    """A file of results that is there already.

    Raises:
        UserError: it is not there, or is none.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file of results; give one that an evaluation wrote")
    return Results(path)


def find_run(results: Results, name: str) -> EvaluationRun:
    """The run of this name. Raises `UserError` where there is none."""
    runs = {run.name: run for run in results.runs()}
    if name not in runs:
        known = f"; its runs: {', '.join(runs)}" if runs else "; it has no runs"
        raise UserError(f"{results.path}: no run '{name}'{near_miss(name, runs)}{known}")
    return runs[name]


def graders(results: Results, run: str) -> list[str]:
    """Who graded a run, whoever gave most grades that count first."""
    stored = results.grades(run)
    counts = Counter(one.grader for one in stored if one.regrade == 0 and isinstance(one.grade, Graded))
    return sorted({one.grader for one in stored}, key=lambda grader: (-counts[grader], grader))


def read_run(results: Results, run: EvaluationRun, grader: str | None = None) -> ScoredRun:
    """A run as `grader` saw it; None: whoever gave it most grades.

    Raises:
        UserError: this grader gave it none.
    """
    known = graders(results, run.name)
    if grader is None:
        grader = known[0] if known else None
    elif grader not in known:
        had = f"; it has those of {', '.join(known)}" if known else "; it has none"
        raise UserError(
            f"{results.path}: the run '{run.name}' has no grades by '{grader}'{near_miss(grader, known)}{had}"
        )
    grades: dict[tuple[str, int], list[StoredGrade]] = defaultdict(list)
    for one in results.grades(run.name):
        if one.grader == grader:
            grades[one.problem, one.sample].append(one)
    samples: dict[str, list[Sample]] = defaultdict(list)
    for attempt in results.attempts(run.name):
        given = grades[attempt.problem, attempt.sample]
        counting = next((one.grade for one in given if one.regrade == 0), None)
        samples[attempt.problem].append(
            Sample(
                number=attempt.sample,
                ended=attempt.ended,
                tokens=attempt.tokens,
                money=attempt.money,
                grading_money=sum((one.grade.cost.money for one in given), Decimal(0)),
                points=_points(counting) if isinstance(counting, Graded) else None,
                failed=None if counting is None or isinstance(counting, Graded) else counting.kind,
                grades=tuple(_points(one.grade) for one in given if isinstance(one.grade, Graded)),
            )
        )
    return ScoredRun(
        run=run,
        grader=grader,
        others=tuple(other for other in known if other != grader),
        problems=tuple(
            ScoredProblem(one.id, one.statement, one.level, one.category, tuple(samples[one.id]))
            for one in results.problems(run.name)
        ),
    )


def _points(grade: Graded) -> float:
    return grade.points * RUBRIC_POINTS / grade.of

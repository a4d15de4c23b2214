"""A file of results with made-up runs."""

import asyncio
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path

from qedmeg.evaluation.problem import BenchmarkProblem
from qedmeg.evaluation.results import Attempt, EvaluationRun, Results, StoredGrade
from qedmeg.grading.grade import Cost, Failed, Grade, Graded
from qedmeg.grading.grader import ProofProblem

Grades = dict[tuple[int, int], list[Grade | None]]
"""By problem and sample: the grade that counts, and regrades; None for one that is not there."""


def problems(count: int, *, statement: str = "Prove it.") -> list[BenchmarkProblem]:
    """The first half is basic; categories take turns."""
    return [
        BenchmarkProblem(
            ProofProblem(f"p{n}", f"{statement} {n}", "7 for a proof."),
            "basic" if n < count / 2 else "advanced",
            ("Algebra", "Geometry")[n % 2],
        )
        for n in range(count)
    ]


def graded(points: float, of: int = 7) -> Graded:
    return Graded(points, of, (), "judge", Cost(1, 10, 10, Decimal("0.01")))


def failed(kind: str = "timeout") -> Failed:
    return Failed(kind, "no answer", Cost(1, 10, 0, Decimal("0.01")))


def by_rule(points: Callable[[int, int], float], count: int, samples: int) -> Grades:
    """A grade for every attempt."""
    return {(n, sample): [graded(points(n, sample))] for n in range(count) for sample in range(samples)}


def add_run(
    path: Path,
    run: EvaluationRun,
    asked: Sequence[BenchmarkProblem],
    graders: dict[str, Grades],
    *,
    tokens: int = 100,
    attempted: Callable[[int, int], bool] = lambda problem, sample: True,
) -> None:
    """Put a run down. Attempts take `tokens` and one more for each sample before, and cost 0.5."""
    results = Results(path)
    results.begin(run, list(asked))

    async def write() -> None:
        attempts, grades = [], []
        for n, one in enumerate(asked):
            for sample in filter(lambda sample, n=n: attempted(n, sample), range(run.samples)):
                ended = "done" if sample else "length"
                costs = 1, 10, tokens + sample, Decimal("0.5"), 1.0
                attempts.append(Attempt(one.id, sample, "x", ended, tokens + sample, *costs))
        for grader, by_attempt in graders.items():
            for (n, sample), given in by_attempt.items():
                kept = [(m, grade) for m, grade in enumerate(given) if grade is not None]
                grades += [StoredGrade(asked[n].id, sample, grader, m, grade) for m, grade in kept]
        await asyncio.gather(*(results.add_attempt(run.name, one) for one in attempts))
        await asyncio.gather(*(results.add_grade(run.name, one) for one in grades))

    asyncio.run(write())
    results.close()


def run_of(
    name: str, benchmark: str = "imo-proofbench", model: str = "m", scaffold: str = "single", samples: int = 2
) -> EvaluationRun:
    return EvaluationRun(name, benchmark, model, scaffold, samples, {})

"""Made-up results of the demo's models."""

import asyncio
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from qedmeg.demo.scores import RESULTS, rounds_run
from qedmeg.evaluation.problem import BenchmarkProblem
from qedmeg.evaluation.results import Attempt, EvaluationRun, Results, StoredGrade
from qedmeg.grading.grade import Cost, Graded, ItemGrade
from qedmeg.grading.grader import ProofProblem

PROBLEMS = [BenchmarkProblem(ProofProblem(f"p{n}", f"Prove it {n}.", "7"), "1", "parity") for n in range(6)]


def add_model(folder: Path, name: str, points: int, proof: str = "So it is.") -> None:
    """A model that earned so many points with every sampled proof, and one more with each greedy one."""
    _add(folder, name, points, proof)
    _add(folder, f"{name} greedy", min(points + 1, 7), proof)


def add_rounds(folder: Path, name: str, points: Sequence[int]) -> None:
    """What it earned in each round of the reasoning cache."""
    for number, earned in enumerate(points[:-1], 1):
        _add(folder, f"{rounds_run(name)} round {number}", earned, "So it is.")
    _add(folder, rounds_run(name), points[-1], "So it is.")


def _add(folder: Path, run: str, points: int, proof: str) -> None:
    results = Results(folder / RESULTS)
    results.begin(EvaluationRun(run, "embedded", "m", "single", 1, {}), PROBLEMS)
    items = tuple(
        ItemGrade(name, of * points / 7, of, 'not shown "<b onclick=x>')
        for name, of in (("step", 6), ("conclusion", 1))
    )

    async def write() -> None:
        for one in PROBLEMS:
            costs = 1, 10, 20, Decimal(0), 1.0
            await results.add_attempt(run, Attempt(one.id, 0, proof, "done", 20, *costs))
            await results.add_grade(
                run, StoredGrade(one.id, 0, "symbolic", 0, Graded(points, 7, items, "symbolic", Cost()))
            )

    asyncio.run(write())
    results.close()

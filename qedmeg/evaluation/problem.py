"""A problem of a benchmark, and what its answers are graded by."""

from dataclasses import dataclass

from qedmeg.grading.grader import AnyProblem


@dataclass(frozen=True)
class BenchmarkProblem:
    """A problem, and what tables are grouped by."""

    problem: AnyProblem
    level: str
    """Such as `IMO-easy`; empty where the benchmark has none."""
    category: str
    """Such as `Algebra`; of embedded problems the family."""

    @property
    def id(self) -> str:
        return self.problem.id

    @property
    def statement(self) -> str:
        return self.problem.statement

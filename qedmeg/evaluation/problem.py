"""A problem of a benchmark, and what its answers are graded by."""

from dataclasses import dataclass

from qedmeg.data.problems import Problem
from qedmeg.grading.grader import ProofProblem


@dataclass(frozen=True)
class AnswerProblem:
    """A problem whose answer alone counts: right or wrong."""

    id: str
    statement: str
    answer: str
    """The right one, in LaTeX or plain text."""


@dataclass(frozen=True)
class BenchmarkProblem:
    """A problem, and what tables are grouped by."""

    problem: Problem | ProofProblem | AnswerProblem
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

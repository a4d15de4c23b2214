"""A problem of a benchmark, and what its answers are graded by."""

from dataclasses import dataclass

from qedmeg.grading.grader import AnswerProblem, AnyProblem


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

    @property
    def question(self) -> str:
        """What a model is asked: of a problem whose answer alone counts, with the form that it is read in."""
        if isinstance(self.problem, AnswerProblem):
            return f"{self.statement.rstrip()}\n\nEnd with the final answer, and nothing else, in \\boxed{{}}."
        return self.statement

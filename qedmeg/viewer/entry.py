"""What the viewer shows, whichever file it is from: runs, their problems, and attempts with what they earned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Literal, Protocol

from qedmeg.data.problems import Problem, reference_proof
from qedmeg.grading.grade import Grade
from qedmeg.grading.grader import AnswerProblem, ProofProblem
from qedmeg.grading.rubric import RUBRIC_POINTS, Rubric
from qedmeg.reasoning.call import Call, Reply

State = Literal["graded", "failed", "ungraded"]


@dataclass(frozen=True)
class Run:
    """A model on a benchmark, or the rollouts of a training run."""

    key: str
    """Its name, with its file where another run has the same: what addresses of pages know it by."""
    name: str
    model: str
    scaffold: str
    benchmark: str
    graders: tuple[str, ...]
    """The first is the one whose grades count where none is chosen."""


@dataclass(frozen=True)
class ShownProblem:
    """A problem of a benchmark. Problems of different runs are equal where benchmark and id are."""

    benchmark: str
    id: str
    problem: Problem | ProofProblem | AnswerProblem | None = field(compare=False)
    """None: only its id is known."""
    level: str = field(compare=False)
    category: str = field(compare=False)

    @property
    def statement(self) -> str:
        return "" if self.problem is None else self.problem.statement

    @property
    def reference(self) -> str | None:
        """A solution to compare with, or the right answer."""
        if isinstance(self.problem, Problem):
            return reference_proof(self.problem)
        if isinstance(self.problem, AnswerProblem):
            return self.problem.answer
        return None if self.problem is None else self.problem.reference

    @property
    def rubric(self) -> Rubric | str | None:
        if self.problem is None or isinstance(self.problem, AnswerProblem):
            return None
        return self.problem.rubric


@dataclass(frozen=True, slots=True)
class Score:
    """What a grader gave: points of 7, or None where it failed."""

    grader: str
    points: float | None
    failure: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One attempt without its text: all that lists and filters need. Less than 1 kB."""

    run: Run
    problem: ShownProblem
    sample: int
    """Of a training run, the rollout's id."""
    ended: str
    tokens: int
    money: float
    scores: tuple[Score, ...]

    def score(self, grader: str = "") -> Score | None:
        """The score by this grader, or by the one that counts for the run. None: not graded."""
        asked = grader or next(iter(self.run.graders), "")
        return next((score for score in self.scores if score.grader == asked), None)

    def state(self, grader: str = "") -> State:
        score = self.score(grader)
        return "ungraded" if score is None else "failed" if score.points is None else "graded"


def points_of_7(points: float, of: int) -> float:
    """Points on the scale of 7."""
    return points * RUBRIC_POINTS / of if of else 0.0


@dataclass(frozen=True)
class GivenGrade:
    """A grade of an attempt, with who gave it."""

    grader: str
    regrade: int
    grade: Grade


@dataclass(frozen=True)
class Reading:
    """One attempt in full."""

    text: str | None
    """What is graded. None: the answer holds no proof."""
    grades: tuple[GivenGrade, ...]
    facts: tuple[tuple[str, str], ...]
    """Name and value of what else is known: seconds, weight versions, step."""
    money: Decimal
    calls: int


@dataclass(frozen=True)
class CallBrief:
    """A call without its texts."""

    id: int
    path: str
    role: str
    model: str
    finish_reason: str
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Loaded:
    """What a source holds now."""

    runs: tuple[Run, ...]
    problems: Sequence[ShownProblem]
    """Of each benchmark in its order."""
    entries: Sequence[Entry]
    notes: tuple[str, ...] = ()
    """What could not be read, in a sentence each."""


class Source(Protocol):
    """A file that is shown. Used from one thread; written by others meanwhile.

    All methods raise `UserError` where the file cannot be read.
    """

    @property
    def path(self) -> Path:
        """The file."""

    def changed(self) -> bool:
        """Whether somebody wrote to it since `load`."""

    def load(self, keys: Mapping[str, str]) -> Loaded:
        """Everything but texts. `keys`: the `Run.key` of each run by name, where it is not the name."""

    def names(self) -> list[str]:
        """The names of its runs."""

    def read(self, entry: Entry) -> Reading:
        """An attempt in full."""

    def calls(self, entry: Entry) -> list[CallBrief]:
        """The calls of an attempt, in the order in which they were answered."""

    def call(self, entry: Entry, id: int) -> tuple[Call, Reply] | None:
        """A call of an attempt in full; None where there is none of this number."""

    def close(self) -> None:
        """Let go of the file."""

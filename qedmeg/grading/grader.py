"""What a grader is: given a problem and a proof, it answers with a grade. And the symbolic one in this form."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from qedmeg.data.problems import Problem
from qedmeg.errors import UserError
from qedmeg.grading import symbolic
from qedmeg.grading.grade import Grade
from qedmeg.grading.rubric import Rubric


@dataclass(frozen=True)
class ProofProblem:
    """A problem that a judge grades proofs of. Its rubric is worth 7 points, in items or in words."""

    id: str
    statement: str
    rubric: Rubric | str
    reference: str | None = None
    """A solution to compare with."""


@dataclass(frozen=True)
class AnswerProblem:
    """A problem whose final answer alone counts: right or wrong."""

    id: str
    statement: str
    answer: str
    """The right one, in LaTeX or plain text."""


AnyProblem = Problem | ProofProblem | AnswerProblem


class Grader(Protocol):
    """Grades proofs or final answers, many at a time. One grader belongs to one event loop."""

    @property
    def version(self) -> str:
        """Changes with whatever may change a grade."""

    async def grade(self, problem: AnyProblem, proof: str, again: int = 0) -> Grade:
        """The grade of a proof, or of a response with a final answer, which may be any text.

        `again` asks for another opinion on the same text, where the grader has more than one: 0 is the first, and each
        number stands for one that stays the same. Trouble in grading is `Failed`, not an exception.
        """

    async def close(self) -> None:
        """Let go of connections, threads and files."""


class SymbolicGrader:
    """The symbolic grader of the embedded problems. It works in a thread of its own, so that the event loop goes on.

    `grade` raises `UserError` for a problem that no family made.
    """

    version = symbolic.VERSION

    def __init__(self) -> None:
        # One thread: Python would not run two at a time.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="symbolic-grader")

    async def grade(self, problem: AnyProblem, proof: str, again: int = 0) -> Grade:
        if not isinstance(problem, Problem):
            raise UserError(
                f"problem '{problem.id}': the symbolic grader knows the embedded problems only; set a judge"
            )
        return await asyncio.get_running_loop().run_in_executor(self._thread, symbolic.grade, problem, proof)

    async def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

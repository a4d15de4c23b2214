"""Final answers graded against the right ones: by rule where a rule decides, else by a judge."""

import hashlib
import json
from dataclasses import replace
from importlib.metadata import version
from importlib.resources import files

from qedmeg.config import GraderConfig
from qedmeg.errors import UserError
from qedmeg.grading.answer_pool import AnswerPool
from qedmeg.grading.final_answer import final_answer
from qedmeg.grading.grade import Cost, Failed, Grade, Graded, ItemGrade
from qedmeg.grading.grader import AnswerProblem, AnyProblem
from qedmeg.grading.panel import Panel
from qedmeg.grading.prompt import ANSWER
from qedmeg.grading.rubric import RUBRIC_POINTS

MAX_ANSWER_CHARS = 4000
"""A longer text is no final answer: the longest of IMO-AnswerBench has 132 characters."""
MAX_SHOWN_CHARS = 200
_RULES = ("final_answer.py", "answer_text.py", "answer_value.py", "answer_expressions.py", "answer_equality.py")
_TEMPLATES = ("answer_system.jinja", "answer_user.jinja")


class AnswerGrader:
    """Gives all 7 points for the right final answer and none for another one.

    What the rules leave open is asked of the configuration's judges; without any it is `Failed("undecided")`. A
    response in which no final answer is marked earns 0. `grade` raises `UserError` for a problem without an answer.
    """

    def __init__(self, config: GraderConfig | None = None) -> None:
        self._pool = AnswerPool()
        self._judges = Panel(config) if config is not None and config.judges else None
        self.version = _version(self._judges)

    async def grade(self, problem: AnyProblem, proof: str, again: int = 0) -> Grade:
        if not isinstance(problem, AnswerProblem):
            raise UserError(f"problem '{problem.id}': has no final answer to compare with; grade it as a proof")
        answer = final_answer(proof)
        if answer is None:
            return self._graded(False, "no final answer is marked, neither by a box nor by 'Answer:' in the last lines")
        if len(answer) > MAX_ANSWER_CHARS:
            return self._graded(False, f"{len(answer)} characters are no final answer")
        found = await self._pool.compare(problem.answer, answer, problem.statement)
        if found.same is not None:
            return self._graded(found.same, f"{_shown(answer)} by rule: {found.reason}")
        if self._judges is None:
            return Failed("undecided", f"{_shown(answer)} beside {_shown(problem.answer)}: {found.reason}; set a judge")
        grade = await self._judges.grade(problem, answer, again)
        if isinstance(grade, Failed):
            return grade
        if grade.points * 2 == grade.of:
            return Failed("undecided", f"{_shown(answer)}: as many votes for it as against it", grade.cost)
        right = self._graded(
            grade.points * 2 > grade.of, f"{_shown(answer)} by judge: {grade.items[0].reason}", grade.cost
        )
        return replace(right, votes=grade.votes)

    async def close(self) -> None:
        await self._pool.close()
        if self._judges is not None:
            await self._judges.close()

    def _graded(self, right: bool, reason: str, cost: Cost = Cost()) -> Graded:  # noqa: B008  (frozen)
        points = RUBRIC_POINTS if right else 0
        return Graded(points, RUBRIC_POINTS, (ItemGrade(ANSWER, points, RUBRIC_POINTS, reason),), self.version, cost)


def _shown(answer: str) -> str:
    text = " ".join(answer.split())
    return repr(text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "...")


def _version(judges: Panel | None) -> str:
    """A hash of the rules, of the parser and of the judges with what they are told."""
    folder = files("qedmeg.grading")
    digest = hashlib.sha256(json.dumps([version("latex2sympy2_extended"), version("sympy")]).encode())
    for name in _RULES:
        digest.update(folder.joinpath(name).read_bytes())
    if judges is None:
        return f"answers/{digest.hexdigest()[:12]}"
    for name in _TEMPLATES:
        digest.update(folder.joinpath("templates", name).read_bytes())
    digest.update(judges.version.encode())
    return f"answers by rule and {judges.version.partition('/')[0]}/{digest.hexdigest()[:12]}"

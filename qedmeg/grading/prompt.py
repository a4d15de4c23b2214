"""What a judge is told: the problem, how its answers are marked, and the proof or the final answer in a fence."""

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2

from qedmeg.data.problems import Problem, reference_proof
from qedmeg.fence import harmless, make_key, sendable
from qedmeg.grading.grader import AnswerProblem, AnyProblem, ProofProblem
from qedmeg.grading.rubric import RUBRIC_POINTS, Rubric
from qedmeg.grading.verdict import Verdict, json_schema, read_json, read_text

WHOLE_PROOF = "whole proof"
"""Name of the one item of a rubric in words."""

ANSWER = "answer"
"""Name of the one item of a final answer."""

_SYSTEM, _USER = "judge_system.jinja", "judge_user.jinja"
_RULES = (
    *("grading/judge.py", "grading/prompt.py", "grading/verdict.py", "grading/rubric.py", "fence.py", "thinking.py"),
    *(f"grading/templates/{name}" for name in (_SYSTEM, _USER)),
)
"""All that makes prompts of proofs and grades of what judges answer."""
_ANSWER_SYSTEM, _ANSWER_USER = "answer_system.jinja", "answer_user.jinja"
_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("qedmeg.grading"),
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
)


@dataclass(frozen=True)
class Prompt:
    """One question to a judge, and how its answer is read."""

    system: str
    user: str
    key: str
    """Stands in the fence around the proof and in the verdict; whoever wrote the proof cannot know it."""
    names: tuple[str, ...]
    of: tuple[int, ...]
    """Names and points of the items."""
    by_item: bool
    structured: bool
    worth: int = 1
    """What a point of the verdict is worth in the grade: 7 of an answer, which the verdict gives 0 or 1."""

    def read(self, content: str) -> Verdict:
        """The verdict in the judge's final message. Raises `NoVerdict`."""
        reader = read_json if self.structured else read_text
        return reader(content, self.key, self.of, by_item=self.by_item)

    def schema(self) -> dict[str, Any]:
        """JSON schema of the structured verdict."""
        return json_schema(self.of, by_item=self.by_item)


def make_prompt(problem: ProofProblem | AnswerProblem, proof: str, *, structured: bool, reference: bool) -> Prompt:
    """The question about one proof, or about one final answer.

    The same proof gives the same prompt, and what comes before the proof is the same for all proofs of a problem but
    for the key, so that a server may reuse it.
    """
    if isinstance(problem, AnswerProblem):
        return _answer_prompt(problem, proof, structured=structured)
    items = problem.rubric.items if isinstance(problem.rubric, Rubric) else None
    shown = problem.reference if reference else None
    text = harmless(proof)
    key = make_key(problem.statement, text, shown or "", *_rubric_texts(problem.rubric))
    user = _ENVIRONMENT.get_template(_USER).render(
        problem=problem, items=items, reference=shown, proof=text, key=key, of=RUBRIC_POINTS, structured=structured
    )
    return Prompt(
        system=_ENVIRONMENT.get_template(_SYSTEM).render(),
        user=sendable(user),
        key=key,
        names=tuple(item.name for item in items) if items else (WHOLE_PROOF,),
        of=tuple(item.points for item in items) if items else (RUBRIC_POINTS,),
        by_item=items is not None,
        structured=structured,
    )


def _answer_prompt(problem: AnswerProblem, answer: str, *, structured: bool) -> Prompt:
    text = harmless(answer)
    key = make_key(problem.statement, problem.answer, text)
    user = _ENVIRONMENT.get_template(_ANSWER_USER).render(problem=problem, answer=text, key=key, structured=structured)
    return Prompt(
        system=_ENVIRONMENT.get_template(_ANSWER_SYSTEM).render(),
        user=sendable(user),
        key=key,
        names=(ANSWER,),
        of=(1,),
        by_item=False,
        structured=structured,
        worth=RUBRIC_POINTS,
    )


def judged(problem: AnyProblem) -> ProofProblem | AnswerProblem:
    """The problem as a judge sees it; an embedded one comes with its full-mark proof as the reference."""
    if not isinstance(problem, Problem):
        return problem
    return ProofProblem(problem.id, problem.statement, problem.rubric, reference_proof(problem))


def rules_hash() -> str:
    """Changes with the wording of the prompts and with the source that makes them and reads verdicts."""
    digest = hashlib.sha256()
    for name in _RULES:
        digest.update(files("qedmeg").joinpath(name).read_bytes())
    return digest.hexdigest()


def _rubric_texts(rubric: Rubric | str) -> list[str]:
    return [rubric] if isinstance(rubric, str) else [text for item in rubric.items for text in (item.name, item.text)]

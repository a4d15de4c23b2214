"""The tools of the planning agent: how its calls are read, and what each of them does."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from qedmeg.grading.verdict import NoVerdict
from qedmeg.reasoning.call import Call, Reply
from qedmeg.reasoning.prompts import make_prompt, read_blocks
from qedmeg.reasoning.questions import Question, ask_read
from qedmeg.reasoning.selection import choose
from qedmeg.reasoning.session import PROVER, Session
from qedmeg.reasoning.steps import Analysis, improve, merge, prove, verify


class _Tool(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Approaches(_Tool):
    tool: Literal["approaches"]
    count: int = Field(ge=1)


class Solve(_Tool):
    tool: Literal["solve"]
    approach: int | None = None


class OnSolution(_Tool):
    tool: Literal["verify", "improve", "submit"]
    solution: int


class OnSolutions(_Tool):
    tool: Literal["select", "merge"]
    solutions: tuple[int, ...] = Field(min_length=2)


ToolCall = Approaches | Solve | OnSolution | OnSolutions
_TOOL_CALL: TypeAdapter[ToolCall] = TypeAdapter(Annotated[ToolCall, Field(discriminator="tool")])
_FENCED = re.compile(r"```(?:json)?\n(.*)\n```", re.DOTALL)


def read_call(text: str) -> ToolCall:
    """The tool call in the planner's answer: one JSON object and nothing else, but for a fence of backticks.

    Raises `NoVerdict`, whose message repeats nothing of the text.
    """
    text = text.strip()
    fenced = _FENCED.fullmatch(text)
    text = fenced[1] if fenced else text
    try:
        json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise NoVerdict("it is not one JSON object") from None
    try:
        return _TOOL_CALL.validate_json(text)
    except ValidationError:
        raise NoVerdict("it names none of the tools with the arguments that the tool takes") from None


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name twice in one object")
    return dict(pairs)


@dataclass
class Version:
    """A solution on the board."""

    text: str
    whole: bool
    """Not cut off."""
    analyses: list[Analysis] = field(default_factory=list)


@dataclass(frozen=True)
class Event:
    """What came of one call of the planner: our words, and the text of a model that goes with them."""

    said: str
    text: str = ""


@dataclass
class Board:
    """All that the tools have brought forth. Approaches and solutions are known by their numbers, from 1."""

    max_approaches: int
    max_solutions: int
    approaches: list[str] = field(default_factory=list)
    solutions: list[Version] = field(default_factory=list)
    solved: int = 0
    """Solutions asked for that are no version of another."""
    selected: int | None = None
    """The solution that was selected last."""
    submitted: bool = False

    def best(self) -> int | None:
        """The solution that was selected last; without a selection the one with the highest mean verdict, those without
        a verdict behind those with one, then what was cut off behind what was not, then the newest. None where there is
        no solution."""
        if self.selected is not None or not self.solutions:
            return self.selected
        means = [mean(one.verdict for one in version.analyses or [_UNSEEN]) for version in self.solutions]
        whole = [version.whole for version in self.solutions]
        return max(range(1, len(means) + 1), key=lambda number: (means[number - 1], whole[number - 1], number))


_UNSEEN = Analysis("", -1)
"""Stands below all verdicts where there is none."""


async def use(session: Session, board: Board, call: ToolCall, path: str) -> Event:
    """Do what a call of the planner asks, or tell why it cannot be done."""
    problem, path = session.problem, f"{path}/{call.tool}"
    if (wrong := _refused(board, call)) is not None:
        return Event(f"{call.tool}: nothing was done: {wrong}.")
    if isinstance(call, Approaches):
        return await _approaches(session, board, call.count, path)
    if isinstance(call, Solve):
        approach = board.approaches[call.approach - 1] if call.approach is not None else ""
        along = f" along approach {call.approach}" if call.approach is not None else ""
        board.solved += 1
        return _added(board, await session.ask(prove(problem, path, approach)), f"solve{along}")
    if isinstance(call, OnSolutions):
        texts = [board.solutions[number - 1].text for number in call.solutions]
        names = ", ".join(map(str, call.solutions))
        if call.tool == "merge":
            return _added(board, await session.ask(merge(problem, texts, path)), f"merge of solutions {names}")
        (choice,) = await ask_read(session, [choose(problem, texts, path)])
        if choice is None:
            return Event(f"select among solutions {names}: the selector's choice could not be read; none is selected.")
        board.selected = call.solutions[choice]
        return Event(f"select among solutions {names}: solution {board.selected}.")

    version = board.solutions[call.solution - 1]
    if call.tool == "submit":
        board.selected, board.submitted = call.solution, True
        return Event(f"submit: solution {call.solution}.")
    if call.tool == "improve":
        analyses = [analysis.text for analysis in version.analyses]
        reply = await session.ask(improve(problem, version.text, analyses, path))
        return _added(board, reply, f"improve solution {call.solution}")
    (analysis,) = await ask_read(session, [verify(problem, version.text, path)])
    if analysis is None:
        return Event(f"verify solution {call.solution}: the verifier's verdict could not be read.")
    version.analyses.append(analysis)
    return Event(f"verify solution {call.solution}: verdict {analysis.verdict:g}.", analysis.text)


def _refused(board: Board, call: ToolCall) -> str | None:
    """Why a call cannot be done, or None."""
    if isinstance(call, Approaches):
        left = board.max_approaches - len(board.approaches)
        return None if call.count <= left else f"{left} more approaches are allowed"
    if isinstance(call, Solve):
        if board.solved == board.max_solutions:
            return f"{board.max_solutions} solutions have been asked for; improve or merge what there is"
        if call.approach is not None and not 1 <= call.approach <= len(board.approaches):
            return f"approaches have numbers from 1 to {len(board.approaches)}" if board.approaches else "no approaches"
        return None
    numbers = call.solutions if isinstance(call, OnSolutions) else (call.solution,)
    if not all(1 <= number <= len(board.solutions) for number in numbers):
        return f"solutions have numbers from 1 to {len(board.solutions)}" if board.solutions else "no solutions yet"
    if len(set(numbers)) < len(numbers):
        return "a solution is named twice"
    if len(numbers) > board.max_solutions:
        return f"at most {board.max_solutions} solutions can be named"
    return None


def _added(board: Board, reply: Reply, what: str) -> Event:
    if not reply.text.strip():
        return Event(f"{what}: the answer was cut off before its text began; there is no new solution.")
    board.solutions.append(Version(reply.text.strip(), reply.finish_reason == "stop"))
    cut = "" if board.solutions[-1].whole else ", which is cut off at its end"
    return Event(f"{what}: solution {len(board.solutions)}{cut}.", reply.text.strip())


async def _approaches(session: Session, board: Board, count: int, path: str) -> Event:
    prompt = make_prompt("approaches", session.problem, count=count)

    def read(text: str) -> list[str]:
        found = [block for block in read_blocks(text, "approach", prompt.key) if block]
        if not 1 <= len(found) <= count:
            raise NoVerdict(f"it has no or more than {count} approaches")
        return found

    (found,) = await ask_read(session, [Question(Call(path, PROVER, prompt.messages), read)])
    if found is None:
        return Event("approaches: the answer could not be read; there are no new ones.")
    first = len(board.approaches) + 1
    board.approaches += found
    text = "\n\n".join(f"Approach {number}: {approach}" for number, approach in enumerate(found, start=first))
    return Event(f"approaches: {first} to {len(board.approaches)}.", text)

"""The reasoning cache: reason, summarise the reasoning, reason again from the summary (arXiv 2602.03773).

What goes from round to round is a `State`, a summary in place of the reasoning, so that no round needs more context
than one. The prompts and the step from state to state are pure functions, for whoever generates by other means.
"""

import re
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from qedmeg.fence import harmless, sendable
from qedmeg.reasoning.call import Call, Message
from qedmeg.reasoning.prompts import make_prompt
from qedmeg.reasoning.session import PROVER, Session
from qedmeg.reasoning.steps import prove, replaced
from qedmeg.settings import Settings

SUMMARISER = "summariser"
Keep = Literal["replace", "append"]


class CachePrompts(Settings):
    """The cache's questions in other words than ours, for a model that was trained on them. {problem}, {summary} and
    {reasoning} stand where the texts go; those of a model are put in without a fence."""

    first: str = "{problem}"
    """Of the first round."""
    again: str
    """Of a later round, with {summary}."""
    summarise: str
    """With {reasoning}, and {summary} for the one before, which is empty in the first round."""

    @model_validator(mode="after")
    def _names_its_texts(self) -> Self:
        for name, texts in _TEXTS.items():
            for text in texts:
                if text not in getattr(self, name):
                    raise ValueError(f"{name} {getattr(self, name)!r} does not hold {text}")
        return self


_TEXTS = {
    "first": ("{problem}",),
    "again": ("{problem}", "{summary}"),
    "summarise": ("{problem}", "{summary}", "{reasoning}"),
}


class ReasoningCacheSettings(Settings):
    """Rounds of reasoning and what is kept between them."""

    rounds: int = Field(default=3, ge=1)
    """Rounds of reasoning, with a summary between two."""
    keep: Keep = "replace"
    """`replace`: a summary takes over what matters of the one before it and stands in its place. `append`: it tells
    what is new, and stands after those before it."""
    reason_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of a round's reasoning with its answer. None: what the model's own settings allow. QED-Nano trains
    with 49152."""
    summary_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of a summary, with the thinking before it. None: what the model's own settings allow. QED-Nano trains
    with 2048, of a summariser that does not think."""
    prompts: CachePrompts | None = None
    """None: ours."""


@dataclass(frozen=True)
class State:
    """What a round of reasoning begins with."""

    problem: str
    round: int
    """From 1."""
    summary: str
    """Of all rounds before; empty in the first."""


@dataclass(frozen=True)
class Rounds:
    """What came of all rounds."""

    answer: str
    states: tuple[State, ...]
    """One for each round: what it began with."""


def reason_messages(state: State, prompts: CachePrompts | None = None) -> tuple[Message, ...]:
    """What the prover is asked in a round. Without a summary it is the question of the scaffold `single`."""
    if prompts is not None:
        return _filled(prompts.again if state.summary else prompts.first, state)
    if not state.summary:
        return prove(state.problem, "").messages
    return make_prompt("reason", state.problem, summary=state.summary).messages


def summarised(thinking: str, text: str) -> str:
    """What is summarised of a reply: its thinking, or its text where there is no thinking."""
    return thinking.strip() or text.strip()


def summary_messages(
    state: State, reasoning: str, keep: Keep, prompts: CachePrompts | None = None
) -> tuple[Message, ...]:
    """What the summariser is asked after a round that began with `state`."""
    if prompts is not None:
        return _filled(prompts.summarise, state, reasoning)
    return make_prompt(
        "summarise", state.problem, summary=state.summary, reasoning=reasoning, append=keep == "append"
    ).messages


def _filled(template: str, state: State, reasoning: str = "") -> tuple[Message, ...]:
    """A text that holds the name of another is not filled in again."""
    texts = {"problem": state.problem, "summary": harmless(state.summary), "reasoning": harmless(reasoning)}
    asked = re.sub(r"\{(problem|summary|reasoning)\}", lambda found: texts[found[1]], template)
    return (Message("user", sendable(asked)),)


def next_state(state: State, summary: str, keep: Keep) -> State:
    """What the next round begins with. A summary without any text, of a reply that was cut off in its thinking, changes
    nothing; one that was cut off later is kept as far as it goes."""
    summary = summary.strip()
    if not summary:
        summary = state.summary
    elif keep == "append" and state.summary:
        summary = f"{state.summary}\n\n{summary}"
    return State(state.problem, state.round + 1, summary)


async def run_rounds(session: Session, settings: ReasoningCacheSettings) -> Rounds:
    """All rounds. The answer is the last round's; where that was cut off, the last that was not.

    A reply that was cut off in its thinking has no text, and its thinking is summarised all the same: that is what the
    cache is for. A round that brought forth nothing at all is not summarised.
    """
    state = State(session.problem, 1, "")
    states = [state]
    while True:
        path = f"round {state.round}"
        reply = await session.ask(
            Call(f"{path}/reason", PROVER, reason_messages(state, settings.prompts), max_tokens=settings.reason_tokens)
        )
        session.best = replaced(session.best, reply)
        if state.round == settings.rounds:
            return Rounds(session.best, tuple(states))
        summary = ""
        if reasoning := summarised(reply.thinking, reply.text):
            messages = summary_messages(state, reasoning, settings.keep, settings.prompts)
            asked = Call(f"{path}/summarise", SUMMARISER, messages, max_tokens=settings.summary_tokens)
            summary = (await session.ask(asked)).text
        state = next_state(state, summary, settings.keep)
        states.append(state)


async def reasoning_cache(session: Session, settings: ReasoningCacheSettings) -> str:
    """The answer of the last round."""
    return (await run_rounds(session, settings)).answer

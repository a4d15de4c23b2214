"""One attempt at one problem: the models that a scaffold may ask, each call kept, and the tokens that it may spend."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from qedmeg.grading.grade import Cost
from qedmeg.reasoning.call import Call, CallLog, Model, Reply

PROVER = "prover"
"""The role that every scaffold has; the model in it stands in for roles without one of their own."""


class BudgetSpentError(Exception):
    """The tokens that a problem may take are used up."""


class Session:
    """What a scaffold works with. All of its calls go through `ask` and `ask_all`, so that the same replies lead to the
    same calls: then an attempt that was stopped goes on at the call that was not answered yet."""

    def __init__(
        self, problem: str, models: Mapping[str, Model], log: CallLog, *, budget: int | None = None, seed: int = 0
    ) -> None:
        """`budget`: most tokens that all replies together may have; None: no limit. `seed`: of the attempt."""
        self.problem = problem
        self.best = ""
        """The answer if the budget ended now."""
        self.tokens = 0
        """Generated for all replies until now."""
        self.cost = Cost()
        self.seconds = 0.0
        """Of all replies, one after the other."""
        self.replies = self.cut_off = 0
        """Replies until now, and those of them that were cut off."""
        self._models, self._log, self._budget, self._seed = models, log, budget, seed

    async def ask(self, call: Call) -> Reply:
        """The reply to one call.

        Raises:
            BudgetSpentError: no tokens are left for it.
            ModelFailedError: the model gave none.
        """
        return (await self.ask_all([call]))[0]

    async def ask_all(self, calls: Sequence[Call]) -> list[Reply]:
        """The replies to calls that run side by side, in their order. Each may take an equal part of what is left.

        Raises:
            BudgetSpentError: not one token is left for each.
            ModelFailedError: the model gave none to one of them; the other replies are kept for the next try.
        """
        if not calls:
            return []
        share = None if self._budget is None else (self._budget - self.tokens) // len(calls)
        if share is not None and share < 1:
            raise BudgetSpentError(f"{self.tokens} of {self._budget} tokens are spent; {len(calls)} calls are left out")
        cut = [
            replace(call, max_tokens=least(share, call.max_tokens), seed=seed_of(self._seed, call.path))
            for call in calls
        ]
        found = await asyncio.gather(*(self._one(call) for call in cut), return_exceptions=True)
        replies: list[Reply] = []
        for reply in found:
            if isinstance(reply, BaseException):
                continue
            self.tokens += reply.tokens
            self.cost += reply.cost
            self.seconds += reply.seconds
            self.replies += 1
            self.cut_off += reply.finish_reason == "length"
            replies.append(reply)
        for reply in found:
            if isinstance(reply, BaseException):
                raise reply
        return replies

    async def _one(self, call: Call) -> Reply:
        model = self._models.get(call.role, self._models[PROVER])
        known = await self._log.find(model.name, call)
        if known is not None:
            return known
        reply = await model.ask(call, self._log)
        await self._log.keep(model.name, call, reply)
        return reply


def least(*limits: int | None) -> int | None:
    """The least of limits, of which None is none."""
    return min((limit for limit in limits if limit is not None), default=None)


def seed_of(*parts: object) -> int:
    """A seed of 31 bits, which every server takes, from whatever tells one draw from another."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4]) >> 1


@dataclass(frozen=True)
class Solution:
    """What a scaffold made of a problem."""

    text: str
    ended: Literal["done", "length", "budget spent"]
    """`length`: the only reply was cut off."""
    tokens: int
    cost: Cost
    seconds: float


Scaffold = Callable[[Session], Awaitable[str]]
"""From a session to the final answer. What it would answer if the budget ended is in `session.best` at any time."""


async def attempt(scaffold: Scaffold, session: Session) -> Solution:
    """Run a scaffold to its end, or until its budget is spent.

    Raises:
        ModelFailedError: a model gave no reply.
    """
    ended: Literal["done", "length", "budget spent"] = "done"
    try:
        text = await scaffold(session)
        if session.replies == session.cut_off == 1:
            ended = "length"
    except BudgetSpentError:
        text, ended = session.best, "budget spent"
    return Solution(text, ended, session.tokens, session.cost, session.seconds)


class ScaffoldModel:
    """A scaffold in the place of a model: the last message of a call is its problem.

    It spends at most the call's `max_tokens`, where there is such a limit, on all of its calls together.
    """

    def __init__(self, name: str, scaffold: Scaffold, models: Mapping[str, Model]) -> None:
        self.name = name
        self._scaffold, self._models = scaffold, models

    async def ask(self, call: Call, log: CallLog) -> Reply:
        below = _Below(call.path, log)
        session = Session(call.messages[-1].content, self._models, below, budget=call.max_tokens, seed=call.seed)
        solution = await attempt(self._scaffold, session)
        # What a scaffold answers when its budget ends is mostly whole: the best that it had.
        whole = solution.text != "" and solution.ended != "length"
        finish_reason: Literal["stop", "length"] = "stop" if whole else "length"
        return Reply(solution.text, "", finish_reason, solution.tokens, solution.cost, solution.seconds)


class _Below:
    """A log whose calls lie below the path of another call."""

    def __init__(self, path: str, log: CallLog) -> None:
        self._path, self._log = path, log

    async def find(self, model: str, call: Call) -> Reply | None:
        return await self._log.find(model, self._placed(call))

    async def keep(self, model: str, call: Call, reply: Reply) -> None:
        await self._log.keep(model, self._placed(call), reply)

    def _placed(self, call: Call) -> Call:
        return replace(call, path=f"{self._path}/{call.path}")

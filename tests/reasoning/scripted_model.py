"""A model that answers by a script, and logs to keep its replies in."""

import asyncio
import random
import re
from collections.abc import Callable, Mapping
from typing import Any

from qedmeg.grading.grade import Cost
from qedmeg.reasoning.call import Call, ModelFailedError, Reply
from qedmeg.reasoning.scaffolds import make_scaffold
from qedmeg.reasoning.session import Session, Solution, attempt

PROBLEM = "Show that it holds."
TOKENS = 10
"""Of every scripted reply that is not cut off."""
Script = Callable[[Call], str | Reply]
_FENCE = re.compile(r"^<([a-z]+(?: \d+)?) ([0-9a-f]{16})>\n(.*?)\n</\1 \2>$", re.DOTALL | re.MULTILINE)
_VERDICT = re.compile(r"^<verdict ([0-9a-f]{16})>(.*)</verdict \1>$", re.MULTILINE)


class MemoryLog:
    """A `CallLog`; refuses to keep a call twice."""

    def __init__(self) -> None:
        self.replies: dict[tuple[str, Call], Reply] = {}

    async def find(self, model: str, call: Call) -> Reply | None:
        return self.replies.get((model, call))

    async def keep(self, model: str, call: Call, reply: Reply) -> None:
        assert (model, call) not in self.replies
        assert call.path not in {kept.path for _, kept in self.replies}
        self.replies[model, call] = reply


class ScriptedModel:
    """A `Model`. Replies take `TOKENS` tokens; with less allowed they are cut off before their text begins.

    `stop_after`: so many calls are answered, all others fail. `shuffled`: replies come in an order drawn from it.
    """

    def __init__(
        self, script: Script, name: str = "m", *, stop_after: int | None = None, shuffled: random.Random | None = None
    ) -> None:
        self.name = name
        self.calls: list[Call] = []
        """Those that were answered, in the order in which they were asked."""
        self._script, self._stop_after, self._shuffled = script, stop_after, shuffled

    async def ask(self, call: Call, log: Any) -> Reply:
        if self._stop_after is not None and len(self.calls) >= self._stop_after:
            raise ModelFailedError("gone", "the server is gone")
        self.calls.append(call)
        for _ in range(self._shuffled.randrange(20) if self._shuffled else 0):
            await asyncio.sleep(0)
        if call.max_tokens is not None and call.max_tokens < TOKENS:
            return cut(tokens=call.max_tokens)
        answer = self._script(call)
        return answer if isinstance(answer, Reply) else said(answer)

    @property
    def paths(self) -> list[str]:
        return [call.path for call in self.calls]

    def call(self, path: str) -> Call:
        """The call with this path."""
        (found,) = [call for call in self.calls if call.path == path]
        return found


def said(text: str, thinking: str = "") -> Reply:
    return Reply(text, thinking, "stop", TOKENS, Cost(1, 5, TOKENS), 0.5)


def cut(text: str = "", thinking: str = "", tokens: int = TOKENS) -> Reply:
    """A reply that was cut off."""
    return Reply(text, thinking, "length", tokens, Cost(1, 5, tokens), 0.5)


def content(call: Call) -> str:
    """What a call says: one message of the user."""
    (message,) = call.messages
    assert message.role == "user"
    return message.content


def shown(call: Call) -> dict[str, str]:
    """The texts of models in a prompt, by the name of their fence. The problem always stands outside of them."""
    prompt = content(call)
    assert PROBLEM in _FENCE.sub("", prompt)
    return {name: text for name, _, text in _FENCE.findall(prompt)}


def verdict(call: Call, value: object, before: str = "It is so.") -> str:
    """A verifier's or selector's answer in the form that its prompt asks for."""
    key, _ = _VERDICT.findall(content(call))[-1]
    return f"{before}\n<verdict {key}>{value}</verdict {key}>"


def form(call: Call) -> str:
    """What stands in the verdict that a prompt asks for, such as `V`; empty where it asks for none."""
    found = _VERDICT.findall(content(call))
    return found[-1][1] if found else ""


def echo(call: Call) -> str:
    """Proofs and notes name their path; verifiers say 0.5, whoever gives marks 1, selectors choose the first."""
    asked = form(call)
    if asked == "N, N, N":
        return verdict(call, ",".join(str(number) for number in range(1, len(shown(call)) + 1)))
    return verdict(call, {"V": "0.5", "N": "1"}[asked]) if asked else f"by {call.path}"


def by_path(texts: Mapping[str, str | Reply | Callable[[Call], str]], otherwise: Script) -> Script:
    """A script with its own answers at some paths."""

    def script(call: Call) -> str | Reply:
        answer = texts.get(call.path)
        if answer is None:
            return otherwise(call)
        return answer(call) if callable(answer) else answer

    return script


def run(
    name: str, script: Script | ScriptedModel, budget: int | None = None, log: Any = None, **settings: Any
) -> tuple[Solution, ScriptedModel]:
    """An attempt at PROBLEM with a scaffold whose one model follows the script."""
    model = script if isinstance(script, ScriptedModel) else ScriptedModel(script)
    session = Session(PROBLEM, {"prover": model}, MemoryLog() if log is None else log, budget=budget)
    solution = asyncio.run(attempt(make_scaffold(name, settings), session))
    assert budget is None or solution.tokens <= budget
    return solution, model

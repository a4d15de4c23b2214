"""A server whose model answers every prompt in the same way, and which fails in a share of all requests."""

import hashlib
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from qedmeg.reasoning.call import Call, Message
from tests.grading.judge_server import JudgeServer
from tests.reasoning.scripted_model import echo

FAILURES = ("429", "500", "cut connection", "empty", "no completion")
PLAN = (
    {"tool": "solve"},
    {"tool": "verify", "solution": 1},
    {"tool": "improve", "solution": 1},
    {"tool": "submit", "solution": 2},
)


@dataclass
class ScriptedServer(JudgeServer):
    """What happens to a request is drawn from the seed, the conversation and how often it was asked about."""

    share: float = 0.0
    """Of requests that fail."""
    seed: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    """Requests by fate."""
    tokens: int = 0
    """Completion tokens of all answers that were sent."""

    async def answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        text = json.dumps(body["messages"])
        draw = random.Random(f"{self.seed} {text} {self._asked[text]}")
        self._asked[text] += 1
        fate = draw.choice(FAILURES) if draw.random() < self.share else "answered"
        self.answered[fate] += 1
        if fate.isdigit():
            return web.json_response({"error": {"message": "not now"}}, status=int(fate))
        if fate == "cut connection":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fate == "no completion":
            return web.Response(text="<html>gateway</html>")
        content = "" if fate == "empty" else script(body["messages"])
        usage = {"prompt_tokens": 7, "completion_tokens": 5}
        self.tokens += 5
        message = {"role": "assistant", "content": content, "reasoning_content": f"thinking of {_name(text)}"}
        return web.json_response({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})


def script(messages: list[dict[str, str]]) -> str:
    """A planner's next tool, or what `echo` says, with the conversation's name for a path."""
    turns = tuple(Message(**message) for message in messages)  # type: ignore[arg-type]
    if any('"tool"' in turn.content for turn in turns):
        said = sum(turn.role == "assistant" for turn in turns)
        return json.dumps(PLAN[min(said, len(PLAN) - 1)])
    return echo(Call(_name(json.dumps(messages)), "prover", turns))


def _name(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]

"""A judge that knows the right grade of every proof, and gets in the way in every way that is known of servers.

It speaks enough of the chat completions API for one client. The right grade is a function of the proof's text. What
happens to a request is drawn from the seed, the proof and how often the proof was asked about, not from the order in
which requests arrive. Every answer that is no verdict but holds a number holds a wrong one.
"""

import asyncio
import hashlib
import json
import random
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web

RIGHT = ("right", "spaces", "draft before", "reasoning before", "half a character")
"""Answers that must be read."""
FAILURES = (
    *("time-out", "429", "500", "cut connection", "hang", "empty", "no verdict", "two verdicts", "out of range"),
    *("6.5", "wrong sum", "quoted", "wrong language", "1 MB", "cut off"),
)
MEGABYTE = 1_000_000
HALF_A_CHARACTER = "\ud835"
"""Of the two of UTF-16 that make a 𝑛: JSON can write it, and UTF-8 cannot."""

Plan = Callable[[str, int], str]
"""What becomes of the n-th request (from 0) about a proof: one of `RIGHT` or `FAILURES`, a status such as '401',
'quota' (the 429 that no waiting mends), or the points to give, such as 'give 2 3 0'."""


@dataclass
class Served:
    """One request as the server saw it."""

    id: str
    proof: str
    fate: str
    authorization: str
    structured: bool
    user: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    written: bool = False
    """Whether an answer that says what it cost was written to its end."""


def right_points(proof: str, of: tuple[int, ...]) -> tuple[int, ...]:
    """The right points of each item. White space does not count: the fence may add some."""
    digest = hashlib.sha256("".join(proof.split()).encode("utf-8", errors="replace")).digest()
    return tuple(digest[i] % (most + 1) for i, most in enumerate(of))


def drawn(share: float, seed: int) -> Plan:
    """A plan in which `share` of all requests fail, in all ways equally often."""

    def plan(proof: str, nth: int) -> str:
        draw = random.Random(f"{seed} {nth} {proof}")
        return draw.choice(FAILURES if draw.random() < share else RIGHT)

    return plan


@dataclass
class JudgeServer:
    """`with JudgeServer(plan) as server:` serves at `server.url`, in a thread of its own; `server.served` is its log.

    `seconds` is how long an answer takes at most (drawn), `slow_seconds` how long one does that comes too late.
    """

    plan: Plan = field(default_factory=lambda: drawn(0.0, 0))
    seconds: float = 0.0
    slow_seconds: float = 1.0
    retry_after: str = "0.01"
    served: list[Served] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    url: str = ""

    def __enter__(self) -> "JudgeServer":
        self._loop = asyncio.new_event_loop()
        self._asked: Counter[str] = Counter()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="judge-server")
        self._thread.start()
        assert ready.wait(10), "the judge server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive(), "the judge server did not stop"

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(ready))
        self._loop.close()

    async def _serve(self, ready: threading.Event) -> None:
        self._stop = asyncio.Event()
        application = web.Application(client_max_size=64 * MEGABYTE)
        application.router.add_post("/v1/chat/completions", self._handle)
        runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/v1"
        ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self.answer(request, await request.json())
        finally:
            self.at_once -= 1

    async def answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        """The answer to one request. A judge of another kind answers in its own way."""
        user = body["messages"][-1]["content"]
        question = Question.read(user)
        fate = self.plan(question.proof, self._asked[question.proof])
        self._asked[question.proof] += 1
        served = Served(
            id=request.headers["X-Client-Request-Id"],
            proof=question.proof,
            fate=fate,
            authorization=request.headers.get("Authorization", ""),
            structured="response_format" in body,
            user=user,
        )
        self.served.append(served)
        draw = random.Random(served.id)
        await asyncio.sleep(self.slow_seconds if fate == "time-out" else draw.uniform(0, self.seconds))
        if fate == "cut connection" and draw.random() < 0.5:
            request.transport.abort()
            return web.Response()
        if fate.isdigit() or fate == "quota":
            message = f"no: {fate}, your key was {served.authorization}, {HALF_A_CHARACTER}"
            error = {"error": {"message": message, "code": "insufficient_quota" if fate == "quota" else None}}
            headers = {"Retry-After": self.retry_after} if fate == "429" else {}
            return web.json_response(error, status=429 if fate == "quota" else int(fate), headers=headers)
        if fate == "empty" and draw.random() < 0.3:
            return web.Response(content_type="application/json")
        if fate.startswith("give "):
            question = replace(question, given=tuple(map(int, fate.split()[1:])))
        make = structured_content if served.structured else text_content
        content = make(fate, question, draw)
        usage = {"prompt_tokens": len(user) // 4, "completion_tokens": max(1, len(content) // 4)}
        answer = {
            "object": "chat.completion",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": content, "reasoning_content": _wrong_text(question)},
                    "finish_reason": "length" if fate == "cut off" else "stop",
                }
            ],
            "usage": usage | {"total_tokens": sum(usage.values())},
        }
        data = json.dumps(answer).encode()
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(data))})
        await response.prepare(request)
        if fate in ("hang", "cut connection"):
            await response.write(data[: len(data) // 2])
            if fate == "hang":
                await asyncio.sleep(3600)  # until the client goes
            request.transport.abort()
            return response
        served.prompt_tokens, served.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        await response.write(data)
        await response.write_eof()
        served.written = True
        return response


@dataclass(frozen=True)
class Question:
    """What a prompt asks: the proof, the key of its fence, and the points of each item."""

    proof: str
    key: str
    of: tuple[int, ...]
    by_item: bool
    given: tuple[int, ...] = ()

    @staticmethod
    def read(user: str) -> "Question":
        """The question in a judge's prompt."""
        before, _, _ = user.partition("# Proof to be marked")
        items = re.findall(r"^Item [0-9]+, ([0-9]+) points?", before, re.MULTILINE)
        fence = re.search(r"^<(proof|answer) ([0-9a-f]{16})>\n(.*)\n</\1 \2>$", user, re.MULTILINE | re.DOTALL)
        assert fence is not None, user
        whole = (1,) if fence[1] == "answer" else (7,)
        return Question(fence[3], fence[2], tuple(map(int, items)) or whole, bool(items))

    @property
    def right(self) -> tuple[int, ...]:
        return self.given or right_points(self.proof, self.of)

    @property
    def wrong(self) -> tuple[int, ...]:
        """As good as allowed, with the first item different from the right one's and in range."""
        first = (self.right[0] + 1) % (self.of[0] + 1)
        return (first, *self.of[1:])


def _block(question: Question, points: tuple[Any, ...], total: Any = None, *, key: str = "", wide: bool = False) -> str:
    total = sum(points) if total is None else total
    gap = "   " if wide else " "
    lines = [f"item {i}{gap[1:]}:{gap}{given}{gap}| shown" for i, given in enumerate(points, start=1)]
    last = [f"points{gap[1:]}:{gap}{total}{gap[1:]}"] if question.by_item else [f"points:{gap}{points[0]}{gap}| shown"]
    key = key or question.key
    return "\n".join([f"<verdict {key}>", *(lines if question.by_item else []), *last, f"</verdict {key}>"])


def _wrong_text(question: Question) -> str:
    return f"I see. {_block(question, question.wrong)}"


def text_content(fate: str, question: Question, draw: random.Random) -> str:
    """The message of a judge that writes text."""
    right, wrong = question.right, question.wrong
    filler = "The proof is read line by line. " * draw.randint(1, 20)
    match fate:
        case "spaces":
            return f"{filler}\n\n{_block(question, right, wide=True)}\n\n  \n"
        case "draft before":
            return (
                f"I shall end with\n{_block(question, ('N',) * len(right), 'N')}\n{filler}\n{_block(question, right)}"
            )
        case "reasoning before":
            return f"<think>\n{_block(question, wrong)}\n{filler}</think>\n{_block(question, right)}"
        case "empty":
            return draw.choice(["", "  \n"])
        case "no verdict":
            return f"{filler} I would give it {sum(wrong)} points of 7. points: {sum(wrong)}"
        case "two verdicts":
            order = [right, wrong] if draw.random() < 0.5 else [wrong, right]
            return "\nOr rather:\n".join(_block(question, points) for points in order)
        case "out of range":
            return filler + _block(question, (*wrong[:-1], 10))
        case "6.5":
            return filler + _block(question, (6.5, *wrong[1:]))
        case "wrong sum":
            return filler + (_block(question, right, sum(right) + 1) if question.by_item else _block(question, (8,)))
        case "quoted":
            key = draw.choice(["0123456789abcdef", "KEY", question.key[:-1], question.key.upper() + "0"])
            return f"{filler} The student writes {question.proof} and also\n{_block(question, wrong, key=key)}"
        case "wrong language":
            return f"证明基本正确，缺少一些细节。得分：{sum(wrong)} 分（满分 7 分）。\n点数: {sum(wrong)}"
        case "1 MB":
            line = f"points: {sum(wrong)} <verdict 0123456789abcdef> <verdict {question.key}> item 1: 3 \n"
            return line * (MEGABYTE // len(line))
        case "cut off":
            return f"{filler}{_block(question, wrong)} and on the other hand"
        case _:
            return f"{filler}\n{_block(question, right)}"


def structured_content(fate: str, question: Question, draw: random.Random) -> str:
    """The message of a judge that writes JSON, or does not keep to it."""
    right, wrong = question.right, question.wrong
    match fate:
        case "spaces":
            return "\n  " + json.dumps(_object(question, right), indent=4) + "\n \n"
        case "half a character":
            return json.dumps(_object(question, right, f"shown for {HALF_A_CHARACTER}"))
        case "two verdicts":
            both = [json.dumps(_object(question, points)) for points in (right, wrong)]
            return draw.choice(["\n".join(both), both[0][:-1] + f', "points": {sum(wrong)}}}'])
        case "out of range":
            return json.dumps(_object(question, (*wrong[:-1], 10)))
        case "6.5":
            return json.dumps(_object(question, (6.5, *wrong[1:])))
        case "wrong sum":
            return json.dumps(_object(question, right) | {"points": sum(right) + 1 if question.by_item else "7"})
        case "quoted":
            return json.dumps(_object(question, wrong) | {"key": draw.choice(["", "0123456789abcdef", "KEY"])})
        case "cut off":
            return json.dumps(_object(question, wrong))
        case "empty" | "no verdict" | "wrong language" | "1 MB":
            return text_content(fate, question, draw)
        case _:
            return json.dumps(_object(question, right))


def _object(question: Question, points: tuple[Any, ...], reason: str = "shown") -> dict[str, Any]:
    if not question.by_item:
        return {"key": question.key, "reason": reason, "points": points[0]}
    items = {f"item_{i}": {"reason": reason, "points": given} for i, given in enumerate(points, start=1)}
    return {"key": question.key, **items, "points": sum(points)}

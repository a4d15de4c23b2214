"""A model as users want it: asked again when something goes wrong, believed only when its answer is usable."""

import asyncio
import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from qedmeg.chat.account import ANSWERED, CANCELLED, Account, Request, Role, cost_of
from qedmeg.chat.breaker import Breaker
from qedmeg.chat.endpoint import Endpoint
from qedmeg.chat.message import Answer, Message, RequestFailed, Usage
from qedmeg.config import EndpointConfig
from qedmeg.grading.grade import Cost

T = TypeVar("T")
_UNHEALTHY = frozenset({"timeout", "connection", "rate limit", "server error"})
"""Kinds of failure that say that the server is in trouble; for the others it was well enough to answer."""
_OF_THE_SERVER = _UNHEALTHY | {"no access"}
"""Kinds of failure that say nothing about what was asked: anything else would have fared alike."""


class UnusableAnswerError(Exception):
    """What a reader raises about an answer that is to be asked for again: `kind` in two words, the message why."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class GaveUpError(Exception):
    """No usable answer came, however often it was asked for. `kind` is of the last failure; `of_server`: that was
    trouble of the server's, in which anything else would have fared alike."""

    def __init__(self, kind: str, reason: str, cost: Cost, *, of_server: bool) -> None:
        super().__init__(reason)
        self.kind, self.cost, self.of_server = kind, cost, of_server


@dataclass(frozen=True)
class Used(Generic[T]):
    """What was read of an answer, the answer's own tokens, and the cost of all requests that it took."""

    value: T
    usage: Usage | None
    cost: Cost


@dataclass
class _Question(Generic[T]):
    """An answer that is being asked for, and what it has taken so far."""

    messages: Sequence[Message]
    read: Callable[[Answer], T]
    schema: dict[str, Any] | None
    max_tokens: int | None
    seed: int | None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    requests: int = 0
    cost: Cost = field(default_factory=Cost)


class Client:
    """Asks one model behind one server. Belongs to the event loop in which it is first used.

    Failures are retried by kind: no answer in time, a cut connection, 429 and 5xx, an empty answer and one that its
    reader has no use for are; what the server refuses, or may not be asked, is not. Each request that is sent is
    counted in `account`. Raises `UserError` when the key's environment variable is not set.
    """

    def __init__(self, config: EndpointConfig, title: str = "model", account: Account | None = None) -> None:
        """`title` is what messages call it."""
        self.config = config
        self.account = Account() if account is None else account
        self.server = f"{title} {config.model} at {config.base_url}"
        self._endpoint = Endpoint(config)
        self._jitter = random.Random()
        self._slots = asyncio.Semaphore(config.concurrency)
        self._breaker = Breaker(self.server, config.breaker_failures, config.breaker_pause_seconds)

    async def ask(
        self,
        messages: Sequence[Message],
        read: Callable[[Answer], T],
        *,
        schema: dict[str, Any] | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
    ) -> Used[T]:
        """What `read` makes of the answer; it raises `UnusableAnswerError` for one that is to be asked for again.

        Args:
            messages: the conversation.
            read: from an answer to what it says.
            schema: of structured output; None: text.
            max_tokens: most tokens of the answer, where fewer than the settings allow.
            seed: that the server is to sample with; None: it draws one.

        Raises:
            GaveUpError: no such answer came within the settings' attempts and deadline.
        """
        async with self._slots:
            return await self._ask(_Question(messages, read, schema, max_tokens, seed))

    async def close(self) -> None:
        """Close the connections."""
        await self._endpoint.close()

    async def _ask(self, question: _Question[T]) -> Used[T]:
        config, clock = self.config, asyncio.get_running_loop().time
        end, last_failure, of_server = clock() + config.deadline_seconds, "none before", True
        for attempt in range(1, config.attempts + 1):
            try:
                value, usage = await self._attempt(question, "first" if attempt == 1 else "retry", end)
                return Used(value, usage, question.cost)
            except TimeoutError:
                reason = f"no answer of use within {config.deadline_seconds:g} s; last failure: {last_failure}"
                told = f"{self.server}: {reason}"
                raise GaveUpError("deadline", told, question.cost, of_server=of_server) from None
            except RequestFailed as failure:
                last, last_failure = failure, f"{failure.kind}: {failure}"
                of_server = failure.kind in _OF_THE_SERVER
            if not last.retried or attempt == config.attempts:
                break
            # Exponential backoff with full jitter: clients that failed together do not come back together.
            longest = min(config.backoff_max_seconds, config.backoff_seconds * 2 ** (attempt - 1))
            pause = max(self._jitter.uniform(0, longest), last.retry_after)
            if clock() + pause >= end:
                break
            await asyncio.sleep(pause)
        reason = f"{self.server}: {last} (attempt {attempt} of {config.attempts})"
        raise GaveUpError(last.kind, reason, question.cost, of_server=of_server)

    async def _attempt(self, question: _Question[T], role: Role, end: float) -> tuple[T, Usage | None]:
        """One request; when it takes long a second one beside it. The first usable answer counts, the other is
        cancelled.

        Raises `RequestFailed` when both failed, `TimeoutError` when there is no answer at the time `end`.
        """
        clock = asyncio.get_running_loop().time
        tasks = [asyncio.create_task(self._request(question, role))]
        try:
            if self.config.hedge_seconds is not None:
                done, _ = await asyncio.wait(tasks, timeout=min(self.config.hedge_seconds, end - clock()))
                if not done and not self._slots.locked() and not self._breaker.is_open:
                    await self._slots.acquire()  # one is free, so this does not wait
                    tasks.append(asyncio.create_task(self._request(question, "hedge")))
                    tasks[1].add_done_callback(lambda _: self._slots.release())
            running = set(tasks)
            while running:
                done, running = await asyncio.wait(running, timeout=end - clock(), return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    raise TimeoutError
                for task in tasks:
                    if task in done and task.exception() is None:
                        return task.result()
            return tasks[0].result()  # raises
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # until their requests are counted

    async def _request(self, question: _Question[T], role: Role) -> tuple[T, Usage | None]:
        probe = await self._breaker.admit()
        question.requests += 1
        request_id = f"{question.id}-{question.requests}"
        outcome, reason, usage = CANCELLED, "", None
        try:
            answer = await self._endpoint.ask(
                question.messages, question.schema, question.max_tokens, question.seed, request_id
            )
            usage = answer.usage
            value = question.read(answer)
            outcome = ANSWERED
            return value, usage
        except RequestFailed as failure:
            outcome, reason, usage = failure.kind, str(failure), failure.usage
            raise
        except UnusableAnswerError as failure:
            outcome, reason = failure.kind, str(failure)
            raise RequestFailed(outcome, reason) from None
        finally:
            answered = None if outcome == CANCELLED else outcome not in _UNHEALTHY
            self._breaker.report(probe=probe, answered=answered, reason=f"{outcome}: {reason}")
            self._count(question, Request(request_id, role, outcome, self._cost(usage), usage is not None))

    def _count(self, question: _Question[T], request: Request) -> None:
        question.cost += request.cost
        self.account.add(request)

    def _cost(self, usage: Usage | None) -> Cost:
        if usage is None:
            return Cost(requests=1)
        prices = self.config.price_prompt, self.config.price_completion
        return cost_of(usage.prompt_tokens, usage.completion_tokens, *prices)

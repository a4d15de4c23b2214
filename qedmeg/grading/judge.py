"""A language model as a grader: asked again when something goes wrong, and believed only when its verdict is clear."""

import asyncio
import hashlib
import json
import random
import uuid
from dataclasses import dataclass, field, replace

from qedmeg.config import JudgeConfig
from qedmeg.grading.account import ANSWERED, CANCELLED, Account, Request, Role, cost_of
from qedmeg.grading.breaker import Breaker
from qedmeg.grading.cache import GradeCache
from qedmeg.grading.endpoint import Endpoint, RequestFailed, Usage
from qedmeg.grading.grade import Cost, Failed, Grade, Graded, ItemGrade
from qedmeg.grading.grader import AnyProblem
from qedmeg.grading.prompt import Prompt, judged, make_prompt, rules_hash
from qedmeg.grading.rubric import RUBRIC_POINTS
from qedmeg.grading.verdict import Ambiguous, NoVerdict, Verdict

_UNHEALTHY = frozenset({"timeout", "connection", "rate limit", "server error"})
"""Kinds of failure that say that the server is in trouble; for the others it was well enough to answer."""


@dataclass
class _Question:
    """One verdict that is being asked for, and what it has taken so far."""

    prompt: Prompt
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    requests: int = 0
    cost: Cost = field(default_factory=Cost)


class Judge:
    """Asks one model behind one server. Belongs to the event loop in which it is first used.

    Failures are retried by kind: no answer in time, a cut connection, 429 and 5xx, an empty answer and one without a
    clear verdict are; what the server refuses is not. Each request that is sent is counted in `account`.
    Raises `UserError` when the key's environment variable is not set.
    """

    def __init__(self, config: JudgeConfig, cache: GradeCache | None = None, account: Account | None = None) -> None:
        self.config = config
        self.version = _version(config)
        self.account = Account() if account is None else account
        self._cache = cache
        self._endpoint = Endpoint(config)
        self._jitter = random.Random()
        self._slots = asyncio.Semaphore(config.concurrency)
        self._server = f"judge {config.model} at {config.base_url}"
        self._breaker = Breaker(self._server, config.breaker_failures, config.breaker_pause_seconds)

    async def grade(self, problem: AnyProblem, proof: str, vote: int = 0) -> Grade:
        """The judge's grade of a proof, or of a final answer; each `vote` is a verdict of its own.

        A blank proof earns 0 unasked.
        """
        prompt = make_prompt(judged(problem), proof, structured=self.config.structured, reference=self.config.reference)
        if not proof.strip():
            nothing = Verdict(tuple(0 for _ in prompt.of), tuple("the proof is empty" for _ in prompt.of))
            return self._graded(prompt, nothing, Cost())
        key = hashlib.sha256(json.dumps([self.version, vote, prompt.system, prompt.user]).encode()).hexdigest()
        if self._cache is not None and (known := await self._cache.get(key)) is not None:
            self.account.cached += 1
            return replace(known, cost=Cost())
        async with self._slots:
            grade = await self._ask(_Question(prompt))
        if isinstance(grade, Failed):
            self.account.failed[grade.kind] += 1
            return grade
        self.account.graded += 1
        if self._cache is not None:
            await self._cache.put(key, grade)
        return grade

    async def close(self) -> None:
        await self._endpoint.close()

    async def _ask(self, question: _Question) -> Grade:
        config, clock = self.config, asyncio.get_running_loop().time
        end, last_failure = clock() + config.deadline_seconds, "none before"
        for attempt in range(1, config.attempts + 1):
            try:
                verdict = await self._attempt(question, "first" if attempt == 1 else "retry", end)
                return self._graded(question.prompt, verdict, question.cost)
            except TimeoutError:
                reason = f"no verdict within {config.deadline_seconds:g} s; last failure: {last_failure}"
                return Failed("deadline", f"{self._server}: {reason}", question.cost)
            except RequestFailed as failure:
                last, last_failure = failure, f"{failure.kind}: {failure}"
            if not last.retried or attempt == config.attempts:
                break
            # Exponential backoff with full jitter: clients that failed together do not come back together.
            longest = min(config.backoff_max_seconds, config.backoff_seconds * 2 ** (attempt - 1))
            pause = max(self._jitter.uniform(0, longest), last.retry_after)
            if clock() + pause >= end:
                break
            await asyncio.sleep(pause)
        return Failed(last.kind, f"{self._server}: {last} (attempt {attempt} of {config.attempts})", question.cost)

    async def _attempt(self, question: _Question, role: Role, end: float) -> Verdict:
        """One request; when it takes long a second one beside it. The first verdict counts, the other is cancelled.

        Raises `RequestFailed` when both failed, `TimeoutError` when there is no verdict at the time `end`.
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

    async def _request(self, question: _Question, role: Role) -> Verdict:
        probe = await self._breaker.admit()
        question.requests += 1
        request_id = f"{question.id}-{question.requests}"
        prompt = question.prompt
        outcome, reason, usage = CANCELLED, "", None
        try:
            schema = prompt.schema() if self.config.structured else None
            answer = await self._endpoint.ask(prompt.system, prompt.user, schema, request_id)
            usage = answer.usage
            verdict = prompt.read(answer.content)
            outcome = ANSWERED
            return verdict
        except RequestFailed as failure:
            outcome, reason, usage = failure.kind, str(failure), failure.usage
            raise
        except NoVerdict as failure:
            outcome = "ambiguous answer" if isinstance(failure, Ambiguous) else "unreadable answer"
            raise RequestFailed(outcome, str(failure)) from None
        finally:
            answered = None if outcome == CANCELLED else outcome not in _UNHEALTHY
            self._breaker.report(probe=probe, answered=answered, reason=f"{outcome}: {reason}")
            self._count(question, Request(request_id, role, outcome, self._cost(usage), usage is not None))

    def _count(self, question: _Question, request: Request) -> None:
        question.cost += request.cost
        self.account.add(request)

    def _cost(self, usage: Usage | None) -> Cost:
        if usage is None:
            return Cost(requests=1)
        prices = self.config.price_prompt, self.config.price_completion
        return cost_of(usage.prompt_tokens, usage.completion_tokens, *prices)

    def _graded(self, prompt: Prompt, verdict: Verdict, cost: Cost) -> Graded:
        rows = zip(prompt.names, verdict.points, prompt.of, verdict.reasons, strict=True)
        items = tuple(ItemGrade(name, points * prompt.worth, of * prompt.worth, why) for name, points, of, why in rows)
        return Graded(sum(item.points for item in items), RUBRIC_POINTS, items, self.version, cost)


def _version(config: JudgeConfig) -> str:
    """The model, and a hash of the prompts, of how verdicts are read and of the settings that an answer depends on.

    The address is none of them: the same model served elsewhere is the same grader.
    """
    settings = [config.model, config.structured, config.reference, config.temperature]
    settings += [config.reasoning_effort, config.max_tokens, rules_hash()]
    return f"{config.model}/{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]}"

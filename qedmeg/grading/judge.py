"""A language model as a grader, believed only when its verdict is clear."""

import hashlib
import json
from dataclasses import replace

from qedmeg.chat.account import Account
from qedmeg.chat.client import Client, GaveUpError, UnusableAnswerError
from qedmeg.chat.message import Answer, Message
from qedmeg.config import JudgeConfig
from qedmeg.grading.cache import GradeCache
from qedmeg.grading.grade import Cost, Failed, Grade, Graded, ItemGrade
from qedmeg.grading.grader import AnyProblem
from qedmeg.grading.prompt import Prompt, judged, make_prompt, rules_hash
from qedmeg.grading.rubric import RUBRIC_POINTS
from qedmeg.grading.verdict import Ambiguous, NoVerdict, Verdict


class Judge:
    """Asks one model behind one server (see `Client`). Belongs to the event loop in which it is first used.

    Raises `UserError` when the key's environment variable is not set.
    """

    def __init__(self, config: JudgeConfig, cache: GradeCache | None = None, account: Account | None = None) -> None:
        self.config = config
        self.version = _version(config)
        self.client = Client(config, "judge", account)
        self._cache = cache

    @property
    def account(self) -> Account:
        """Of all requests and verdicts."""
        return self.client.account

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
        messages = Message("system", prompt.system), Message("user", prompt.user)
        schema = prompt.schema() if self.config.structured else None
        try:
            found = await self.client.ask(messages, lambda answer: self._read(prompt, answer), schema=schema)
        except GaveUpError as failure:
            self.account.failed[failure.kind] += 1
            return Failed(failure.kind, str(failure), failure.cost, of_grader=failure.of_server)
        grade = self._graded(prompt, found.value, found.cost)
        self.account.graded += 1
        if self._cache is not None:
            await self._cache.put(key, grade)
        return grade

    async def close(self) -> None:
        await self.client.close()

    def _read(self, prompt: Prompt, answer: Answer) -> Verdict:
        if answer.cut_off:
            raise UnusableAnswerError("unreadable answer", f"cut off after max_tokens {self.config.max_tokens}")
        try:
            return prompt.read(answer.content)
        except NoVerdict as failure:
            kind = "ambiguous answer" if isinstance(failure, Ambiguous) else "unreadable answer"
            raise UnusableAnswerError(kind, str(failure)) from None

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
    settings += [] if config.top_p is None else [config.top_p]
    return f"{config.model}/{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]}"

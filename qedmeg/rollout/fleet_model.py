"""The model that is trained, as scaffolds ask it: the run's own engines with the weights that they have."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import numpy as np
import numpy.typing as npt

from qedmeg.chat.account import cost_of
from qedmeg.chat.message import Message
from qedmeg.data.chat import Conversation, opens_thought, tokenise_prompts
from qedmeg.data.tokenizer import Tokenizer
from qedmeg.errors import UserError
from qedmeg.reasoning.call import Call, CallLog, ModelFailedError, Reply
from qedmeg.reasoning.session import least
from qedmeg.rollout.fleet import Fleet, Request
from qedmeg.rollout.grading import without_control_tokens
from qedmeg.rollout.sample import Sample, Sampling
from qedmeg.thinking import split_thinking

SECONDS_TO_GATHER = 0.02
HALF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}"

_Asked = tuple[Request, "asyncio.Future[Sample]"]


class FleetModel:
    """A `Model` over a fleet, whose weights must stay what they are. Belongs to one event loop.

    Asked with the same seed, a server that was started for the exported weights is given the same tokens, and its text
    is read in the same way (`qedmeg.chat.model`).
    """

    def __init__(
        self, name: str, fleet: Fleet, tokenizer: Tokenizer, sampling: Sampling, max_length: int, version: int
    ) -> None:
        """`max_length`: longest prompt and reply, in tokens. `version`: of the weights that the engines have."""
        self.name = name
        self.replies = self.under_way = 0
        """Calls that were answered until now, and those that wait for it."""
        self._fleet, self._tokenizer, self._sampling = fleet, tokenizer, sampling
        self._max_length, self._version = max_length, version
        self._opens_thought = opens_thought(tokenizer)
        self._waiting: list[_Asked] = []
        self._batches: asyncio.Task[None] | None = None

    async def ask(self, call: Call, log: CallLog) -> Reply:
        """The reply to a call; one that was cut off is a reply too.

        Raises:
            ModelFailedError: a message spells a control token, or leaves no room for a reply.
            RuntimeError: the engines' weights were changed.
            NoEngine: see `Fleet.generate`.
        """
        clock = asyncio.get_running_loop().time
        started = clock()
        prompt_P = self._prompt(call.messages)
        room = self._max_length - len(prompt_P)
        if room < 1:
            raise ModelFailedError("no room", f"a prompt of {len(prompt_P)} tokens, and room for {self._max_length}")
        self.under_way += 1
        try:
            sample = await self._sample(Request(prompt_P, call.seed, least(room, call.max_tokens), ahead=True))
        finally:
            self.under_way -= 1
        if sample.versions != ((self._version, 0),):
            raise RuntimeError(f"weights changed within version {self._version}: an answer has {sample.versions}")
        self.replies += 1
        content = without_control_tokens(self._tokenizer, self._tokenizer.decode(sample.tokens_T.tolist()))
        thinking, text = split_thinking(content.rstrip(HALF_A_CHARACTER), begun=self._opens_thought)
        cost = cost_of(len(prompt_P), len(sample.tokens_T), 0.0, 0.0)
        return Reply(text, thinking, sample.finish_reason, len(sample.tokens_T), cost, clock() - started)

    async def close(self) -> None:
        """Give up what is asked."""
        if self._batches is not None:
            self._batches.cancel()
            await asyncio.gather(self._batches, return_exceptions=True)

    def _prompt(self, messages: Sequence[Message]) -> npt.NDArray[np.int32]:
        plain = tuple({"role": message.role, "content": message.content} for message in messages)
        try:
            return tokenise_prompts(self._tokenizer, [Conversation(plain, "a call")])[0]
        except UserError as error:
            raise ModelFailedError("refused", str(error)) from None

    async def _sample(self, request: Request) -> Sample:
        found: asyncio.Future[Sample] = asyncio.get_running_loop().create_future()
        if not self._fleet.one_batch_at_a_time:
            await self._generate([(request, found)])
            return found.result()
        self._waiting.append((request, found))
        if self._batches is None or self._batches.done():
            self._batches = asyncio.create_task(self._work_through())
        return await found

    async def _work_through(self) -> None:
        """Batch after batch, each of all calls that came while the one before it was generated."""
        while self._waiting:
            count = 0
            while count < len(self._waiting):  # calls that one answer or the beginning has set free come close together
                count = len(self._waiting)
                await asyncio.sleep(SECONDS_TO_GATHER)
            batch, self._waiting = self._waiting, []
            try:
                await self._generate(batch)
            except Exception as error:
                for _, found in batch:
                    if not found.done():
                        found.set_exception(error)

    async def _generate(self, batch: Sequence[_Asked]) -> None:
        requests = [request for request, _ in batch]
        async with aclosing(self._fleet.generate(requests, self._sampling)) as samples:  # type: ignore[type-var]
            async for index, sample in samples:
                if not batch[index][1].done():  # nobody waits any more for one that is
                    batch[index][1].set_result(sample)

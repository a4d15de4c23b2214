"""A model behind a server, as scaffolds ask it."""

import asyncio
import hashlib
import json

from qedmeg.chat.account import Account
from qedmeg.chat.client import Client, GaveUpError
from qedmeg.chat.message import Answer
from qedmeg.config import EndpointConfig
from qedmeg.reasoning.call import Call, CallLog, ModelFailedError, Reply
from qedmeg.thinking import split_thinking


class ServedModel:
    """A `Model` behind an OpenAI-compatible server. Belongs to the event loop in which it is first used."""

    def __init__(self, config: EndpointConfig, *, opens_thought: bool = False) -> None:
        """`opens_thought`: its prompts end with `<think>`, of which a reply that is cut off says nothing.

        Raises UserError when the key's environment variable is not set.
        """
        self.name = _name(config)
        self._client = Client(config)
        self._opens_thought = opens_thought

    @property
    def account(self) -> Account:
        """Of all requests."""
        return self._client.account

    async def ask(self, call: Call, log: CallLog) -> Reply:
        """The reply to a call; one that was cut off is a reply too."""
        clock = asyncio.get_running_loop().time
        started = clock()
        try:
            seed = call.seed if self._client.config.seeded else None
            used = await self._client.ask(call.messages, self._read, max_tokens=call.max_tokens, seed=seed)
        except GaveUpError as failure:
            raise ModelFailedError(failure.kind, str(failure), failure.cost) from None
        text, thinking, cut_off = used.value
        tokens = 0 if used.usage is None else used.usage.completion_tokens
        return Reply(text, thinking, "length" if cut_off else "stop", tokens, used.cost, clock() - started)

    def greedy(self) -> "ServedModel":
        """The same at temperature 0, over connections of its own."""
        greedy = self._client.config.model_copy(update={"temperature": 0.0})
        return ServedModel(greedy, opens_thought=self._opens_thought)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _read(self, answer: Answer) -> tuple[str, str, bool]:
        """Final message, thinking, and whether it was cut off."""
        thinking, text = split_thinking(answer.content, begun=self._opens_thought)
        return text, "\n\n".join(part for part in (answer.thinking, thinking) if part), answer.cut_off


def _name(config: EndpointConfig) -> str:
    """The model, and a hash of the settings that an answer depends on. The address is none of them."""
    settings = [config.temperature, config.top_p, config.reasoning_effort, config.max_tokens]
    return f"{config.model}/{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]}"

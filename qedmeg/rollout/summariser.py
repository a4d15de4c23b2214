"""A frozen model that summarises for chains of the reasoning cache."""

from typing import Protocol

from qedmeg.chat.message import Message
from qedmeg.chat.model import ServedModel
from qedmeg.config import EndpointConfig
from qedmeg.reasoning.call import Call, Reply
from qedmeg.reasoning.reasoning_cache import SUMMARISER


class Summariser(Protocol):
    """A frozen model that is asked for summaries."""

    async def summarise(self, messages: tuple[Message, ...], max_tokens: int) -> Reply:
        """Raises ModelFailedError when it gives none."""


class ServedSummariser:
    """A frozen summariser behind an OpenAI-compatible server."""

    def __init__(self, config: EndpointConfig) -> None:
        """Raises UserError when the key's environment variable is not set."""
        self._model = ServedModel(config)

    async def summarise(self, messages: tuple[Message, ...], max_tokens: int) -> Reply:
        """Raises ModelFailedError when it gives none."""
        return await self._model.ask(Call("summarise", SUMMARISER, messages, max_tokens), _NoLog())

    async def close(self) -> None:
        """Close the connections."""
        await self._model.close()


class _NoLog:
    """Turns are kept in the store."""

    async def find(self, model: str, call: Call) -> Reply | None:
        return None

    async def keep(self, model: str, call: Call, reply: Reply) -> None: ...

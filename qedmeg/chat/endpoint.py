"""One request to an OpenAI-compatible server, and what became of it."""

import asyncio
import email.utils
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import openai
from pydantic import BaseModel, ValidationError

from qedmeg.chat.message import Answer, Message, RequestFailed, Usage
from qedmeg.config import EndpointConfig
from qedmeg.errors import UserError
from qedmeg.fence import sendable

NO_KEY = "none"  # for servers that ask for none; the client wants something to send
MAX_REASON_CHARS = 300
_REFUSED_STATUS = frozenset({400, 413, 422})  # of this request; by others all are, as with a wrong key
_RETRIED_STATUS = frozenset({408, 409, 425, 429})  # and all from 500 on


class Endpoint:
    """A model behind an address. Raises `UserError` when the environment variable that holds its key is not set."""

    def __init__(self, config: EndpointConfig) -> None:
        key = NO_KEY if config.api_key_env is None else os.environ.get(config.api_key_env, "")
        if not key:
            raise UserError(f"api_key_env: the environment variable '{config.api_key_env}' is not set")
        self._key = key
        self._config = config
        self._client = openai.AsyncOpenAI(
            api_key=key, base_url=config.base_url, max_retries=0, timeout=config.timeout_seconds
        )

    async def ask(
        self,
        messages: Sequence[Message],
        schema: dict[str, Any] | None,
        max_tokens: int | None,
        seed: int | None,
        request_id: str,
    ) -> Answer:
        """The answer to one request, which carries `request_id` in a header for whoever compares logs.

        `max_tokens` may allow fewer than the settings do. Raises `RequestFailed`. Does not wait longer than
        `timeout_seconds`, however slowly the answer drips in.
        """
        config = self._config
        turns: Any = [asdict(message) for message in messages]
        sampling: dict[str, Any] = {
            name: value
            for name in ("temperature", "top_p", "reasoning_effort")
            if (value := getattr(config, name)) is not None
        }
        limits = [limit for limit in (config.max_tokens, max_tokens) if limit is not None]
        if limits:
            sampling["max_completion_tokens"] = min(limits)
        if seed is not None:
            sampling["seed"] = seed
        if schema is not None:
            sampling["response_format"] = _response_format(schema)
        try:
            async with asyncio.timeout(config.timeout_seconds):
                response = await self._client.chat.completions.with_raw_response.create(
                    model=config.model,
                    messages=turns,
                    extra_headers={"X-Client-Request-Id": request_id},
                    **sampling,
                )
        except (TimeoutError, openai.APITimeoutError):
            raise RequestFailed("timeout", f"no answer within {config.timeout_seconds:g} s") from None
        except openai.APIConnectionError as error:
            raise RequestFailed("connection", self._shown(str(error.__cause__ or error))) from None
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        return self._answer(response.content)

    async def close(self) -> None:
        await self._client.close()

    def _refusal(self, error: openai.APIStatusError) -> RequestFailed:
        reason = self._shown(f"status {error.status_code}: {error.message}")
        if error.status_code == 429 and error.code != "insufficient_quota":  # which no waiting mends
            return RequestFailed("rate limit", reason, retry_after=_retry_after(error.response.headers))
        if error.status_code >= 500 or error.status_code in _RETRIED_STATUS - {429}:
            return RequestFailed("server error", reason, retry_after=_retry_after(error.response.headers))
        kind = "refused" if error.status_code in _REFUSED_STATUS else "no access"
        return RequestFailed(kind, reason, retried=False)

    def _answer(self, body: bytes) -> Answer:
        usage = _usage(body)  # read on its own: an answer that is of no use may still cost
        try:
            choices = _Completion.model_validate_json(body).choices
        except ValidationError:
            kind = "unreadable answer" if body.strip() else "empty answer"
            reason = self._shown(f"no chat completion: {body.decode('utf-8', errors='replace')}")
            raise RequestFailed(kind, reason, usage=usage) from None
        if not choices:
            raise RequestFailed("empty answer", "no choices", usage=usage)
        message, finish_reason = choices[0].message, choices[0].finish_reason
        content, thinking = message.content or "", message.reasoning_content or message.reasoning or ""
        cut_off = finish_reason == "length"
        # a server that samples by seeds would answer the same again: then it is what the model has to say
        if not content.strip() and not cut_off and not self._config.seeded:
            raise RequestFailed("empty answer", self._shown(f"finish reason {finish_reason!r}"), usage=usage)
        return Answer(content, thinking, cut_off, usage)

    def _shown(self, text: str) -> str:
        """Short, in one line, in Unicode that can be kept, and without the key, which some servers repeat when they
        refuse it."""
        if self._key != NO_KEY:
            text = text.replace(self._key, "[key]")
        return sendable(" ".join(text.split())[:MAX_REASON_CHARS])


class _Message(BaseModel):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    """Servers call it the one or the other."""


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Completion(BaseModel):
    """What is read of a chat completion; servers differ in the rest."""

    choices: list[_Choice]


class _Billed(BaseModel):
    usage: Usage


def _usage(body: bytes) -> Usage | None:
    try:
        return _Billed.model_validate_json(body).usage
    except ValidationError:
        return None


def _response_format(schema: dict[str, Any]) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema}}


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait, 0 where it does not say (RFC 9110, 10.2.3: seconds or a date)."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0

"""What a model is told over a chat endpoint, and what it says. Apart from the client, which takes most of a second to
import: training knows of messages too, and asks nobody."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, Field


class Usage(BaseModel):
    """Tokens that the server counted."""

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Answer:
    """What a model said."""

    content: str
    """Its message, which may hold its thinking where the server leaves it there."""
    thinking: str
    """What it thought before, where the server keeps the two apart."""
    cut_off: bool
    """Whether it ended at the most tokens that were allowed."""
    usage: Usage | None


class RequestFailed(Exception):
    """A request without an answer: `kind` in two words, the message what was said. `usage` where the server told."""

    def __init__(
        self, kind: str, reason: str, *, retried: bool = True, retry_after: float = 0.0, usage: Usage | None = None
    ) -> None:
        super().__init__(reason)
        self.kind, self.retried, self.retry_after, self.usage = kind, retried, retry_after, usage

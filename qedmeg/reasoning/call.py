"""What a scaffold asks a model, and what comes back."""

from dataclasses import dataclass
from typing import Literal, Protocol

from qedmeg.chat.message import Message as Message
from qedmeg.grading.grade import Cost


@dataclass(frozen=True)
class Call:
    """One question to one of a scaffold's models."""

    path: str
    """Where in the scaffold it is asked, such as `round 2/verify 3`: no two calls about a problem share it, and `/`
    makes a tree of them."""
    role: str
    """Which of the scaffold's models is asked: `prover`, `improver`, `verifier`, `selector`, `summariser` or
    `planner`."""
    messages: tuple[Message, ...]
    max_tokens: int | None = None
    """Most tokens of the reply, thinking included. None: what the model's own settings allow."""
    seed: int = 0
    """Of the sampling, where the model takes one. The session gives each call its own."""


@dataclass(frozen=True)
class Reply:
    """What a model answered."""

    text: str
    """Its final message."""
    thinking: str
    """What it wrote before that, where the two can be told apart; of a reply that was cut off perhaps all there is."""
    finish_reason: Literal["stop", "length"]
    tokens: int
    """Generated for it, thinking included."""
    cost: Cost
    """Of all requests that it took, failed ones too."""
    seconds: float


class ModelFailedError(Exception):
    """A model that gave no reply, however often it was asked. `kind` names the failure in two words."""

    def __init__(self, kind: str, reason: str, cost: Cost = Cost()) -> None:  # noqa: B008  (frozen)
        super().__init__(reason)
        self.kind, self.cost = kind, cost


class CallLog(Protocol):
    """Where replies about one attempt at a problem are kept, so that a run that was stopped asks nothing twice."""

    async def find(self, model: str, call: Call) -> Reply | None:
        """The reply that this model once gave to this very call."""

    async def keep(self, model: str, call: Call, reply: Reply) -> None:
        """Keep a reply. Once this returns, it is on disk."""


class Model(Protocol):
    """Whoever answers calls: a model behind a server, or a scaffold that stands in its place."""

    @property
    def name(self) -> str:
        """Changes with whatever may change an answer: the model, its sampling settings, the scaffold."""

    async def ask(self, call: Call, log: CallLog) -> Reply:
        """The reply to a call. A model that makes calls of its own keeps them in `log`, below the path of this one.

        Raises:
            ModelFailedError: there is none.
        """

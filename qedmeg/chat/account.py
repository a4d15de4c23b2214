"""What a judge was asked and what it cost."""

from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from qedmeg.grading.grade import Cost

ANSWERED = "answered"
CANCELLED = "cancelled"

Role = Literal["first", "retry", "hedge"]


@dataclass(frozen=True)
class Request:
    """One request that has come to its end.

    `outcome` is `answered` (with a verdict), `cancelled` (another was faster, or the grade's time was up) or the kind
    of failure. `tokens_known` is whether the server said what it took.
    """

    id: str
    role: Role
    outcome: str
    cost: Cost
    tokens_known: bool


@dataclass
class Account:
    """Sums over requests and verdicts. Each request that was sent is counted once, when it ends."""

    requests: int = 0
    retries: int = 0
    hedges: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    """Requests by outcome."""
    tokens_unknown: int = 0
    """Requests whose tokens no server reported: it failed, or was cut off before its answer."""
    cost: Cost = field(default_factory=Cost)
    graded: int = 0
    """Verdicts that a judge gave."""
    cached: int = 0
    """Verdicts that were known already."""
    failed: Counter[str] = field(default_factory=Counter)
    """Verdicts given up, by kind of failure."""

    def add(self, request: Request) -> None:
        """Count a request."""
        self.requests += 1
        self.retries += request.role == "retry"
        self.hedges += request.role == "hedge"
        self.outcomes[request.outcome] += 1
        self.tokens_unknown += not request.tokens_known
        self.cost += request.cost

    def __add__(self, other: "Account") -> "Account":
        return Account(
            self.requests + other.requests,
            self.retries + other.retries,
            self.hedges + other.hedges,
            self.outcomes + other.outcomes,
            self.tokens_unknown + other.tokens_unknown,
            self.cost + other.cost,
            self.graded + other.graded,
            self.cached + other.cached,
            self.failed + other.failed,
        )

    def to_json(self) -> dict[str, Any]:
        """All of it in numbers, the money as a float."""
        return {
            "requests": self.requests,
            "retries": self.retries,
            "hedges": self.hedges,
            "outcomes": dict(sorted(self.outcomes.items())),
            "tokens_unknown": self.tokens_unknown,
            "prompt_tokens": self.cost.prompt_tokens,
            "completion_tokens": self.cost.completion_tokens,
            "money": float(self.cost.money),
            "graded": self.graded,
            "cached": self.cached,
            "failed": dict(sorted(self.failed.items())),
        }


def cost_of(prompt_tokens: int, completion_tokens: int, prompt_price: float, completion_price: float) -> Cost:
    """The cost of one request; prices are for a million tokens."""
    money = prompt_tokens * Decimal(repr(prompt_price)) + completion_tokens * Decimal(repr(completion_price))
    return Cost(1, prompt_tokens, completion_tokens, money / 1_000_000)

"""The grade of a proof: points, or the statement that there is none."""

from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True)
class Cost:
    """What a grade took: requests sent, tokens that servers reported for them, and their price.

    `money` is in the currency of the settings' prices; a decimal, so that sums are exact in any order.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: Decimal = Decimal(0)

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.money + other.money,
        )


@dataclass(frozen=True)
class ItemGrade:
    """One rubric item's outcome: `points` of `of`, and the reason in a few words."""

    name: str
    points: float
    of: int
    reason: str


@dataclass(frozen=True)
class Graded:
    """A proof that was graded: `points` of `of`, the sum over `items`.

    A single grader gives whole points. The mean of several votes need not be whole, and is not rounded: that would
    throw away what the votes were asked for.
    """

    points: float
    of: int
    items: tuple[ItemGrade, ...]
    grader: str
    """Version of the grader that gave them."""
    cost: Cost = Cost()
    votes: tuple[float, ...] = ()
    """The points that each vote gave, where several were asked for."""


@dataclass(frozen=True)
class Failed:
    """A proof that was not graded. Never a zero: it enters no mean, no baseline and no loss.

    `kind` names the class of failure for whoever reads of it ("timeout", "unreadable answer", ...).
    """

    kind: str
    reason: str
    cost: Cost = Cost()
    of_grader: bool = False
    """The grader was in trouble, which says nothing about the proof: it may be graded later. Else it is this proof that
    was refused, or of which no clear verdict came."""


Grade = Graded | Failed

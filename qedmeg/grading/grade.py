"""The grade of a proof: points, or the statement that there is none."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ItemGrade:
    """One rubric item's outcome: `points` of `of`, and the reason in a few words."""

    name: str
    points: int
    of: int
    reason: str


@dataclass(frozen=True)
class Graded:
    """A proof that was graded: `points` of `of`, the sum over `items`; `grader` names who gave them."""

    points: int
    of: int
    items: tuple[ItemGrade, ...]
    grader: str


@dataclass(frozen=True)
class Failed:
    """A proof that was not graded. Never a zero: it enters no mean, no baseline and no loss.

    `kind` names the class of failure for whoever decides on a retry ("timeout", "unreadable answer", ...).
    """

    kind: str
    reason: str


Grade = Graded | Failed

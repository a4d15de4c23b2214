"""What attempts come to: means of 7 over those that are graded, with the others counted apart."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

from qedmeg.viewer.entry import Entry

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Summary:
    """Of some attempts. What is failed or ungraded enters no mean of points."""

    mean: float | None
    """Of 7; each graded attempt counts once."""
    graded: int
    failed: int
    ungraded: int
    tokens: float | None
    """Mean of an attempt."""
    money: float
    """Of all attempts."""

    @property
    def attempts(self) -> int:
        return self.graded + self.failed + self.ungraded


def summarise(entries: Sequence[Entry], grader: str = "") -> Summary:
    """Points, counts, tokens and cost of these attempts."""
    scores = [entry.score(grader) for entry in entries]
    points = [score.points for score in scores if score is not None and score.points is not None]
    ungraded = sum(score is None for score in scores)
    return Summary(
        mean=fmean(points) if points else None,
        graded=len(points),
        failed=len(entries) - len(points) - ungraded,
        ungraded=ungraded,
        tokens=fmean(entry.tokens for entry in entries) if entries else None,
        money=sum(entry.money for entry in entries),
    )


def grouped(entries: Iterable[Entry], key: Callable[[Entry], K]) -> dict[K, list[Entry]]:
    """Attempts by key, in the order of their first."""
    groups: dict[K, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[key(entry)].append(entry)
    return dict(groups)

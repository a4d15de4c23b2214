"""Which attempts are shown: read from a page's address, so that the address can be kept and sent."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, get_args
from urllib.parse import urlencode

from multidict import MultiMapping

from qedmeg.errors import UserError
from qedmeg.grading.rubric import RUBRIC_POINTS
from qedmeg.viewer.entry import Entry, ShownProblem, State

ORDERS: Mapping[str, str] = {"": "as made", "best": "best first", "worst": "worst first", "longest": "longest first"}


@dataclass(frozen=True)
class Filters:
    """All of them together must hold; an empty one lets all attempts through."""

    run: tuple[str, ...] = ()
    """Keys of runs, one of which it must be."""
    benchmark: str = ""
    level: str = ""
    category: str = ""
    q: str = ""
    """Words that must all be in the problem's id or statement, in any case."""
    low: float | None = None
    high: float | None = None
    """Points of 7, both included; an attempt without a grade has none."""
    state: str = ""
    ended: str = ""
    by_hand: str = ""
    """`yes` or `no`: whether a person has graded it here."""
    grader: str = ""
    """Whose grades count. Empty: each run's first."""
    order: str = ""
    """Of a problem's attempts: a key of `ORDERS`."""

    def query(self, **others: Any) -> str:
        """The part of an address after `?`, with `others` before the filters; defaults and None are left out."""
        pairs = [(name, str(value)) for name, value in others.items() if value is not None]
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                pairs += [(field.name, one) for one in value]
            elif value != field.default:
                pairs.append((field.name, f"{value:g}" if isinstance(value, float) else value))
        return urlencode(pairs, errors="replace")

    def with_(self, **changes: Any) -> "Filters":
        """The same with other values."""
        return replace(self, **changes)


def read_filters(query: MultiMapping[str]) -> Filters:
    """The filters in an address. Raises UserError naming the field and the value of one that cannot be."""
    texts = {
        field.name: query.get(field.name, "") for field in fields(Filters) if field.name not in ("run", "low", "high")
    }
    for name, allowed in (("state", get_args(State)), ("by_hand", ("yes", "no")), ("order", tuple(ORDERS))):
        if texts[name] and texts[name] not in allowed:
            raise UserError(f"{name}: '{texts[name]}': expected one of {', '.join(filter(None, allowed))}")
    return Filters(
        run=tuple(dict.fromkeys(query.getall("run", []))),
        low=_points(query, "low"),
        high=_points(query, "high"),
        **texts,
    )


def _points(query: MultiMapping[str], name: str) -> float | None:
    text = query.get(name, "").strip()
    if not text:
        return None
    try:
        points = float(text)
    except ValueError:
        points = -1.0
    if not 0 <= points <= RUBRIC_POINTS:
        raise UserError(f"{name}: '{text}': expected points from 0 to {RUBRIC_POINTS}")
    return points


def select(filters: Filters, entries: Iterable[Entry], graded_by_hand: Callable[[Entry], bool]) -> list[Entry]:
    """The attempts that the filters let through, in their order."""
    words = filters.q.casefold().split()
    suits: dict[ShownProblem, bool] = {}
    for_points = filters.low is not None or filters.high is not None
    low = 0.0 if filters.low is None else filters.low
    high = float(RUBRIC_POINTS) if filters.high is None else filters.high
    chosen = []
    for entry in entries:
        if filters.run and entry.run.key not in filters.run:
            continue
        problem = entry.problem
        suited = suits.get(problem)
        if suited is None:
            suited = suits[problem] = _suits(filters, problem, words)
        if not suited or (filters.ended and entry.ended != filters.ended):
            continue
        if filters.state and entry.state(filters.grader) != filters.state:
            continue
        if for_points:
            score = entry.score(filters.grader)
            if score is None or score.points is None or not low <= score.points <= high:
                continue
        if filters.by_hand and graded_by_hand(entry) != (filters.by_hand == "yes"):
            continue
        chosen.append(entry)
    return chosen


def _suits(filters: Filters, problem: ShownProblem, words: Sequence[str]) -> bool:
    if filters.benchmark and problem.benchmark != filters.benchmark:
        return False
    if filters.level and problem.level != filters.level:
        return False
    if filters.category and problem.category != filters.category:
        return False
    text = f"{problem.id}\n{problem.statement}".casefold() if words else ""
    return all(word in text for word in words)


def ordered(filters: Filters, entries: Sequence[Entry]) -> list[Entry]:
    """Attempts at one problem in the order asked for. What has no grade comes last where the order is by points."""

    def points(entry: Entry) -> float | None:
        score = entry.score(filters.grader)
        return None if score is None else score.points

    def by_points(sign: int) -> Callable[[Entry], tuple[bool, float]]:
        return lambda entry: (points(entry) is None, sign * (points(entry) or 0.0))

    if filters.order == "best":
        return sorted(entries, key=by_points(-1))
    if filters.order == "worst":
        return sorted(entries, key=by_points(1))
    if filters.order == "longest":
        return sorted(entries, key=lambda entry: -entry.tokens)
    return list(entries)

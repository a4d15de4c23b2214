"""What templates show of a problem and of an attempt."""

from dataclasses import dataclass
from decimal import Decimal

from qedmeg.grading.grade import Failed, Graded
from qedmeg.viewer.entry import Entry, GivenGrade, Reading, Run, Score, ShownProblem
from qedmeg.viewer.filters import Filters
from qedmeg.viewer.hand import HandGrade, guidelines, rubric_items
from qedmeg.viewer.plot import COLOURS
from qedmeg.viewer.site import (
    STATEMENT_PART,
    Prose,
    Site,
    attempt_query,
    attempt_text,
    problem_query,
    problem_text,
    prose,
)
from qedmeg.viewer.text import PART

_REASON_PART = 6_000


@dataclass(frozen=True)
class ShownItem:
    """A rubric item with what it earned."""

    name: str
    points: float
    of: int
    reason: Prose | None


@dataclass(frozen=True)
class ShownGrade:
    """A grade of an attempt."""

    grader: str
    regrade: int
    graded: Graded | None
    failed: Failed | None
    failure: Prose | None
    items: list[ShownItem]
    money: Decimal


@dataclass(frozen=True)
class Card:
    """An attempt."""

    entry: Entry
    score: Score | None
    reading: Reading
    proof: Prose | None
    grades: list[ShownGrade]
    """The one that counts first, where there is one."""
    hand: HandGrade | None
    colour: int
    """Of its run, as in plots."""
    query: str


@dataclass(frozen=True)
class ProblemCard:
    """A problem with what it is graded by."""

    problem: ShownProblem
    statement: Prose | None
    reference: Prose | None
    rubric: Prose | None
    """In words."""
    items: list[tuple[str, int, Prose | None]]
    """Name, points and text of each rubric item, where it has such."""
    query: str


def card(site: Site, entry: Entry, filters: Filters, size: int = PART) -> Card:
    """What is shown of an attempt; `size`: characters of its proof."""
    reading = site.catalogue.source(entry).read(entry)
    counts = filters.grader or next(iter(entry.run.graders), "")
    numbered = list(enumerate(reading.grades))
    numbered.sort(key=lambda pair: (pair[1].grader != counts, pair[1].regrade))
    return Card(
        entry=entry,
        score=entry.score(filters.grader),
        reading=reading,
        proof=prose(reading.text, attempt_text(entry, "proof"), size),
        grades=[_shown(entry, number, given) for number, given in numbered],
        hand=site.catalogue.hand_grade(entry),
        colour=colour_of(site, entry.run),
        query=attempt_query(entry, filters),
    )


def problem_card(problem: ShownProblem, filters: Filters) -> ProblemCard:
    """What is shown of a problem."""
    items = rubric_items(problem)

    def text(what: str, content: str | None) -> Prose | None:
        return prose(content, problem_text(problem, what), STATEMENT_PART)

    return ProblemCard(
        problem=problem,
        statement=text("statement", problem.statement or None),
        reference=text("reference", problem.reference),
        rubric=None if items else text("rubric", guidelines(problem)),
        items=[(item.name, item.points, prose(item.text, problem_text(problem, "rubric"))) for item in items],
        query=problem_query(problem, filters),
    )


def colour_of(site: Site, run: Run) -> int:
    """The class of colour of a run."""
    return list(site.catalogue.snapshot().sources).index(run.key) % COLOURS


def _shown(entry: Entry, number: int, given: GivenGrade) -> ShownGrade:
    grade = given.grade
    if isinstance(grade, Failed):
        failure = prose(grade.reason, attempt_text(entry, f"failure-{number}"), _REASON_PART)
        return ShownGrade(given.grader, given.regrade, None, grade, failure, [], grade.cost.money)
    items = [
        ShownItem(
            item.name,
            item.points,
            item.of,
            prose(item.reason or None, attempt_text(entry, f"reason-{number}-{place}"), _REASON_PART),
        )
        for place, item in enumerate(grade.items)
    ]
    return ShownGrade(given.grader, given.regrade, grade, None, None, items, grade.cost.money)

"""Grading by hand: one attempt after the other, without the name of its run and what the machine gave it."""

from collections.abc import Mapping, Sequence

from multidict import MultiMapping

from qedmeg.errors import UserError
from qedmeg.grading.grader import AnswerProblem
from qedmeg.grading.rubric import RUBRIC_POINTS
from qedmeg.viewer.cards import card, problem_card
from qedmeg.viewer.entry import Entry
from qedmeg.viewer.filters import read_filters
from qedmeg.viewer.hand import HandGrade, key_of, rubric_items, save_hand_grade
from qedmeg.viewer.site import NotFoundError, Site, asked_attempt, attempt_query

LONGEST_NOTE = 20_000  # characters

Query = MultiMapping[str]


def grade_page(site: Site, query: Query) -> str:
    """The form for the attempt that is asked for, else for the first that nobody has graded yet."""
    filters = read_filters(query)
    queue = site.catalogue.select(filters)
    if not queue:
        raise NotFoundError("the filters let no attempt through; take one away")
    entry = asked_attempt(site, query) if "r" in query else (_next(site, queue, -1) or queue[0])
    at = queue.index(entry) if entry in queue else -1
    machine = query.get("machine") == "1"
    kept = _machine(query)
    problem = site.catalogue.snapshot().problems[entry.problem.benchmark, entry.problem.id]

    def address(other: Entry) -> str:
        return f"/grade?{attempt_query(other, filters, **kept)}"

    return site.page(
        "grade.html.jinja",
        filters,
        one=card(site, entry, filters),
        problem=problem_card(problem, filters),
        items=rubric_items(problem),
        scale=[0, RUBRIC_POINTS] if isinstance(problem.problem, AnswerProblem) else list(range(RUBRIC_POINTS + 1)),
        token=site.token,
        action=address(entry),
        machine=machine,
        other_view=f"/grade?{attempt_query(entry, filters, machine=None if machine else 1)}",
        before=address(queue[at - 1]) if at > 0 else None,
        after=address(queue[at + 1]) if 0 <= at < len(queue) - 1 else None,
        place=at + 1,
        count=len(queue),
        done=sum(site.catalogue.hand_grade(one) is not None for one in queue),
        file=site.catalogue.hand_file(entry),
        longest_note=LONGEST_NOTE,
    )


def save(site: Site, query: Query, form: Query) -> str:
    """Keep a grade; the address to go on at: of the next attempt that nobody has graded, else of the same.

    Raises:
        UserError: a field is missing or out of its range, or the file cannot be written.
    """
    filters = read_filters(query)
    entry = asked_attempt(site, query)
    problem = site.catalogue.snapshot().problems[entry.problem.benchmark, entry.problem.id]
    items = rubric_items(problem)
    note = form.get("note", "").replace("\r\n", "\n").strip()
    if len(note) > LONGEST_NOTE:
        raise UserError(f"note: {len(note):,} characters: expected at most {LONGEST_NOTE:,}")
    if items:
        by_item = {item.name: _points(form, f"item-{n}", item.points) for n, item in enumerate(items)}
        grade = HandGrade(sum(by_item.values()), by_item, note)
    else:
        grade = HandGrade(_points(form, "points", RUBRIC_POINTS), {}, note)
    queue = site.catalogue.select(filters)  # before it is graded: the filters may let it through no more
    at = queue.index(entry) if entry in queue else -1
    source = site.catalogue.source(entry)
    proof = source.read(entry).text or ""
    save_hand_grade(site.catalogue.hand_file(entry), key_of(source.path, entry), problem, proof, grade)
    following = _next(site, queue, at) or entry
    return f"/grade?{attempt_query(following, filters, **_machine(query), saved=1)}"


def _machine(query: Query) -> Mapping[str, int]:
    return {"machine": 1} if query.get("machine") == "1" else {}


def _next(site: Site, queue: Sequence[Entry], at: int) -> Entry | None:
    """The first attempt after a place, or else before it, that nobody has graded."""
    around = [*queue[at + 1 :], *queue[: at + 1]]
    return next((entry for entry in around if site.catalogue.hand_grade(entry) is None), None)


def _points(form: Query, name: str, most: int) -> int:
    text = form.get(name, "")
    if text not in {str(points) for points in range(most + 1)}:
        raise UserError(f"{name}: '{text[:20]}': expected whole points from 0 to {most}; choose one for every item")
    return int(text)

"""What all pages are made of: the files, the templates, and how an address names an attempt or a problem."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import jinja2
from multidict import MultiMapping

from qedmeg.errors import UserError
from qedmeg.monitor.page import environment
from qedmeg.viewer.catalogue import Catalogue, Snapshot
from qedmeg.viewer.entry import Entry, ShownProblem
from qedmeg.viewer.filters import ORDERS, Filters
from qedmeg.viewer.text import PART, Part, part_of

STATEMENT_PART = 20_000


class NotFoundError(UserError):
    """The address names nothing that is there."""


@dataclass(frozen=True)
class Site:
    """What a page is made from."""

    catalogue: Catalogue
    token: str
    templates: jinja2.Environment = field(default_factory=lambda: environment("qedmeg.viewer"))

    def page(self, template: str, filters: Filters, **values: Any) -> str:
        """A page as HTML."""
        return self.templates.get_template(template).render(filters=filters, orders=ORDERS, **values)


@dataclass(frozen=True)
class Prose:
    """A text that somebody wrote, or its first part."""

    part: Part
    more: str = ""
    """Where it goes on."""


@dataclass(frozen=True)
class Choices:
    """The values that filters can have here."""

    benchmarks: Sequence[str]
    levels: Sequence[str]
    categories: Sequence[str]
    ended: Sequence[str]
    graders: Sequence[str]


def choices(snapshot: Snapshot) -> Choices:
    """All that occur."""
    problems = snapshot.problems.values()
    return Choices(
        benchmarks=list(dict.fromkeys(run.benchmark for run in snapshot.runs)),
        levels=sorted({problem.level for problem in problems if problem.level}),
        categories=sorted({problem.category for problem in problems if problem.category}),
        ended=sorted({entry.ended for entry in snapshot.entries}),
        graders=list(dict.fromkeys(grader for run in snapshot.runs for grader in run.graders)),
    )


# --- addresses ------------------------------------------------------------------------------------------------------


def attempt_query(entry: Entry, filters: Filters, **others: Any) -> str:
    """The part of an address after `?` that names an attempt."""
    return filters.query(r=entry.run.key, p=entry.problem.id, n=entry.sample, **others)


def problem_query(problem: ShownProblem, filters: Filters, **others: Any) -> str:
    """The part of an address after `?` that names a problem."""
    return filters.query(b=problem.benchmark, p=problem.id, **others)


def asked_attempt(site: Site, query: MultiMapping[str]) -> Entry:
    """The attempt that an address names. Raises NotFoundError."""
    entry = site.catalogue.snapshot().by_name.get((query.get("r", ""), query.get("p", ""), number(query, "n", -1)))
    if entry is None:
        raise NotFoundError("there is no such attempt in the files that are shown")
    return entry


def asked_problem(site: Site, query: MultiMapping[str]) -> ShownProblem:
    """The problem that an address names. Raises NotFoundError."""
    problem = site.catalogue.snapshot().problems.get((query.get("b", ""), query.get("p", "")))
    if problem is None:
        raise NotFoundError("there is no such problem in the files that are shown")
    return problem


def number(query: MultiMapping[str], name: str, default: int) -> int:
    """A whole number in an address, or the default where there is none."""
    text = query.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else default


# --- texts ----------------------------------------------------------------------------------------------------------


def prose(text: str | None, address: str = "", size: int = PART) -> Prose | None:
    """A text as it is first shown; what is longer than `size` goes on at `address`. None for no text."""
    if text is None:
        return None
    part = part_of(text, 1, size)
    return Prose(part, address if part.parts > 1 else "")


def attempt_text(entry: Entry, what: str) -> str:
    """Where a text of an attempt is shown part by part."""
    return "/text?" + urlencode({"r": entry.run.key, "p": entry.problem.id, "n": entry.sample, "what": what})


def problem_text(problem: ShownProblem, what: str) -> str:
    """Where a text of a problem is shown part by part."""
    return "/text?" + urlencode({"b": problem.benchmark, "p": problem.id, "what": what})

"""The pages that are read: runs beside each other, a problem, an attempt, two attempts beside each other."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from multidict import MultiMapping

from qedmeg.grading.rubric import RUBRIC_POINTS
from qedmeg.viewer.cards import card, colour_of, problem_card
from qedmeg.viewer.entry import Entry, ShownProblem
from qedmeg.viewer.filters import Filters, ordered, read_filters
from qedmeg.viewer.plot import Dot, scatter
from qedmeg.viewer.site import (
    NotFoundError,
    Site,
    asked_attempt,
    asked_problem,
    attempt_query,
    choices,
    number,
    problem_query,
)
from qedmeg.viewer.summary import grouped, summarise
from qedmeg.viewer.text import headline
from qedmeg.viewer.tree import call_tree

Query = MultiMapping[str]
PROBLEMS_PER_PAGE = 50
ATTEMPTS_PER_PAGE = 8
MOST_DOTS = 2_000
_MOST_PICKED = 400
_CARD_PART = 12_000


def overview(site: Site, query: Query) -> str:
    """Runs with their scores, and each problem's beside each other; of the attempts that the filters let through."""
    filters = read_filters(query)
    snapshot = site.catalogue.snapshot()
    by_run = grouped(site.catalogue.select(filters.with_(run=())), lambda entry: entry.run)
    rows = [
        (
            run,
            summarise(by_run.get(run, []), filters.grader),
            colour_of(site, run),
            not filters.run or run.key in filters.run,
        )
        for run in snapshot.runs
    ]
    shown = [run for run, summary, _, chosen in rows if chosen and summary.attempts]
    chosen = site.catalogue.select(filters)
    problems = list(grouped(chosen, lambda entry: entry.problem).items())
    page, pages = _page(query, len(problems), PROBLEMS_PER_PAGE)
    listed = []
    for problem, entries in problems[(page - 1) * PROBLEMS_PER_PAGE : page * PROBLEMS_PER_PAGE]:
        of_runs = grouped(entries, lambda entry: entry.run)
        cells = [
            (
                summarise(of_runs[run], filters.grader) if run in of_runs else None,
                problem_query(problem, filters.with_(run=(run.key,))),
            )
            for run in shown
        ]
        known = snapshot.problems[problem.benchmark, problem.id]
        listed.append((known, headline(known.statement), cells, problem_query(problem, filters)))
    dots = [
        Dot(summary.tokens or 0, summary.mean, colour, _spoken(run.key, summary.mean, summary.tokens), f"/?{address}")
        for run, summary, colour, chosen_run in rows
        if chosen_run and summary.attempts
        for address in [filters.with_(run=(run.key,)).query()]
    ]
    return site.page(
        "overview.html.jinja",
        filters,
        choices=choices(snapshot),
        rows=rows,
        shown=shown,
        attempts=len(chosen),
        problems=listed,
        problem_count=len(problems),
        page=page,
        pages=pages,
        plot=scatter(dots, "mean points over mean tokens, by run") if len(dots) > 1 else None,
        notes=snapshot.notes,
    )


def problem_page(site: Site, query: Query) -> str:
    """A problem with its attempts."""
    filters = read_filters(query)
    problem = asked_problem(site, query)
    chosen = site.catalogue.select(filters)
    entries = ordered(filters, [entry for entry in chosen if entry.problem == problem])
    page, pages = _page(query, len(entries), ATTEMPTS_PER_PAGE)
    on_page = entries[(page - 1) * ATTEMPTS_PER_PAGE : page * ATTEMPTS_PER_PAGE]
    before, after = _neighbours(list(dict.fromkeys(entry.problem for entry in chosen)), problem)
    by_run = grouped(entries, lambda entry: entry.run)
    return site.page(
        "problem.html.jinja",
        filters,
        choices=choices(site.catalogue.snapshot()),
        one=problem_card(problem, filters),
        identity={"b": problem.benchmark, "p": problem.id},
        runs=[
            (
                run,
                summarise(of_run, filters.grader),
                colour_of(site, run),
                problem_query(problem, filters.with_(run=(run.key,))),
            )
            for run, of_run in by_run.items()
        ],
        cards=[card(site, entry, filters, _CARD_PART) for entry in on_page],
        count=len(entries),
        all_count=sum(entry.problem == problem for entry in site.catalogue.snapshot().entries),
        page=page,
        pages=pages,
        plot=_plot(site, entries, filters),
        dots_left_out=max(0, len(entries) - MOST_DOTS),
        before=before and f"/problem?{problem_query(before, filters)}",
        after=after and f"/problem?{problem_query(after, filters)}",
    )


def attempt_page(site: Site, query: Query) -> str:
    """An attempt in full, with the calls that it took."""
    filters = read_filters(query)
    entry = asked_attempt(site, query)
    entries = ordered(filters, [one for one in site.catalogue.select(filters) if one.problem == entry.problem])
    before, after = _neighbours(entries, entry)
    problem = site.catalogue.snapshot().problems[entry.problem.benchmark, entry.problem.id]
    return site.page(
        "attempt.html.jinja",
        filters,
        one=card(site, entry, filters),
        problem=problem_card(problem, filters),
        tree=call_tree(site.catalogue.source(entry).calls(entry)),
        before=before and f"/attempt?{attempt_query(before, filters)}",
        after=after and f"/attempt?{attempt_query(after, filters)}",
    )


def compare_page(site: Site, query: Query) -> str:
    """Two attempts at a problem beside each other: the two that are picked, else the best and the worst."""
    filters = read_filters(query)
    problem = asked_problem(site, query)
    snapshot = site.catalogue.snapshot()
    entries = [entry for entry in site.catalogue.select(filters) if entry.problem == problem]
    picked = [entry for pick in query.getall("pick", []) if (entry := _picked(site, problem, pick))][:2]
    for entry in _furthest_apart(entries, filters):
        if len(picked) < 2 and entry not in picked:
            picked.append(entry)
    if len(picked) < 2:
        raise NotFoundError("there are no two attempts at this problem to compare; take a filter away")
    listed = entries[:_MOST_PICKED]
    options = [*(entry for entry in picked if entry not in listed), *listed]
    return site.page(
        "compare.html.jinja",
        filters,
        one=problem_card(snapshot.problems[problem.benchmark, problem.id], filters),
        identity={"b": problem.benchmark, "p": problem.id},
        pair=[card(site, entry, filters) for entry in picked],
        options=[(pick_of(entry), _name(entry, filters)) for entry in options],
        picks=[pick_of(entry) for entry in picked],
        left_out=len(entries) - len(listed),
    )


# --- parts of pages -------------------------------------------------------------------------------------------------


def pick_of(entry: Entry) -> str:
    """How an address names an attempt at a problem that it names besides."""
    return f"{entry.sample}.{entry.run.key}"


def _picked(site: Site, problem: ShownProblem, pick: str) -> Entry | None:
    sample, _, run = pick.partition(".")
    known = sample.isascii() and sample.isdigit() and len(sample) < 19
    entry = site.catalogue.snapshot().by_name.get((run, problem.id, int(sample))) if known else None
    return entry if entry is not None and entry.problem == problem else None


def _furthest_apart(entries: Sequence[Entry], filters: Filters) -> list[Entry]:
    graded = [entry for entry in entries if entry.state(filters.grader) == "graded"]
    best = ordered(filters.with_(order="best"), graded)
    return [*best[:1], *best[:0:-1][:1], *entries]


def _name(entry: Entry, filters: Filters) -> str:
    score = entry.score(filters.grader)
    if score is None or score.points is None:
        earned = "ungraded" if score is None else "grading failed"
    else:
        earned = f"{score.points:.3g} of {RUBRIC_POINTS}"
    return f"{entry.run.key}, sample {entry.sample}: {earned}, {entry.tokens:,} tokens"


def _spoken(name: str, points: float | None, tokens: float | None) -> str:
    earned = "no points" if points is None else f"{points:.2f} of {RUBRIC_POINTS}"
    return f"{name}: {earned}, {tokens or 0:,.0f} tokens"


def _plot(site: Site, entries: Sequence[Entry], filters: Filters) -> Markup | None:
    if len(entries) < 2:
        return None
    colours = {run: colour_of(site, run) for run in {entry.run for entry in entries}}
    dots = []
    for place, entry in enumerate(entries[:MOST_DOTS]):
        score = entry.score(filters.grader)
        dots.append(
            Dot(
                tokens=entry.tokens,
                points=None if score is None else score.points,
                colour=colours[entry.run],
                label=_name(entry, filters),
                href=f"/attempt?{attempt_query(entry, filters)}",
                spread=place * 0.618 % 1 * 2 - 1,  # evenly, whatever their number
            )
        )
    return scatter(dots, "points over tokens, by attempt")


def _page(query: Query, count: int, size: int) -> tuple[int, int]:
    """The page asked for, and how many there are."""
    pages = max(1, -(-count // size))
    return min(max(1, number(query, "page", 1)), pages), pages


def _neighbours(things: list[Any], thing: Any) -> tuple[Any, Any]:
    """What stands before and after it."""
    if thing not in things:
        return None, None
    at = things.index(thing)
    return (things[at - 1] if at else None), (things[at + 1] if at + 1 < len(things) else None)

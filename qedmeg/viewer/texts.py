"""The pages of single texts, part by part, and of the texts of a call."""

from typing import Any
from urllib.parse import urlencode

from multidict import MultiMapping

from qedmeg.grading.grade import Failed
from qedmeg.viewer.entry import Entry
from qedmeg.viewer.filters import Filters, read_filters
from qedmeg.viewer.hand import guidelines
from qedmeg.viewer.site import (
    NotFoundError,
    Prose,
    Site,
    asked_attempt,
    asked_problem,
    attempt_query,
    number,
    problem_query,
    prose,
)
from qedmeg.viewer.text import part_of

Query = MultiMapping[str]


def text_page(site: Site, query: Query) -> str:
    """One text, part by part."""
    filters = read_filters(query)
    title, text, back = _text(site, query)
    part = part_of(text, number(query, "part", 1))
    rest = urlencode([(name, value) for name, value in query.items() if name != "part"])
    return site.page("text.html.jinja", filters, title=title, part=part, back=back, here=f"/text?{rest}")


def call_page(site: Site, query: Query) -> str:
    """A call with all its texts."""
    filters = read_filters(query)
    entry = asked_attempt(site, query)
    return site.page(
        "call.html.jinja",
        filters,
        name=_call_name(site, entry, query),
        sections=_sections(site, entry, query),
        back=f"/attempt?{attempt_query(entry, filters)}",
    )


def call_texts(site: Site, query: Query) -> dict[str, Any]:
    """A call's texts as JSON has them: for a page that opens one without leaving."""
    entry = asked_attempt(site, query)
    return {
        "sections": [
            {
                "title": title,
                "paragraphs": one.part.paragraphs,
                "more": one.more,
                "label": f"the first of {one.part.parts} parts, of {one.part.characters:,} characters: read on",
            }
            for title, one in _sections(site, entry, query)
        ]
    }


def _sections(site: Site, entry: Entry, query: Query) -> list[tuple[str, Prose]]:
    id = number(query, "call", -1)
    found = site.catalogue.source(entry).call(entry, id)
    if found is None:
        raise NotFoundError("there is no such call of this attempt")
    call, reply = found
    texts = [(f"prompt, {message.role}", f"prompt-{n}", message.content) for n, message in enumerate(call.messages)]
    texts += [("thinking", "thinking", reply.thinking), ("reply", "reply", reply.text)]
    where = {"r": entry.run.key, "p": entry.problem.id, "n": entry.sample, "call": id}
    shown = [(title, prose(text or None, "/text?" + urlencode({**where, "what": what}))) for title, what, text in texts]
    return [(title, one) for title, one in shown if one is not None]


def _call_name(site: Site, entry: Entry, query: Query) -> str:
    id = number(query, "call", -1)
    return next((one.path for one in site.catalogue.source(entry).calls(entry) if one.id == id), "call")


def _text(site: Site, query: Query) -> tuple[str, str, str]:
    """Title, text and where to go back to of what an address asks for."""
    what, *numbers = query.get("what", "").split("-")
    if "r" not in query:
        problem = asked_problem(site, query)
        texts = {"statement": problem.statement, "reference": problem.reference, "rubric": guidelines(problem)}
        text, back = texts.get(what), f"/problem?{problem_query(problem, Filters())}"
        title = f"{problem.id}: {what}"
    else:
        entry = asked_attempt(site, query)
        text, back = _attempt_text(site, entry, query, what, numbers), f"/attempt?{attempt_query(entry, Filters())}"
        title = f"{entry.problem.id}, {entry.run.key}, sample {entry.sample}: {what}"
    if text is None:
        raise NotFoundError("there is no such text")
    return title, text, back


def _attempt_text(site: Site, entry: Entry, query: Query, what: str, numbers: list[str]) -> str | None:
    places = [int(one) for one in numbers if one.isascii() and one.isdigit() and len(one) < 9]
    source = site.catalogue.source(entry)
    if "call" in query:
        found = source.call(entry, number(query, "call", -1))
        if found is None:
            return None
        call, reply = found
        prompt = call.messages[places[0]].content if places and places[0] < len(call.messages) else None
        return {"prompt": prompt, "thinking": reply.thinking, "reply": reply.text}.get(what)
    reading = source.read(entry)
    if what == "proof":
        return reading.text
    if not places or places[0] >= len(reading.grades):
        return None
    grade = reading.grades[places[0]].grade
    if isinstance(grade, Failed):
        return grade.reason
    return grade.items[places[1]].reason if len(places) > 1 and places[1] < len(grade.items) else None

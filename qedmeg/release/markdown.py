"""Text of people and models inside a Markdown page, where it stays text."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_MARKS = re.compile(r"([\\`*_\[\]!|~$@]|://|^[#+=-]|(?<=^\d)[.)](?= |$)|(?<=^\d\d)[.)](?= |$))")
_INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]+")


class Markdown(str):
    """Text that is Markdown already."""


def escape(value: object) -> str:
    """The text on one line, as it will be read: no mark in it is taken for Markdown or HTML, no address for a link."""
    if isinstance(value, Markdown):
        return value
    text = " ".join(_INVISIBLE.sub(" ", str(value)).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKS.sub(r"\\\1", text)


def code(value: object) -> Markdown:
    """The text in a code span, which may stand in a table."""
    text = " ".join(_INVISIBLE.sub(" ", str(value)).split()).replace("|", "¦") or " "
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    pad = " " if text[0] == "`" or text[-1] == "`" else ""
    return Markdown(f"{fence}{pad}{text}{pad}{fence}")


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> Markdown:
    """A table, a line for each row. Every cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return Markdown("\n".join("| " + " | ".join(map(escape, row)) + " |" for row in lines))


def environment() -> Environment:
    """For templates of Markdown: every value that is no `Markdown` is escaped."""
    finalize: Callable[..., Any] = escape
    made = Environment(
        loader=PackageLoader("qedmeg.release"),
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # HTML's; `escape` is for Markdown
    )
    made.filters["code"] = code
    return made

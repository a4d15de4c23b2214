"""What the project's HTML pages share: one file each, no scripts, hostile text shown as text.

A page extends `page.html.jinja`, whose content security policy lets nothing be loaded or run; the macros of
`parts.html.jinja` show rubric items and long texts. All that is not `Markup` is escaped.
"""

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

COLOURS = ("#1d4ed8", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2", "#64748b", "#be185d")
GREY = "#9aa4b2"
STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be selected, and takes no room
    "svg.hashsalt": "qedmeg",  # the same page of the same run
    "text.parse_math": False,  # a name with two $ in it is no formula
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "lines.linewidth": 1.2,
}
"""For `matplotlib.rc_context`."""
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Excerpt:
    """A text; of a long one the middle is left out."""

    head: str
    left_out: int = 0
    """Characters."""
    tail: str = ""


def excerpt(text: str, head: int, tail: int = 0) -> Excerpt:
    """The first `head` and the last `tail` characters of the text, or all of it where it is not longer."""
    left_out = len(text) - head - tail
    if left_out <= 0:
        return Excerpt(text)
    return Excerpt(text[:head], left_out, text[len(text) - tail :])


def visible(value: Any) -> Any:
    """A value; text with a mark for each character that has no picture, or is no character of UTF-8."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", value.replace("\r\n", "\n"))
    return value


def svg(figure: Figure) -> Markup:
    """The figure as an SVG element; matplotlib escapes the text in it. Draw and call it within `STYLE`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])


def environment(package: str) -> jinja2.Environment:
    """The templates of `package`'s folder `templates`, beside those that all pages share."""
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package), jinja2.PackageLoader("qedmeg.monitor")]),
        autoescape=True,
        finalize=visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(path: Path, package: str, template: str, **values: Any) -> None:
    """Render a template of `package`'s folder `templates` to `path`, which is whole at any time."""
    page = environment(package).get_template(template).render(values)
    partial = path.with_suffix(".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)

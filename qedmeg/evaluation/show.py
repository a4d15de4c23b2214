"""Numbers of evaluations as text, tables and files."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from qedmeg.evaluation.statistics import Interval
from qedmeg.grading.rubric import RUBRIC_POINTS
from qedmeg.monitor.page import svg

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

TO_PERCENT = 100 / RUBRIC_POINTS


def console() -> Console:
    """A terminal that takes names from files as they are: `[red]` in one is no colour. A file is as wide as tables."""
    made = Console(markup=False, highlight=False, emoji=False)
    if not made.is_terminal:
        made.width = 160
    return made


def table(title: str, names: Sequence[str], numbers: Sequence[str]) -> Table:
    """An empty table: columns of names, then columns of numbers."""
    made = Table(title=title, title_justify="left")
    for column in names:
        made.add_column(column, overflow="fold")
    for column in numbers:
        made.add_column(column, justify="right", overflow="fold")
    return made


def number(value: float | None, form: str = ".2f", scale: float = 1.0) -> str:
    """The value times `scale`, or a dash for none."""
    return "-" if value is None else format(value * scale, form)


def interval(value: Interval | None, form: str = ".1f", scale: float = 1.0) -> str:
    """`[35.0, 47.9]`, or a dash for none."""
    return "-" if value is None else f"[{value.low * scale:{form}}, {value.high * scale:{form}}]"


def write_json(path: Path, value: "DataclassInstance | Sequence[DataclassInstance]") -> None:
    """Write data classes as JSON. The file is whole at any time."""
    plain: Any = [asdict(one) for one in value] if isinstance(value, Sequence) else asdict(value)
    _write(path, json.dumps(plain, indent=1, default=float) + "\n")


def write_svg(path: Path, figure: Figure) -> None:
    """Write a figure that was drawn within `qedmeg.monitor.page.STYLE`. The file is whole at any time."""
    _write(path, svg(figure) + "\n")


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)

"""Progress on whatever takes more than a few seconds: a bar in a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

SECONDS_BETWEEN_LINES = 10.0

T = TypeVar("T")


class Bar:
    """One task's progress. `advance` moves it on; `note` is shown beside it (a loss, tokens/s)."""

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self.label, self.total, self.done, self.note = label, total, done, ""
        self.done_before = done
        self.started = self.last_line = time.monotonic()

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done += steps
        self.note = note or self.note

    def seconds_left(self) -> float:
        """Seconds until the end at the mean speed since the start; 0 before the first step."""
        elapsed, steps = time.monotonic() - self.started, self.done - self.done_before
        return elapsed / steps * (self.total - self.done) if steps else 0.0


class _LineBar(Bar):
    """For logs: a line at most every `SECONDS_BETWEEN_LINES`, and one at the end."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        super().advance(steps, note)
        now = time.monotonic()
        if now - self.last_line >= SECONDS_BETWEEN_LINES or (
            self.done == self.total and now - self.started >= SECONDS_BETWEEN_LINES
        ):
            self.last_line = now
            left = f"{self.seconds_left():.0f} s left"
            print(f"{self.label}: {self.done}/{self.total} {self.note} {left}", file=sys.stderr, flush=True)


class _NoteColumn(ProgressColumn):
    """The note in one line: where the terminal is narrow, it alone is cut."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["note"], no_wrap=True, overflow="ellipsis")


class _RichBar(Bar):
    def __init__(self, label: str, total: int, done: int, progress: Progress) -> None:
        super().__init__(label, total, done)
        self.progress = progress
        self.task = progress.add_task(label, total=total, completed=done, note="")

    def advance(self, steps: int = 1, note: str = "") -> None:
        super().advance(steps, note)
        self.progress.update(self.task, advance=steps, note=self.note)


@contextmanager
def bar(label: str, total: int, *, done: int = 0, show: bool = True) -> Iterator[Bar]:
    """A progress bar for `total` steps, `done` of them in an earlier run. `show=False` keeps it silent."""
    console = Console(stderr=True)
    if not show:
        yield Bar(label, total, done)
    elif not console.is_terminal:
        yield _LineBar(label, total, done)
    else:
        fixed = Column(no_wrap=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20, table_column=fixed),
            MofNCompleteColumn(table_column=fixed),
            _NoteColumn(),
            TimeElapsedColumn(table_column=fixed),
            TimeRemainingColumn(table_column=fixed),
        )
        with Progress(*columns, console=console) as progress:
            yield _RichBar(label, total, done, progress)


def track(items: Iterable[T], label: str, total: int, *, show: bool = True) -> Iterator[T]:
    """Iterate over `items` with a progress bar."""
    with bar(label, total, show=show) as progress:
        for item in items:
            yield item
            progress.advance()

"""Progress on whatever takes more than a few seconds: a bar in a terminal, a line now and then in a log. Steps that are
long enough leave a line each, in both."""

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
    """One task's progress, `at_once` of whose steps run side by side. `advance` moves it on; `note` is shown beside it
    (a loss, tokens/s), or in a line that stays where `keep` is set."""

    def __init__(self, label: str, total: int, done: int = 0, at_once: int = 1) -> None:
        self.label, self.total, self.done, self.at_once, self.note = label, total, done, at_once, ""
        self.done_before = done
        self.started = self.last_line = time.monotonic()

    def advance(self, steps: int = 1, note: str = "", *, keep: bool = False) -> None:
        self.done += steps
        self.note = note or self.note

    def line(self) -> str:
        return f"{self.label}: {self.done}/{self.total} {self.note} {self.seconds_left():.0f} s left"

    def seconds_left(self) -> float:
        """Seconds until the end at the mean speed since the start; 0 before the first step. Of the steps side by side,
        one has just been done, and the others are taken to be half done."""
        elapsed, steps = time.monotonic() - self.started, self.done - self.done_before
        left = max(self.total - self.done, 0)
        half_done = min(self.at_once - 1, left) / 2
        return elapsed / (steps + half_done) * (left - half_done) if steps else 0.0


class _LineBar(Bar):
    """For logs: a line at most every `SECONDS_BETWEEN_LINES`, and one at the end; those to be kept besides."""

    def advance(self, steps: int = 1, note: str = "", *, keep: bool = False) -> None:
        super().advance(steps, note)
        now = time.monotonic()
        due = now - self.last_line >= SECONDS_BETWEEN_LINES
        if keep or due or (self.done == self.total and now - self.started >= SECONDS_BETWEEN_LINES):
            self.last_line = now
            print(self.line(), file=sys.stderr, flush=True)


class _NoteColumn(ProgressColumn):
    """The note in one line: where the terminal is narrow, it alone is cut."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["note"], no_wrap=True, overflow="ellipsis")


class _RichBar(Bar):
    def __init__(self, label: str, total: int, done: int, at_once: int, progress: Progress) -> None:
        super().__init__(label, total, done, at_once)
        self.progress = progress
        self.task = progress.add_task(label, total=total, completed=done, note="")

    def advance(self, steps: int = 1, note: str = "", *, keep: bool = False) -> None:
        super().advance(steps, note)
        self.progress.update(self.task, advance=steps, note="" if keep else self.note)
        if keep:
            self.progress.console.print(Text(self.line()), soft_wrap=True)


@contextmanager
def bar(label: str, total: int, *, done: int = 0, at_once: int = 1, show: bool = True) -> Iterator[Bar]:
    """A progress bar for `total` steps, `done` of them in an earlier run, `at_once` of the others side by side.
    `show=False` keeps it silent."""
    console = Console(stderr=True)
    if not show:
        yield Bar(label, total, done, at_once)
    elif not console.is_terminal:
        yield _LineBar(label, total, done, at_once)
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
            yield _RichBar(label, total, done, at_once, progress)


def track(items: Iterable[T], label: str, total: int, *, show: bool = True) -> Iterator[T]:
    """Iterate over `items` with a progress bar."""
    with bar(label, total, show=show) as progress:
        for item in items:
            yield item
            progress.advance()

"""The command that says what runs scored and how sure that is: tables, JSON and a plot."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from rich.console import Console

from qedmeg.errors import UserError
from qedmeg.evaluation.results import Results
from qedmeg.evaluation.scores import find_run, open_results, read_run
from qedmeg.evaluation.show import TO_PERCENT, console, interval, number, table, write_json, write_svg
from qedmeg.evaluation.statistics import CONFIDENCE, Interval
from qedmeg.evaluation.summary import PASS_POINTS, Group, Summary, summarize
from qedmeg.monitor.page import COLOURS, STYLE

_SURE = f"{CONFIDENCE:.0%}"
NOTE = (
    "The mean is that of problems, each the mean (avg@k) of its k graded attempts. "
    f"{_SURE} of problems: where the mean over all problems of this kind lies. {_SURE} repeated: where it lies if the "
    "same problems were attempted and graded again. What is not graded is in no mean."
)


def summaries(results: Results, names: Sequence[str], grader: str | None = None) -> list[Summary]:
    """Runs of a file in numbers, one after the other; no names: all. Raises `UserError` for one that is not there."""
    runs = [find_run(results, name) for name in names] if names else results.runs()
    return [summarize(read_run(results, run, grader)) for run in runs]


# --- showing it -----------------------------------------------------------------------------------------------------


def show(found: Sequence[Summary], to: Console) -> None:
    """Print a table of all runs, and of each its groups, what k attempts give, and where the noise comes from."""
    columns = ("attempts", "mean of 7", "%", f"{_SURE} of problems", f"{_SURE} repeated")
    whole = table("runs", ("run", "model", "scaffold", "benchmark"), columns)
    for one in found:
        what = one.run, one.model, one.scaffold, one.benchmark
        whole.add_row(*what, str(one.samples), number(one.whole.mean), *_percents(one.whole))
    to.print(whole)
    to.print(NOTE)
    for one in found:
        to.print()
        _show_run(one, to)


def _show_run(one: Summary, to: Console) -> None:
    columns = ("problems", "graded", "failed", "missing", "mean of 7", "%", f"{_SURE} of problems", f"{_SURE} repeated")
    by = table(f"{one.run}, by {one.grader or 'no grader'}", ("of",), (*columns, "tokens a problem"))
    for group in (one.whole, *one.levels, *one.categories):
        counts = group.problems, group.graded, sum(group.failed.values()), group.missing
        tokens = number(group.cost.tokens_per_problem, ",.0f")
        by.add_row(group.name, *map(str, counts), number(group.mean), *_percents(group), tokens)
        if group is one.whole or (one.levels and group is one.levels[-1]):
            by.add_section()
    to.print(by)
    passed = f"pass@k, % (≥ {one.pass_points:g} points)"
    of_k = table("k attempts", ("k",), ("problems", "best@k of 7", f"{_SURE}", passed, f"{_SURE} "))
    for at in one.whole.at_k:
        best = number(at.best), interval(at.best_interval, ".2f")
        of_k.add_row(
            str(at.k), str(at.problems), *best, number(at.passed, ".1f", 100), interval(at.passed_interval, ".1f", 100)
        )
    to.print(of_k)
    for line in notes(one):
        to.print(line)


def notes(one: Summary) -> list[str]:
    """What the tables of a run leave out, a line each."""
    whole, lines = one.whole, []
    lines += [f"not graded, in no mean: {count} ({kind})" for kind, count in whole.failed.items()]
    if whole.missing:
        lines.append(f"asked for and not there, or not graded yet, in no mean: {whole.missing}")
    if whole.ungraded:
        names = ", ".join(whole.ungraded)
        lines.append(f"problems without a graded attempt, in no mean: {len(whole.ungraded)} ({names})")
    if one.other_graders:
        lines.append(f"other graders (--grader): {', '.join(one.other_graders)}")
    if one.sample_deviation is not None:
        each = ", ".join(f"{percent:.1f}" for percent in one.sample_percents)
        lines.append(f"% by attempt: {each}; standard deviation {one.sample_deviation:.1f}")
    if one.bootstrap is not None:
        lines.append(f"% of problems by the bootstrap: {interval(one.bootstrap, scale=TO_PERCENT)}")
    lines.append(_noise(one))
    cost = whole.cost
    if cost.tokens_per_problem is not None:
        ended = ", ".join(f"{count} {how}" for how, count in one.ended.items())
        lines.append(f"attempts ended: {ended}; tokens a point: {number(cost.tokens_per_point, ',.0f')}")
        money = f"{number(cost.money_per_problem, '.4f')} a problem, {number(cost.money_per_point, '.4f')} a point"
        lines.append(f"price: {money}, and {number(cost.grading_per_problem, '.4f')} a problem for grading")
    return lines


def _noise(one: Summary) -> str:
    told, untold = [], []
    for name, part in (
        ("problems", one.noise.problems),
        ("attempts", one.noise.attempts),
        ("grader", one.noise.grader),
    ):
        if part is None:
            untold.append(name)
        else:
            told.append(f"{name} {part.deviation:.2f} (mean ± {part.error:.2f})")
    lacking = {"problems": "problem", "attempts": "attempt at a problem", "grader": "grade of an attempt"}
    not_told = [f"{name} not told apart: needs a second {lacking[name]}" for name in untold]
    return "noise in points, standard deviation (and standard error): " + "; ".join(told + not_told)


def _percents(group: Group) -> tuple[str, str, str]:
    intervals = group.interval, group.repeat_interval
    return number(group.percent, ".1f"), *(interval(one, scale=TO_PERCENT) for one in intervals)  # type: ignore[return-value]


@matplotlib.rc_context(STYLE)
def plot(found: Sequence[Summary], path: Path) -> None:
    """Draw each run's score with both intervals, and scores over tokens, as an SVG file."""
    scored = [one for one in found if one.whole.percent is not None]
    figure = Figure((10, 1.4 + max(2.4, 0.34 * len(scored))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.3, 1])
    benchmarks = list(dict.fromkeys(one.benchmark for one in scored))
    for place, one in enumerate(scored):
        colour = COLOURS[benchmarks.index(one.benchmark) % len(COLOURS)]
        percent = one.whole.percent or 0.0
        for spread, width in ((one.whole.interval, 1.0), (one.whole.repeat_interval, 3.5)):
            draw_interval(left, place, spread, colour, width)
        left.plot(percent, place, "o", color=colour, ms=5, zorder=3)
        tokens = one.whole.cost.tokens_per_problem
        if tokens:
            right.plot(tokens, percent, "o", color=colour, ms=5)
            right.annotate(one.run, (tokens, percent), xytext=(4, 4), textcoords="offset points", fontsize=7)
    left.set_yticks(range(len(scored)), [one.run for one in scored])
    left.set(xlabel=f"score, % (thin: {_SURE} of problems, thick: {_SURE} repeated)", xlim=(-1, 101))
    left.set_ylim(len(scored) - 0.5, -0.5)
    right.set(xlabel="tokens a problem", ylabel="score, %")
    if right.lines:
        right.set_xscale("log")
        right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        right.xaxis.set_major_formatter(lambda tokens, _: f"{tokens:,.0f}")
        right.xaxis.set_minor_formatter(NullFormatter())
        right.tick_params("x", labelrotation=20)
        right.margins(x=0.25, y=0.15)
    for place, name in enumerate(benchmarks):
        left.plot([], [], "o", color=COLOURS[place % len(COLOURS)], label=name)
    if benchmarks:
        left.legend(fontsize=7, loc="best")
    write_svg(path, figure)


def draw_interval(axes: Axes, place: float, spread: Interval | None, colour: str, width: float) -> None:
    """A horizontal line from end to end, in percent; nothing for none."""
    if spread is not None:
        ends = spread.low * TO_PERCENT, spread.high * TO_PERCENT
        axes.plot(ends, (place, place), "-", color=colour, lw=width, solid_capstyle="butt")


# --- the command ----------------------------------------------------------------------------------------------------


def tell(found: Sequence[Summary], out: Path | None) -> None:
    """Print the statistics of runs; with a folder write stats.json and stats.svg there too."""
    show(found, console())
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "stats.json", found)
        plot(found, out / "stats.svg")
        print(f"wrote {out / 'stats.json'} and stats.svg")


def main() -> int:
    """Print and write the statistics of runs; exit status 1 when nothing in them is graded."""
    parser = argparse.ArgumentParser(
        description="What runs scored, by level and category, and how sure that is. "
        f"{NOTE} A pass is {PASS_POINTS:g} points or more.".replace("%", "%%"),
        epilog="examples:\n  python eval/stats.py runs/results.sqlite\n"
        "  python eval/stats.py runs/results.sqlite --run sft grpo --out runs/stats",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, help="file of results")
    parser.add_argument("--run", nargs="+", default=[], metavar="NAME", help="runs to show (default: all)")
    parser.add_argument("--grader", help="whose grades count (default: of each run, who gave it most)")
    parser.add_argument("--out", type=Path, help="folder for stats.json and stats.svg (default: none are written)")
    arguments = parser.parse_args()
    found = summaries(open_results(arguments.results), arguments.run, arguments.grader)
    if not found:
        raise UserError(f"{arguments.results}: it has no runs; run an evaluation first")
    tell(found, arguments.out)
    return 0 if any(one.whole.graded for one in found) else 1

"""Two runs on the same problems: which is better, by how much, and how sure that is."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import matplotlib
from matplotlib.figure import Figure
from rich.console import Console

from qedmeg.errors import UserError
from qedmeg.evaluation.results import EvaluationRun, Results
from qedmeg.evaluation.scores import ScoredProblem, ScoredRun, find_run, graders, open_results, read_run
from qedmeg.evaluation.show import TO_PERCENT, console, interval, number, table, write_json, write_svg
from qedmeg.evaluation.statistics import CONFIDENCE, Difference, difference
from qedmeg.evaluation.summary import grouped
from qedmeg.monitor.page import COLOURS, GREY, STYLE

MOST_APART = 10


@dataclass(frozen=True)
class ComparedProblem:
    """A problem that both runs have graded attempts at. Means are of 7."""

    problem: str
    level: str
    category: str
    first: float
    second: float
    first_points: tuple[float, ...]
    second_points: tuple[float, ...]


@dataclass(frozen=True)
class ComparedGroup:
    """The problems in common of a level or a category, or all of them."""

    name: str
    first: float
    """Mean of 7 over the problems in common."""
    second: float
    difference: Difference
    """The first less the second."""


@dataclass(frozen=True)
class Comparison:
    """Two runs on one benchmark. All numbers are over the problems that both have a graded attempt at."""

    first: str
    second: str
    benchmark: str
    grader: str
    only_first: int
    """Problems with a graded attempt in the first run alone."""
    only_second: int
    first_failed: int
    """Attempts at problems in common whose grade failed: they are in no mean."""
    second_failed: int
    whole: ComparedGroup
    levels: tuple[ComparedGroup, ...]
    categories: tuple[ComparedGroup, ...]
    problems: tuple[ComparedProblem, ...]
    """The most different first."""


def compare(first: ScoredRun, second: ScoredRun) -> Comparison:
    """Compare two runs as the same grader saw them.

    Raises:
        UserError: they are on other benchmarks, were graded by others, or have no graded problem in common.
    """
    names = f"'{first.run.name}' and '{second.run.name}'"
    if first.run.benchmark != second.run.benchmark:
        of = f"{first.run.benchmark} and {second.run.benchmark}"
        raise UserError(f"--runs: {names} are on different benchmarks, {of}; give two runs on the same one")
    if first.grader is None or first.grader != second.grader:
        of = f"{first.grader} and {second.grader}"
        raise UserError(f"--runs: {names} have no grader in common ({of}); grade both by the same one")
    others = {problem.id: problem for problem in second.problems}
    common = [one for one in first.problems if one.points and one.id in others and others[one.id].points]
    if not common:
        raise UserError(f"--runs: {names} have no problem in common with a graded attempt in both")
    for one in common:
        if one.statement != others[one.id].statement:
            raise UserError(f"--runs: problem '{one.id}' is another one in each of {names}; they cannot be compared")
    whole = _group("all", common, others)
    problems = sorted((_problem(one, others[one.id]) for one in common), key=lambda one: -abs(one.first - one.second))
    shared = {one.id for one in common}
    return Comparison(
        first=first.run.name,
        second=second.run.name,
        benchmark=first.run.benchmark,
        grader=first.grader,
        only_first=sum(bool(one.points) and one.id not in shared for one in first.problems),
        only_second=sum(bool(one.points) and one.id not in shared for one in second.problems),
        first_failed=_failed(common),
        second_failed=_failed([others[one.id] for one in common]),
        whole=whole,
        levels=tuple(_group(name, group, others) for name, group in grouped(common, "level")),
        categories=tuple(_group(name, group, others) for name, group in grouped(common, "category")),
        problems=tuple(problems),
    )


def common_grader(first: Sequence[str], second: Sequence[str]) -> str | None:
    """Of the graders of two runs, whoever stands foremost in both lists; None where they share none."""
    places = {grader: (first.index(grader) + second.index(grader), grader) for grader in first if grader in second}
    return min(places, key=places.__getitem__, default=None)


def _group(name: str, common: Sequence[ScoredProblem], others: dict[str, ScoredProblem]) -> ComparedGroup:
    first = {one.id: one.points for one in common}
    second = {one.id: others[one.id].points for one in common}
    found = difference(first, second)
    assert found is not None  # what is common has points in both
    first_mean, second_mean = (fmean(fmean(points) for points in each.values()) for each in (first, second))
    return ComparedGroup(name, first_mean, second_mean, found)


def _problem(first: ScoredProblem, second: ScoredProblem) -> ComparedProblem:
    means = fmean(first.points), fmean(second.points)
    return ComparedProblem(first.id, first.level, first.category, *means, first.points, second.points)


def _failed(problems: Sequence[ScoredProblem]) -> int:
    return sum(sample.failed is not None for problem in problems for sample in problem.samples)


# --- showing it -----------------------------------------------------------------------------------------------------


def show(found: Comparison, to: Console) -> None:
    """Print the comparison by level and category, and the problems that differ most."""
    sure = f"{CONFIDENCE:.0%}"
    title = f"{found.first} less {found.second} on {found.benchmark}, by {found.grader}; in % of 7 points"
    by = table(title, ("of",), ("problems in common", found.first, found.second, "difference", sure, "p"))
    for group in (found.whole, *found.levels, *found.categories):
        apart = group.difference
        scores = number(group.first, ".1f", TO_PERCENT), number(group.second, ".1f", TO_PERCENT)
        unsure = interval(apart.interval, "+.1f", TO_PERCENT), f"{'' if apart.exact else '≈ '}{apart.p:.4f}"
        by.add_row(group.name, str(apart.problems), *scores, number(apart.mean, "+.1f", TO_PERCENT), *unsure)
        if group is found.whole or (found.levels and group is found.levels[-1]):
            by.add_section()
    to.print(by)
    to.print(
        f"{sure}: over problems of this kind. p: sign flips of the problems' differences, all of them or (≈) drawn "
        "ones; those of levels and categories are not corrected for their number."
    )
    bootstrap = interval(found.whole.difference.bootstrap, "+.1f", TO_PERCENT)
    to.print(f"the difference's interval by the bootstrap: {bootstrap}")
    if found.only_first or found.only_second:
        alone = f"{found.only_first} by {found.first} alone, {found.only_second} by {found.second} alone"
        to.print(f"left out, with graded attempts {alone}")
    if found.first_failed or found.second_failed:
        failed = f"{found.first_failed} of {found.first}, {found.second_failed} of {found.second}"
        to.print(f"attempts not graded, in no mean: {failed}")
    most = table("the problems that differ most (points of 7)", ("problem", "of"), (found.first, found.second, "apart"))
    for one in found.problems[:MOST_APART]:
        each = (f"{fmean(points):.1f} ({_listed(points)})" for points in (one.first_points, one.second_points))
        of = ", ".join(filter(None, (one.level, one.category)))
        most.add_row(one.problem, of, *each, f"{one.first - one.second:+.1f}")
    to.print(most)


def _listed(points: Sequence[float]) -> str:
    shown = " ".join(f"{point:g}" for point in points[:8])
    return shown if len(points) <= 8 else f"{shown} ..."


@matplotlib.rc_context(STYLE)
def plot(found: Comparison, path: Path) -> None:
    """Draw the difference of each group with its interval, and of each problem, as an SVG file."""
    groups = [found.whole, *found.levels, *found.categories]
    figure = Figure((10, 1.2 + max(2.6, 0.3 * len(groups))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.2, 1])
    left.axvline(0, color=GREY, lw=1)
    for place, group in enumerate(groups):
        spread = group.difference.interval
        if spread is not None:
            left.plot((spread.low * TO_PERCENT, spread.high * TO_PERCENT), (place, place), "-", color=COLOURS[0], lw=1)
        left.plot(group.difference.mean * TO_PERCENT, place, "o", color=COLOURS[0], ms=5)
    left.set_yticks(range(len(groups)), [f"{group.name} ({group.difference.problems})" for group in groups])
    left.set_ylim(len(groups) - 0.5, -0.5)
    left.set_xlabel(f"{found.first} less {found.second}, in % (line: {CONFIDENCE:.0%} of problems)")
    apart = sorted(one.first - one.second for one in found.problems)
    right.bar(range(len(apart)), apart, width=1.0, color=[COLOURS[0] if one > 0 else COLOURS[1] for one in apart])
    right.axhline(0, color=GREY, lw=1)
    right.set(xlabel=f"the {len(apart)} problems in common, in order", ylabel="difference in points", ylim=(-7.2, 7.2))
    write_svg(path, figure)


# --- the command ----------------------------------------------------------------------------------------------------


def read_both(
    first: tuple[Results, EvaluationRun], second: tuple[Results, EvaluationRun], grader: str | None
) -> tuple[ScoredRun, ScoredRun]:
    """Two runs as one grader saw them; None: of those who graded both, who gave most."""
    if grader is None:
        grader = common_grader(*(graders(results, run.name) for results, run in (first, second)))
    return read_run(*first, grader), read_run(*second, grader)


def tell(found: Comparison, out: Path | None) -> None:
    """Print a comparison; with a folder write compare.json and compare.svg there too."""
    show(found, console())
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "compare.json", found)
        plot(found, out / "compare.svg")
        print(f"wrote {out / 'compare.json'} and compare.svg")


def main() -> int:
    """Compare two runs from the command line."""
    parser = argparse.ArgumentParser(
        description="Compare two runs on the same benchmark, problem by problem, graded by the same grader.",
        epilog="examples:\n  python eval/compare.py runs/results.sqlite --runs grpo sft --out runs/compare\n"
        "  python eval/compare.py mine.sqlite --other theirs.sqlite --runs mine theirs",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, help="file of results")
    parser.add_argument("--runs", nargs=2, required=True, metavar=("FIRST", "SECOND"), help="names of the two runs")
    parser.add_argument("--other", type=Path, help="file of results that has the second run (default: the same file)")
    parser.add_argument("--grader", help="whose grades count (default: of those who graded both, who gave most)")
    parser.add_argument("--out", type=Path, help="folder for compare.json and compare.svg (default: none are written)")
    arguments = parser.parse_args()
    here = open_results(arguments.results)
    there = here if arguments.other is None else open_results(arguments.other)
    first, second = ((at, find_run(at, name)) for at, name in zip((here, there), arguments.runs, strict=True))
    found = compare(*read_both(first, second, arguments.grader))
    tell(found, arguments.out)
    return 0

"""QED-Nano's main table and scaffold table again, from stored runs, with the published figures beside them."""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from qedmeg.errors import UserError, near_miss
from qedmeg.evaluation.published import (
    BENCHMARKS,
    GRADER,
    MAIN_TABLE,
    PROOFS,
    QED_NANO,
    SCAFFOLD_TABLE,
    Benchmark,
    ScaffoldCost,
    Score,
)
from qedmeg.evaluation.scores import find_run, open_results
from qedmeg.evaluation.show import TO_PERCENT, console, interval, number, table, write_json
from qedmeg.evaluation.statistics import CONFIDENCE, Interval
from qedmeg.evaluation.stats import summaries
from qedmeg.evaluation.summary import Summary

SINGLE = "single"
NAMES = ("model", "scaffold")
Place = tuple[str, str]
"""Model and scaffold: a row of the main table."""


@dataclass(frozen=True)
class Cell:
    """A run's score on one benchmark, in percent, beside the published one."""

    run: str
    grader: str | None
    percent: float | None
    deviation: float | None
    """Of the means of first, second, ... attempts: what the published deviation is."""
    interval: Interval | None
    """Over problems of this kind."""
    repeat_interval: Interval | None
    """If the same problems were attempted and graded again; the published score is on the same problems."""
    problems: int
    """Graded."""
    of_problems: int
    """The benchmark has."""
    not_graded: int
    """Attempts that failed to be graded or are missing."""
    published: Score | None
    difference: float | None
    """From the published score."""
    in_interval: bool | None
    """Whether the published score is in it."""
    in_repeat_interval: bool | None


@dataclass(frozen=True)
class Row:
    """A model, in a scaffold or alone, over the benchmarks in their order."""

    model: str
    scaffold: str
    cells: tuple[Cell | None, ...]
    """None: no run on it."""
    published: tuple[Score | None, ...]


@dataclass(frozen=True)
class ScaffoldRow:
    """A scaffold over one model on IMO-ProofBench."""

    model: str
    scaffold: str
    cell: Cell | None
    tokens_per_problem: float | None
    ratio: float | None
    """To the tokens of the model's single turn."""
    published: ScaffoldCost | None


@dataclass(frozen=True)
class Tables:
    """Both tables."""

    main: tuple[Row, ...]
    scaffolds: tuple[ScaffoldRow, ...]


def paper_tables(found: Sequence[Summary], named: Mapping[str, str]) -> Tables:
    """Both tables from runs in numbers. `named` gives runs' models by published name, where their own differs.

    Raises:
        UserError: two runs are of the same model and scaffold on the same benchmark.
    """
    runs: dict[tuple[Place, str], Summary] = {}
    for one in found:
        place = named.get(one.run) or published_name(one.model) or one.model, one.scaffold
        before = runs.setdefault((place, one.benchmark), one)
        if before is not one:
            raise UserError(
                f"the runs '{before.run}' and '{one.run}' are both of {place[0]} ({place[1]}) on {one.benchmark}; "
                "choose with --run"
            )
    published = {(row.model, row.scaffold): row.scores for row in MAIN_TABLE}
    names = {benchmark.name for benchmark in BENCHMARKS}
    places = list(dict.fromkeys([*published, *(place for place, on in runs if on in names)]))
    models = list(dict.fromkeys(model for model, _ in places))
    places.sort(key=lambda place: models.index(place[0]))
    rows = []
    for place in places:
        scores = tuple(published.get(place, {}).get(benchmark.name) for benchmark in BENCHMARKS)
        cells = tuple(
            _cell(runs.get((place, benchmark.name)), benchmark, score)
            for benchmark, score in zip(BENCHMARKS, scores, strict=True)
        )
        rows.append(Row(*place, cells, scores))
    return Tables(
        tuple(rows), tuple(_scaffold_rows({place: run for (place, on), run in runs.items() if on == PROOFS.name}))
    )


def published_name(model: str) -> str | None:
    """The published model that a hub id, a folder or a served name stands for; None where it is none of them."""
    plain = _plain(model.rstrip("/").rpartition("/")[2])
    known = {_plain(row.model): row.model for row in MAIN_TABLE}
    return known.get(plain) or known.get(plain.removesuffix("2507")) or known.get(plain.removesuffix("preview"))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _cell(run: Summary | None, benchmark: Benchmark, score: Score | None) -> Cell | None:
    if run is None:
        return None
    whole = run.whole
    spread, repeated = _in_percent(whole.interval), _in_percent(whole.repeat_interval)
    return Cell(
        run=run.run,
        grader=run.grader,
        percent=whole.percent,
        deviation=run.sample_deviation,
        interval=spread,
        repeat_interval=repeated,
        problems=whole.problems,
        of_problems=benchmark.problems,
        not_graded=sum(whole.failed.values()) + whole.missing,
        published=score,
        difference=whole.percent - score.percent if score and whole.percent is not None else None,
        in_interval=spread.holds(score.percent) if score and spread else None,
        in_repeat_interval=repeated.holds(score.percent) if score and repeated else None,
    )


def _in_percent(spread: Interval | None) -> Interval | None:
    return None if spread is None else Interval(spread.low * TO_PERCENT, spread.high * TO_PERCENT)


def _scaffold_rows(runs: Mapping[Place, Summary]) -> list[ScaffoldRow]:
    """Of models that were run in a scaffold, and of QED-Nano: the single turn first, then as published, then others."""
    costs = {(QED_NANO, cost.scaffold): cost for cost in SCAFFOLD_TABLE}
    scores = {(row.model, row.scaffold): row.scores.get(PROOFS.name) for row in MAIN_TABLE}
    order = [cost.scaffold for cost in SCAFFOLD_TABLE]
    models = [QED_NANO, *sorted({model for model, scaffold in runs if scaffold != SINGLE} - {QED_NANO})]

    def rank(place: Place) -> tuple[int, int]:
        return models.index(place[0]), order.index(place[1]) if place[1] in order else len(order)

    rows = []
    for place in sorted((place for place in {**costs, **runs} if place[0] in models), key=rank):
        run, single, cost = runs.get(place), runs.get((place[0], SINGLE)), costs.get(place)
        score = scores.get(place) or (Score(cost.percent, None, "arXiv 2604.04898") if cost else None)
        tokens = run.whole.cost.tokens_per_problem if run else None
        base = single.whole.cost.tokens_per_problem if single else None
        ratio = tokens / base if tokens is not None and base else None
        rows.append(ScaffoldRow(*place, _cell(run, PROOFS, score), tokens, ratio, cost))
    return rows


# --- showing it -----------------------------------------------------------------------------------------------------


def show(found: Tables, to: Console) -> None:
    """Print both tables."""
    sure = f"{CONFIDENCE:.0%}"
    main = table("main table, % of full marks", NAMES, [benchmark.title for benchmark in BENCHMARKS])
    main.show_lines = True
    for row in found.main:
        cells = zip(row.cells, row.published, strict=True)
        main.add_row(row.model, row.scaffold, *(_shown(cell, score) for cell, score in cells))
    to.print(main)
    columns = ("score, %", sure, "tokens a problem", "ratio", "published", "difference", "inside", "tokens", "ratio ")
    by = table("scaffolds on IMO-ProofBench", NAMES, columns)
    for one in found.scaffolds:
        here, there = ["-"] * 4, ["-"] * 5
        if one.cell:
            tokens = number(one.tokens_per_problem, ",.0f"), number(one.ratio)
            here = [_score(one.cell), interval(one.cell.interval), *tokens]
            there[1:3] = number(one.cell.difference, "+.1f"), _inside(one.cell.in_interval) or "-"
        if one.published:
            there[0] = f"{one.published.percent:.1f}"
            there[3:] = f"{one.published.tokens_per_problem:,}", f"{one.published.ratio:.2f}"
        by.add_row(one.model, one.scaffold, *here, *there)
    to.print(by)
    to.print(
        f"In brackets the deviation of attempts' means; [low, high]: {sure} over problems of this kind; repeated: "
        f"{sure} if the same problems were attempted and graded again. in, out: whether the published score is inside."
    )
    graders = dict.fromkeys(cell.grader for row in found.main for cell in row.cells if cell and cell.grader)
    to.print(f"published scores are by {GRADER}; here graded by: {', '.join(graders) or 'nobody'}")


def _shown(cell: Cell | None, score: Score | None) -> str:
    there = f"published {_with_deviation(score.percent, score.deviation)}" if score else ""
    if cell is None:
        return there
    lines = [_score(cell), f"{interval(cell.interval)} {_inside(cell.in_interval)}"]
    lines.append(f"repeated {interval(cell.repeat_interval)} {_inside(cell.in_repeat_interval)}")
    if score:
        lines.append(f"{there}: {number(cell.difference, '+.1f')}")
    if cell.problems < cell.of_problems:
        lines.append(f"{cell.problems} of {cell.of_problems} problems")
    if cell.not_graded:
        lines.append(f"{cell.not_graded} attempts not graded")
    return "\n".join(line.strip() for line in lines)


def _score(cell: Cell) -> str:
    return "-" if cell.percent is None else _with_deviation(cell.percent, cell.deviation)


def _with_deviation(percent: float, deviation: float | None) -> str:
    return f"{percent:.1f}" if deviation is None else f"{percent:.1f} ({deviation:.1f})"


def _inside(inside: bool | None) -> str:
    return "" if inside is None else "in" if inside else "out"


# --- the command ----------------------------------------------------------------------------------------------------


def _named(given: Sequence[str], runs: Sequence[str]) -> dict[str, str]:
    """`RUN=MODEL` from the command line."""
    models = [row.model for row in MAIN_TABLE]
    named = {}
    for text in given:
        run, equals, model = text.rpartition("=")
        if not equals or run not in runs:
            raise UserError(f"--as: '{text}': expected RUN=MODEL with the name of a run{near_miss(run, runs)}")
        if model not in models:
            raise UserError(
                f"--as: no published model '{model}'{near_miss(model, models)}; there are {', '.join(models)}"
            )
        named[run] = model
    return named


def main() -> int:
    """Print and write QED-Nano's tables from stored runs; exit status 1 when no run is on their benchmarks."""
    parser = argparse.ArgumentParser(
        description="QED-Nano's main table and scaffold table from stored runs, beside the published figures. Runs on "
        f"{', '.join(benchmark.name for benchmark in BENCHMARKS)} count; a run belongs to the published model that its "
        "own is named after.",
        epilog="examples:\n  python eval/tables.py runs/results.sqlite --out runs/tables\n"
        "  python eval/tables.py mine.sqlite --run single rsa --as single=QED-Nano rsa=QED-Nano",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, help="file of results")
    parser.add_argument("--run", nargs="+", default=[], metavar="NAME", help="runs to take (default: all)")
    parser.add_argument(
        "--as", nargs="+", default=[], dest="named", metavar="RUN=MODEL", help="published models that runs are of"
    )
    parser.add_argument("--grader", help="whose grades count (default: of each run, who gave it most)")
    parser.add_argument("--out", type=Path, help="folder for tables.json (default: it is not written)")
    arguments = parser.parse_args()
    results = open_results(arguments.results)
    on = {benchmark.name for benchmark in BENCHMARKS}
    runs = [find_run(results, name) for name in arguments.run] if arguments.run else results.runs()
    names = [run.name for run in runs if run.benchmark in on]
    found = paper_tables(summaries(results, names, arguments.grader) if names else [], _named(arguments.named, names))
    show(found, console())
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        write_json(arguments.out / "tables.json", found)
        print(f"wrote {arguments.out / 'tables.json'}")
    return 0 if names else 1

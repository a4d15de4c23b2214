"""Runs the demo's stages, each once: what is finished is kept, and found again by the next `make demo`."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from qedmeg.demo.report import write_report
from qedmeg.demo.scores import Score, compare_runs, read_rounds, read_score, rounds_run, said
from qedmeg.demo.stages import RC_STAGES, STAGES, Stage, rounds_of_the_cache
from qedmeg.evaluation.compare import Comparison
from qedmeg.evaluation.summary import Summary
from qedmeg.monitor.metrics import read_metrics


def run_demo(folder: Path, *, with_cache: bool = False) -> int:
    """Run what is not yet done, then print the table and write summary and report."""
    folder = folder.resolve()  # its commands run in the repository
    stages = (*STAGES, *RC_STAGES) if with_cache else STAGES
    done = _run(folder, stages)
    models = list(dict.fromkeys(stage.model for stage in stages))
    scores = {model: read_score(folder, model) for model in models}
    rounds: dict[str, list[Summary]] = {}
    comparisons: list[Comparison] = []
    if with_cache:
        count = rounds_of_the_cache()
        rounds = {model: read_rounds(folder, model, count) for model in models if model != "base"}
        last = rounds_run("rc")
        others = (f"{last} round 1", "grpo", rounds_run("grpo"), rounds_run("notes"))
        comparisons = [compare_runs(folder, last, other) for other in others]
    summary = {"stages": [_row(name, stages, done, score, rounds.get(name)) for name, score in scores.items()]}
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    report = folder / "report.html"
    trainings = {name: read_metrics(folder / f"run-{name}") for name in models if name != "base"}
    write_report(report, scores, trainings, rounds, comparisons)
    _print_table(stages, done, scores)
    if rounds:
        _print_rounds(rounds, comparisons)
    print(f"report: {report.resolve()}")
    return 0


def _run(folder: Path, stages: Sequence[Stage]) -> dict[str, dict[str, Any]]:
    """The numbers that each stage gave, now or before."""
    done: dict[str, dict[str, Any]] = {}
    records = folder / "stages"
    records.mkdir(parents=True, exist_ok=True)
    for number, stage in enumerate(stages, 1):
        record = records / f"{number}-{stage.name.replace(' ', '-')}.json"
        if not record.is_file():
            print(f"[{number}/{len(stages)}] {stage.name}", flush=True)
            started = time.monotonic()
            numbers = stage.run(folder)
            numbers["seconds"] = time.monotonic() - started
            partial = record.with_suffix(".partial")
            partial.write_text(json.dumps(numbers))
            partial.replace(record)
        done[stage.name] = json.loads(record.read_text())
    return done


def _row(
    name: str, stages: Sequence[Stage], done: dict[str, dict[str, Any]], score: Score, rounds: Sequence[Summary] | None
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": name,
        "seconds": round(sum(done[stage.name]["seconds"] for stage in stages if stage.model == name), 1),
        "score": score.mean,
        "greedy": score.greedy_mean,
        "problems": score.sampled.whole.problems,
    }
    return row if rounds is None else row | {"rounds": [one.whole.mean for one in rounds]}


def _print_table(stages: Sequence[Stage], done: dict[str, dict[str, Any]], scores: dict[str, Score]) -> None:
    table = Table(title="qedmeg demo: held-out proofs, points of 7")
    for title in ("stage", "time", "tokens/s", "score at T=1", "greedy"):
        table.add_column(title, justify="left" if title == "stage" else "right")
    for stage in stages:
        numbers = done[stage.name]
        score = scores[stage.model] if stage.name.startswith("prove: ") else None
        table.add_row(
            stage.name,
            f"{numbers['seconds']:.0f} s",
            f"{numbers['tokens_per_second']:,.0f}" if "tokens_per_second" in numbers else "",
            f"{score.mean:.2f}" if score else "",
            f"{score.greedy_mean:.2f}" if score else "",
        )
    table.add_section()
    table.add_row("all", f"{sum(numbers['seconds'] for numbers in done.values()):.0f} s", "", "", "")
    Console().print(table)


def _print_rounds(rounds: dict[str, list[Summary]], comparisons: Sequence[Comparison]) -> None:
    table = Table(title="with the reasoning cache: points of 7 (tokens a problem) by round")
    table.add_column("model")
    for number in range(1, 1 + max(len(one) for one in rounds.values())):
        table.add_column(f"round {number}", justify="right")
    for name, one in rounds.items():
        cells = [f"{each.whole.mean:.2f} ({each.whole.cost.tokens_per_problem:.0f})" for each in one]
        table.add_row(name, *cells)
    Console().print(table)
    for comparison in comparisons:
        print(said(comparison))

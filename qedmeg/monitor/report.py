"""`python -m qedmeg report RUN`: one HTML file of a run, with its curves and the proofs that a person should see."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qedmeg.data.problems import Problem
from qedmeg.errors import UserError
from qedmeg.grading.grader import ProofProblem
from qedmeg.grading.rubric import Rubric
from qedmeg.monitor import curves
from qedmeg.monitor.curves import Series
from qedmeg.monitor.metrics import METRICS_FILE, SCORE, VALIDATION_PREFIX, read_metrics
from qedmeg.monitor.page import Excerpt, excerpt, write_page
from qedmeg.monitor.proofs import Choice, choose
from qedmeg.monitor.run_problems import problems_of
from qedmeg.rollout.store import STORE_FILE
from qedmeg.rollout.stored_proofs import Score, StoredProof, read_proofs_of, read_scores

REPORT_FILE = "report.html"
VALIDATION_SCORE = f"{VALIDATION_PREFIX}{SCORE}"
PROOFS_OF_A_KIND = 6
MOST_ITEMS = 150
_PROOF_HEAD, _PROOF_TAIL = 14_000, 6_000  # characters
_STATEMENT, _REASON, _NAME = 6_000, 600, 120

_KINDS = (
    ("best", "Best proofs", "Of those that earned the most, the latest; each problem once."),
    ("worst", "Worst proofs", "Of those that earned the least, the latest; each problem once."),
    ("votes", "Most disagreed-on: votes furthest apart", "One proof, graded several times."),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `report` on its (sub)parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        f"Write RUN/{REPORT_FILE}: the curves of all that the run has logged, what each rubric item earned, where the\n"
        "time of a step goes, and the best, worst and most disagreed-on proofs with their grades. A run that is still\n"
        "going on can be looked at, and again later."
    )
    parser.epilog = "example:\n  python -m qedmeg report runs/grpo"
    parser.add_argument("run", type=Path, metavar="RUN", help="run_dir of a recipe")


def main(args: argparse.Namespace) -> int:
    """Run the command. Raises UserError where there is no run, or nothing in it yet."""
    print(write_run_report(args.run))
    return 0


def write_run_report(run_dir: Path) -> Path:
    """Write the report of a run folder; its path. Raises UserError like `main`."""
    if not run_dir.is_dir():
        raise UserError(f"{run_dir}: no such folder; give the run_dir of a recipe")
    series = curves.series_of(read_metrics(run_dir))
    store = run_dir / STORE_FILE
    scores = read_scores(store) if store.is_file() else []
    if not series and not scores:
        raise UserError(
            f"{run_dir}: nothing to report: neither a step in {METRICS_FILE} nor a graded proof in {STORE_FILE}; give "
            "the run_dir of a recipe that has made a step"
        )
    items = curves.item_rows(series)
    path = run_dir / REPORT_FILE
    write_page(
        path,
        "qedmeg.monitor",
        "report.html.jinja",
        title=f"qedmeg run {run_dir.resolve().name}",
        facts=_facts(series, scores),
        plots=curves.plots(series),
        budget=curves.time_budget(series),
        items=items[:MOST_ITEMS],
        items_left_out=max(0, len(items) - MOST_ITEMS),
        pale=curves.heat(0.0),
        dark=curves.heat(1.0),
        **_proofs(run_dir, choose(scores, PROOFS_OF_A_KIND)),
    )
    return path


def _facts(series: dict[str, Series], scores: Sequence[Score]) -> list[tuple[str, str]]:
    facts = []
    if series:
        trained = [one for name, one in series.items() if not name.startswith(VALIDATION_PREFIX)]
        steps = max((one.steps_N[-1] for one in trained), default=-1) + 1
        facts.append(("steps", f"{steps:,.0f}"))
    for title, name in (("reward", "train/reward"), ("loss", "train/loss")):
        if name in series:
            first, last = curves.first_and_last(series[name])
            facts.append((f"{title}, first and last fifth", f"{first:.3g} → {last:.3g}"))
            break
    if VALIDATION_SCORE in series:
        first, last = (float(series[VALIDATION_SCORE].values_N[place]) for place in (0, -1))
        facts.append(("validation score of 7, first and last", f"{first:.2f} → {last:.2f}"))
    if scores:
        facts.append(("graded proofs", f"{len(scores):,}"))
    for title, name in (("failed grades", "train/grades_failed"), ("cost of grades", "train/grader_money")):
        if name in series:
            facts.append((title, curves.number(float(series[name].values_N.sum()))))
    return facts


def _proofs(run_dir: Path, choice: Choice) -> dict[str, Any]:
    """What the template shows of the chosen proofs."""
    chosen = [
        *choice.best,
        *choice.worst,
        *choice.votes,
        *(s for group in choice.groups for s in (group[0], group[-1])),
    ]
    stored = {one.score.rollout: _shown(one) for one in read_proofs_of(run_dir / STORE_FILE, chosen)} if chosen else {}
    problems, note = _problems(run_dir, {score.problem for score in chosen})

    def listed(scores: Sequence[Score]) -> list[dict[str, Any]]:
        return [{**stored[score.rollout], "problem": problems[score.problem]} for score in scores]

    return {
        "note": note,
        "lists": [(title, explanation, listed(getattr(choice, kind))) for kind, title, explanation in _KINDS],
        "groups": [
            {
                "problem": problems[group[0].problem],
                "points": [f"{score.points:g}" for score in group],
                "best": stored[group[0].rollout],
                "worst": stored[group[-1].rollout],
            }
            for group in choice.groups
        ],
    }


def _shown(one: StoredProof) -> dict[str, Any]:
    score, (first, last) = one.score, one.versions
    version = f"weights {first}" if first == last else f"weights {first} to {last}"
    facts = ["no step yet" if score.step is None else f"step {score.step}", version, f"{score.tokens:,} tokens"]
    if one.truncated:
        facts.append("cut off at the token limit")
    if one.attempt:
        facts.append(f"attempt {one.attempt + 1}")
    if not one.used:
        facts.append("not trained on")
    if len(score.votes) > 1:
        facts.append("votes " + ", ".join(f"{vote:g}" for vote in score.votes))
    return {
        "points": one.grade.points,
        "of": one.grade.of,
        "facts": facts,
        "text": excerpt(one.proof, _PROOF_HEAD, _PROOF_TAIL) if one.proof else None,
        "items": [
            {
                "name": excerpt(item.name, _NAME).head,
                "points": item.points,
                "of": item.of,
                "reason": excerpt(item.reason, _REASON),
            }
            for item in one.grade.items
        ],
    }


def _problems(run_dir: Path, ids: set[str]) -> tuple[dict[str, dict[str, Any]], str]:
    """What is shown of each of these problems, and a note where some are not found any more."""
    shown: dict[str, dict[str, Any]] = {
        name: {"name": excerpt(name, _NAME).head, "statement": None, "rubric": None} for name in ids
    }
    found, note = problems_of(run_dir, ids)
    for problem in found:
        shown[problem.id]["statement"] = excerpt(problem.statement, _STATEMENT)
        shown[problem.id]["rubric"] = _rubric(problem)
    return shown, note


def _rubric(problem: Problem | ProofProblem) -> Excerpt:
    rubric = problem.rubric
    if isinstance(rubric, Rubric):
        rubric = "\n".join(f"{item.name} ({item.points}): {item.text}" for item in rubric.items)
    return excerpt(rubric, _STATEMENT)

"""What a release says of its evaluations: runs of a results file in numbers, and whether they were of its weights."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from qedmeg.data.sources import SUFFIXES
from qedmeg.evaluation.results import EvaluationRun
from qedmeg.evaluation.scores import find_run, open_results
from qedmeg.evaluation.show import TO_PERCENT, interval, number
from qedmeg.evaluation.stats import notes, summaries
from qedmeg.evaluation.summary import Group, Summary
from qedmeg.reasoning.session import PROVER
from qedmeg.release.markdown import Markdown, table

THESE, OTHERS, UNKNOWN = "these", "others", "not known"
_GROUP_HEAD = ("of", "problems", "graded", "failed", "missing", "mean of 7", "%", "95 % of problems", "95 % repeated")


@dataclass(frozen=True)
class Evaluated:
    """A run of a results file."""

    summary: Summary
    weights: str
    """Whose they were: `THESE`, `OTHERS`, or `UNKNOWN` of a model behind an address."""

    @property
    def benchmark(self) -> str:
        """A benchmark's name, or that of its file without the folder."""
        path = Path(self.summary.benchmark)
        return path.name if path.is_absolute() or path.suffix in SUFFIXES else self.summary.benchmark


def read_evaluated(results: Path, names: Sequence[str], weights: str) -> list[Evaluated]:
    """The runs of these names; `weights` is the `weights_hash` of the released model.

    Raises:
        UserError: there is no such file or run.
    """
    with closing(open_results(results)) as opened:
        found = [find_run(opened, name) for name in names]
        return [
            Evaluated(summary, _whose(run, weights))
            for run, summary in zip(found, summaries(opened, names), strict=True)
        ]


def _whose(run: EvaluationRun, weights: str) -> str:
    model: Any = run.settings.get("models", {}).get(PROVER, {})
    if not model.get("weights"):
        return UNKNOWN
    return THESE if model["weights"] == weights else OTHERS


def overview(found: Sequence[Evaluated]) -> Markdown:
    """A row for each run."""
    head = ("run", "weights", "benchmark", "scaffold", "attempts", "graded by", *_GROUP_HEAD[2:])
    rows = []
    for one in found:
        summary = one.summary
        what = summary.run, one.weights, one.benchmark, summary.scaffold, summary.samples, summary.grader or "nobody"
        rows.append((*what, *_numbers(summary.whole)))
    return table(head, rows)


def groups(one: Evaluated) -> Markdown:
    """A row for each level, then for each category."""
    parts = (*one.summary.levels, *one.summary.categories)
    return table(_GROUP_HEAD, [(part.name, part.problems, *_numbers(part)) for part in parts])


def at_k(one: Evaluated) -> Markdown:
    """What k attempts at each problem give."""
    passed = f"pass@k, % (≥ {one.summary.pass_points:g} points)"
    rows = [
        (
            *(at.k, at.problems, number(at.best), interval(at.best_interval, ".2f")),
            *(number(at.passed, ".1f", 100), interval(at.passed_interval, ".1f", 100)),
        )
        for at in one.summary.whole.at_k
    ]
    return table(("k", "problems", "best@k of 7", "95 %", passed, "95 %"), rows)


def left_out(one: Evaluated) -> list[str]:
    """What the tables leave out, a line each: failed grades, the noise, the price."""
    return notes(one.summary)


def _numbers(group: Group) -> tuple[object, ...]:
    counts = group.graded, sum(group.failed.values()), group.missing
    spread = (interval(one, scale=TO_PERCENT) for one in (group.interval, group.repeat_interval))
    return (*counts, number(group.mean), number(group.percent, ".1f"), *spread)


def eval_results(found: Sequence[Evaluated]) -> list[EvalResult]:
    """For the card's header: the runs of these weights that have a score."""
    made = []
    for one in found:
        summary, whole = one.summary, one.summary.whole
        if one.weights != THESE or whole.percent is None:
            continue
        how = f"scaffold {summary.scaffold}, {summary.samples} attempts, graded by {summary.grader}"
        sure = interval(whole.interval, scale=TO_PERCENT)
        made.append(
            EvalResult(
                task_type="text-generation",
                task_name="Mathematical proofs",
                dataset_type=one.benchmark,
                dataset_name=one.benchmark,
                metric_type="score",
                metric_name=f"mean score, % of 7 points; {how}; 95 % of problems {sure}",
                metric_value=round(whole.percent, 2),
            )
        )
    return made

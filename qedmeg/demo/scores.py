"""What the demo's models scored, read from the results of its evaluations."""

from collections import defaultdict
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from qedmeg.evaluation.compare import Comparison, compare
from qedmeg.evaluation.results import Results
from qedmeg.evaluation.scores import find_run, read_run
from qedmeg.evaluation.show import interval
from qedmeg.evaluation.statistics import CONFIDENCE
from qedmeg.evaluation.stats import summaries
from qedmeg.evaluation.summary import Summary
from qedmeg.grading.grade import Graded

RESULTS = "results.sqlite"


@dataclass(frozen=True)
class GradedProof:
    """One proof of one problem with its grade."""

    family: str
    statement: str
    proof: str
    grade: Graded


@dataclass(frozen=True)
class Score:
    """Of one model, that was asked once."""

    sampled: Summary
    """At temperature 1."""
    greedy: Summary
    by_item: Mapping[str, float]
    """'family / item': the share of its points earned, sampled."""
    proofs: tuple[GradedProof, ...]
    """The greedy ones."""

    @property
    def mean(self) -> float:
        """Points of 7, sampled."""
        return self.sampled.whole.mean or 0.0

    @property
    def greedy_mean(self) -> float:
        """Points of 7, greedy."""
        return self.greedy.whole.mean or 0.0


def rounds_run(name: str) -> str:
    """The name of the run that has a model's last round."""
    return f"{name} cache"


def read_score(folder: Path, name: str) -> Score:
    """What the model `name` scored."""
    with closing(Results(folder / RESULTS)) as results:
        sampled, greedy = summaries(results, [name, f"{name} greedy"])
        earned: dict[str, list[float]] = defaultdict(list)
        for proof in _proofs(results, name):
            for item in proof.grade.items:
                earned[f"{proof.family} / {item.name}"].append(item.points / item.of)
        by_item = {item: fmean(shares) for item, shares in sorted(earned.items())}
        return Score(sampled, greedy, by_item, tuple(_proofs(results, f"{name} greedy")))


def read_rounds(folder: Path, name: str, rounds: int) -> list[Summary]:
    """What the model `name` scored with the reasoning cache, sampled, in each of the rounds."""
    run = rounds_run(name)
    with closing(Results(folder / RESULTS)) as results:
        return summaries(results, [*(f"{run} round {number}" for number in range(1, rounds)), run])


def compare_runs(folder: Path, first: str, second: str) -> Comparison:
    """Two runs, problem by problem."""
    with closing(Results(folder / RESULTS)) as results:
        return compare(*(read_run(results, find_run(results, name)) for name in (first, second)))


def said(one: Comparison) -> str:
    """A comparison in one line."""
    whole, found = one.whole, one.whole.difference
    return (
        f"{one.first} {whole.first:.2f}, {one.second} {whole.second:.2f}: {found.mean:+.2f} of 7 points, "
        f"{CONFIDENCE:.0%} {interval(found.interval, '+.2f')}, p {found.p:.2g}"
    )


def _proofs(results: Results, run: str) -> list[GradedProof]:
    problems = {one.id: one for one in results.problems(run)}
    texts = {(one.problem, one.sample): one.text for one in results.attempts(run)}
    return [
        GradedProof(
            problems[one.problem].category, problems[one.problem].statement, texts[one.problem, one.sample], one.grade
        )
        for one in results.grades(run)
        if isinstance(one.grade, Graded) and one.regrade == 0
    ]

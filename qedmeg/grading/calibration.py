"""How far a grader can be trusted: against people's grades, and against texts that only ask for points."""

import argparse
import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

import matplotlib
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from qedmeg.config import GraderConfig
from qedmeg.data.problems import Problem
from qedmeg.errors import UserError
from qedmeg.grading.attacks import KINDS, Attack, attacks
from qedmeg.grading.grade import Cost, Failed, Grade, Graded
from qedmeg.grading.grader import Grader, ProofProblem
from qedmeg.grading.panel import make_grader
from qedmeg.grading.rated import RatedProof, embedded_rated, load_rated
from qedmeg.monitor.progress import bar
from qedmeg.settings import describe, load_config

matplotlib.use("Agg")
from matplotlib import pyplot

ALL = "all"


@dataclass(frozen=True)
class Agreement:
    """A grader beside people, over the proofs of one source that it graded. Points are of 7.

    What it failed to grade is counted in `failed` and is in none of the other numbers.
    """

    source: str
    graded: int
    failed: int
    equal: float | None
    """Share of proofs with the same points, within half a point."""
    within_one: float | None
    """Share of proofs that are at most one point apart."""
    error: float | None
    """Mean absolute difference."""
    bias: float | None
    """Mean of the grader's points less people's: above 0 it is lenient."""
    bias_error: float | None
    """Standard error of the bias."""
    rank_correlation: float | None
    """Spearman's; none where all proofs have the same points."""


@dataclass(frozen=True)
class Resistance:
    """A grader under one kind of attack. `rewarded` is the share of graded attacks that earned anything at all."""

    kind: str
    graded: int
    failed: int
    rewarded: float | None
    points: float | None
    """Mean, of 7."""


@dataclass(frozen=True)
class GradedText:
    """One text that was handed in: from a source of proofs, whose points people gave, or as a kind of attack."""

    origin: str
    problem: str
    people: float | None
    grade: Grade


@dataclass(frozen=True)
class Calibration:
    """All that is known of a grader after it."""

    grader: str
    """Its version."""
    agreement: tuple[Agreement, ...]
    """By source; with several, the last is of all together."""
    attacks: tuple[Resistance, ...]
    failures: dict[str, int]
    """Texts that were not graded, by kind of failure."""
    cost: Cost
    """Of this run; what came from the cache cost nothing."""
    texts: tuple[GradedText, ...]


def agreement(source: str, people: Sequence[float], grades: Sequence[Grade]) -> Agreement:
    """Compare grades with the points that people gave for the same proofs."""
    pairs = [(grade.points, points) for grade, points in zip(grades, people, strict=True) if isinstance(grade, Graded)]
    apart = [given - points for given, points in pairs]
    failed = len(grades) - len(pairs)
    if not pairs:
        return Agreement(source, 0, failed, None, None, None, None, None, None)
    varied = all(len({*column}) > 1 for column in zip(*pairs, strict=True))
    return Agreement(
        source=source,
        graded=len(pairs),
        failed=failed,
        equal=mean(abs(difference) < 0.5 for difference in apart),
        within_one=mean(abs(difference) <= 1 for difference in apart),
        error=mean(abs(difference) for difference in apart),
        bias=mean(apart),
        bias_error=stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else None,
        rank_correlation=float(spearmanr(*zip(*pairs, strict=True)).statistic) if varied else None,
    )


def resistance(kind: str, grades: Sequence[Grade]) -> Resistance:
    """What the attacks of one kind earned."""
    points = [grade.points for grade in grades if isinstance(grade, Graded)]
    if not points:
        return Resistance(kind, 0, len(grades), None, None)
    return Resistance(kind, len(points), len(grades) - len(points), mean(given > 0 for given in points), mean(points))


async def calibrate(grader: Grader, rated: Sequence[RatedProof], tried: Sequence[Attack]) -> Calibration:
    """Grade all proofs and attacks."""
    work = [(proof.problem, proof.proof) for proof in rated] + [(attack.problem, attack.text) for attack in tried]
    grades = await _grade_all(grader, work)
    on_proofs, on_attacks = grades[: len(rated)], grades[len(rated) :]
    people = [proof.points for proof in rated]
    sources = {proof.source: [i for i, other in enumerate(rated) if other.source == proof.source] for proof in rated}
    compared = [agreement(s, [people[i] for i in at], [on_proofs[i] for i in at]) for s, at in sources.items()]
    if len(sources) > 1:
        compared.append(agreement(ALL, people, on_proofs))
    by_kind = {kind: [g for a, g in zip(tried, on_attacks, strict=True) if a.kind == kind] for kind in KINDS}
    proofs = [GradedText(p.source, p.problem.id, p.points, g) for p, g in zip(rated, on_proofs, strict=True)]
    attempts = [GradedText(a.kind, a.problem.id, None, g) for a, g in zip(tried, on_attacks, strict=True)]
    return Calibration(
        grader=grader.version,
        agreement=tuple(compared),
        attacks=tuple(resistance(kind, found) for kind, found in by_kind.items() if found),
        failures=dict(Counter(grade.kind for grade in grades if isinstance(grade, Failed))),
        cost=sum((grade.cost for grade in grades), Cost()),
        texts=(*proofs, *attempts),
    )


async def _grade_all(grader: Grader, work: Sequence[tuple[Problem | ProofProblem, str]]) -> list[Grade]:
    with bar("grading", len(work)) as progress:

        async def one(problem: Problem | ProofProblem, proof: str) -> Grade:
            grade = await grader.grade(problem, proof)
            progress.advance()
            return grade

        return await asyncio.gather(*(one(problem, proof) for problem, proof in work))


# --- showing it -----------------------------------------------------------------------------------------------------


def show(result: Calibration, console: Console) -> None:
    """Print the result as two tables."""
    columns = ("proofs", "graded", "failed", "equal", "within 1", "error", "bias", "rank correlation")
    table = _table(f"{result.grader} beside people (points of 7)", columns)
    for row in result.agreement:
        bias = _shown(row.bias, "+.2f") + ("" if row.bias_error is None else f" ± {row.bias_error:.2f}")
        shares = _shown(row.equal, ".0%"), _shown(row.within_one, ".0%")
        numbers = _shown(row.error, ".2f"), bias, _shown(row.rank_correlation, ".2f")
        table.add_row(row.source, str(row.graded), str(row.failed), *shares, *numbers)
    console.print(table)
    table = _table("attacks", ("attack", "graded", "failed", "rewarded", "mean points"))
    for attack in result.attacks:
        rewarded, points = _shown(attack.rewarded, ".0%"), _shown(attack.points, ".2f")
        table.add_row(attack.kind, str(attack.graded), str(attack.failed), rewarded, points)
    console.print(table)
    for kind, count in result.failures.items():
        console.print(f"not graded, in no mean: {count} ({kind})")
    cost = result.cost
    tokens = f"{cost.prompt_tokens:,} prompt tokens, {cost.completion_tokens:,} completion tokens"
    console.print(f"asked for in this run: {cost.requests:,} requests, {tokens}, price {cost.money:.4f}")


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    return table


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def plot(result: Calibration, path: Path) -> None:
    """Draw the grader's points over people's, and the share of each attack that was rewarded, as an SVG file."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.2), gridspec_kw={"width_ratios": [1.2, 1]})
    spread = random.Random(0)  # so that equal points do not hide each other
    points: dict[str, list[tuple[float, float]]] = {}
    for text in result.texts:
        if text.people is not None and isinstance(text.grade, Graded):
            apart = spread.uniform(-0.2, 0.2), spread.uniform(-0.2, 0.2)
            points.setdefault(text.origin, []).append((text.people + apart[0], text.grade.points + apart[1]))
    left.plot([0, 7], [0, 7], color="#9aa4b2", lw=1, label="as people")
    for source, pairs in points.items():
        left.plot(*zip(*pairs, strict=True), "o", ms=4, alpha=0.5, label=source)
    left.set(xlabel="people's points", ylabel="grader's points", xlim=(-0.5, 7.5), ylim=(-0.5, 7.5))
    left.legend(fontsize=8)
    tried = [attack for attack in result.attacks[::-1] if attack.graded]
    right.barh([f"{a.kind} ({a.graded})" for a in tried], [a.rewarded for a in tried], color="#b91c1c")
    right.set(xlabel="share of attacks (of so many graded) that earned points", xlim=(0, 1))
    figure.suptitle(result.grader, fontsize=10)
    figure.tight_layout()
    partial = path.with_suffix(".partial")
    figure.savefig(partial, format="svg")
    pyplot.close(figure)
    partial.replace(path)


# --- the command ----------------------------------------------------------------------------------------------------


def main() -> int:
    """Calibrate a grader from the command line; exit status 1 when it graded nothing."""
    parser = argparse.ArgumentParser(
        description="Compare a grader with people who graded the same proofs, and attack it. What was graded is kept "
        "in OUT/grades.sqlite (or the settings' own cache): the same command goes on where it was cut off.",
        epilog=f"examples:\n  python eval/calibrate.py --config judge.yaml --data IMO-ProofBench-Basic.jsonl "
        f"gradingbench.csv --out runs/calibration\n  python eval/calibrate.py --embedded 50 --out runs/symbolic\n\n"
        f"settings (--config):\n{describe(GraderConfig)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, help="YAML file that says who grades (default: the symbolic grader)")
    parser.add_argument(
        "--data", type=Path, nargs="+", default=[], help="files of DeepSeek-Math-V2 (.jsonl) or IMO-GradingBench (.csv)"
    )
    parser.add_argument(
        "--embedded", type=int, default=0, help="full-mark proofs of so many embedded problems (default: none)"
    )
    parser.add_argument(
        "--attacked", type=int, default=20, help="problems that attacks are tried on (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    config = GraderConfig() if arguments.config is None else load_config(GraderConfig, arguments.config)
    rated = [proof for path in arguments.data for proof in load_rated(path)]
    if arguments.embedded:
        rated += embedded_rated(arguments.embedded, seed=0)
    if not rated:
        raise UserError("no proofs to grade: give --data or --embedded")
    if arguments.data and not config.judges:
        raise UserError("the symbolic grader knows the embedded problems only: give --config with a judge for --data")
    arguments.out.mkdir(parents=True, exist_ok=True)
    if config.cache is None:
        config = config.model_copy(update={"cache": arguments.out / "grades.sqlite"})
    best: dict[str, RatedProof] = {}
    for proof in sorted(rated, key=lambda proof: proof.points):
        best[proof.problem.id] = proof
    tried = attacks([(proof.problem, proof.proof) for proof in best.values()][: arguments.attacked])

    async def run() -> Calibration:
        graders = config
        async with AsyncExitStack() as ending:
            if config.serves:
                from qedmeg.rollout.judges import served_judges  # seconds to import, of torch

                graders, up = await ending.enter_async_context(served_judges(config, arguments.out / "logs"))
                await up
            grader = make_grader(graders)
            ending.push_async_callback(grader.close)
            return await calibrate(grader, rated, tried)

    result = asyncio.run(run())
    partial = arguments.out / "calibration.partial"
    partial.write_text(json.dumps(asdict(result), indent=1, default=float), encoding="utf-8")
    partial.replace(arguments.out / "calibration.json")
    plot(result, arguments.out / "calibration.svg")
    show(result, Console())
    print(f"wrote {arguments.out / 'calibration.json'} and calibration.svg")
    return 0 if any(row.graded for row in result.agreement) else 1

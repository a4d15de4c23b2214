"""Grade the answers of evaluations; see `python eval/grade.py --help`."""

import argparse
import asyncio
import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from qedmeg.config import GraderConfig
from qedmeg.errors import UserError
from qedmeg.evaluation.results import Attempt, Results, StoredGrade
from qedmeg.evaluation.scores import find_run, open_results
from qedmeg.evaluation.workers import work_through
from qedmeg.grading.grade import Cost, Failed, Graded
from qedmeg.grading.grader import AnyProblem, Grader
from qedmeg.grading.graders import Graders
from qedmeg.monitor.progress import bar
from qedmeg.settings import describe, load_config


@dataclass
class Outcome:
    """What became of the grades of a run this time."""

    graded: int = 0
    known: int = 0
    """Graded before."""
    failed: Counter[str] = field(default_factory=Counter)
    """By kind of failure; they are graded again when the command is given again."""
    cost: Cost = field(default_factory=Cost)


async def grade(
    results: Results, run: str, graders: Graders, *, share_again: float, times: int, concurrency: int
) -> Outcome:
    """Grade all answers of a run that this grader has not graded, and a share of them again.

    Args:
        results: where the run is.
        run: its name.
        graders: who grades which kind of problem.
        share_again: of the answers, chosen by a hash of problem and sample, that are graded `times` more, to see the
            grader's own noise.
        times: how many more.
        concurrency: grades that are asked for side by side.
    """
    problems = {one.id: one.problem for one in results.problems(run)}
    done = {
        (one.problem, one.sample, one.grader, one.regrade)
        for one in results.grades(run)
        if isinstance(one.grade, Graded)
    }
    attempts = results.attempts(run)
    again = [one for one in attempts if _place(one) < share_again]
    wanted = [(one, 0) for one in attempts] + [(one, regrade) for regrade in range(1, times + 1) for one in again]
    left = []
    for one, regrade in wanted:
        grader = graders.of(problems[one.problem])
        if (one.problem, one.sample, grader.version, regrade) not in done:
            left.append((one, regrade, problems[one.problem], grader))
    outcome = Outcome(known=len(wanted) - len(left))
    at_once = min(concurrency, len(left))
    with bar("grading", len(wanted), done=outcome.known, at_once=at_once) as progress:

        async def give(place: tuple[Attempt, int, AnyProblem, Grader]) -> None:
            one, regrade, problem, grader = place
            found = await grader.grade(problem, one.text, again=regrade)
            await results.add_grade(run, StoredGrade(one.problem, one.sample, grader.version, regrade, found))
            outcome.cost += found.cost
            if isinstance(found, Failed):
                outcome.failed[found.kind] += 1
            else:
                outcome.graded += 1
            progress.advance()

        await work_through(left, at_once, give)
    return outcome


def _place(attempt: Attempt) -> float:
    """Where in [0, 1) an answer falls: the same in every run, so that a greater share keeps what a smaller one has."""
    digest = hashlib.sha256(f"{attempt.problem}\0{attempt.sample}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Who grades, and how often."""
    parser.add_argument("--grader", type=Path, help="YAML file that says who grades (default: symbolic and by answer)")
    parser.add_argument(
        "--regrade", type=float, default=0.0, help="share of the answers that is graded again (default: none)"
    )
    parser.add_argument("--times", type=int, default=1, help="how often those are (default: %(default)s more)")
    parser.add_argument(
        "--grades-at-once", type=int, default=256, help="grades that are asked for side by side (default: %(default)s)"
    )


def read_grader(arguments: argparse.Namespace) -> GraderConfig:
    """The grader's settings, once the options are checked."""
    if not 0 <= arguments.regrade <= 1:
        raise UserError(f"--regrade: {arguments.regrade:g} is no share from 0 to 1")
    for option in ("times", "grades_at_once"):
        if getattr(arguments, option) < 1:
            raise UserError(f"--{option.replace('_', '-')}: {getattr(arguments, option)} is less than 1")
    return GraderConfig() if arguments.grader is None else load_config(GraderConfig, arguments.grader)


async def grade_runs(results: Results, runs: Sequence[str], config: GraderConfig, arguments: argparse.Namespace) -> int:
    """Grade runs one after the other and tell of each; the exit status: 1 where grades have failed. Judges' servers
    write their logs into the folder `logs` beside the results."""
    failed = 0
    async with AsyncExitStack() as ending:
        if config.serves:
            from qedmeg.rollout.judges import served_judges  # seconds to import, of torch

            config, up = await ending.enter_async_context(served_judges(config, results.path.parent / "logs"))
            await up
        graders = Graders(config)
        ending.push_async_callback(graders.close)
        for run in runs:
            outcome = await grade(
                results,
                run,
                graders,
                share_again=arguments.regrade,
                times=arguments.times,
                concurrency=arguments.grades_at_once,
            )
            cost = outcome.cost
            print(
                f"{run}: {outcome.graded} graded, {outcome.known} before; {cost.requests:,} requests, "
                f"{cost.prompt_tokens + cost.completion_tokens:,} tokens, price {cost.money:.4f}"
            )
            for kind, count in outcome.failed.most_common():
                print(f"not graded, in no mean: {count} ({kind}); the same command tries them again")
            failed += outcome.failed.total()
    return 1 if failed else 0


def main() -> int:
    """Grade answers from the command line."""
    parser = argparse.ArgumentParser(
        description="Grade what eval/run.py has answered. What a grader has graded it does not grade again; what it "
        "failed to grade it tries again.",
        epilog="examples:\n"
        "  python eval/grade.py runs/results.sqlite\n"
        "  python eval/grade.py runs/results.sqlite --grader judge.yaml --regrade 0.1\n\n"
        f"settings of --grader:\n{describe(GraderConfig)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, help="file of results")
    parser.add_argument("--run", nargs="+", default=[], metavar="NAME", help="runs to grade (default: all)")
    add_arguments(parser)
    arguments = parser.parse_args()
    config = read_grader(arguments)
    with closing(open_results(arguments.results)) as results:
        runs = [find_run(results, name) for name in arguments.run] or results.runs()
        return asyncio.run(grade_runs(results, [run.name for run in runs], config, arguments))

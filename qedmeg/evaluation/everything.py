"""Answer, grade, statistics and comparison in one; see `python eval/all.py --help`."""

import argparse
import asyncio
from contextlib import closing
from pathlib import Path

from qedmeg.config import GraderConfig
from qedmeg.evaluation import compare, stats
from qedmeg.evaluation.grade import add_arguments as add_grading_arguments
from qedmeg.evaluation.grade import grade_runs, read_grader
from qedmeg.evaluation.run import add_arguments, answer, begun, prepared, say
from qedmeg.evaluation.scores import find_run
from qedmeg.settings import describe


def main() -> int:
    """Evaluate from the command line: what eval/run.py, grade.py, stats.py and compare.py do one after the other."""
    parser = argparse.ArgumentParser(
        description="Answer a benchmark, grade the answers, and tell what they scored, beside another run if one is "
        "named. Run again it goes on where it was cut off.",
        epilog="example:\n"
        "  python eval/all.py --benchmark imo-answerbench --data answerbench_v2.csv --model my-model \\\n"
        "    --grader judge.yaml --against base --name mine --out runs/results.sqlite\n\n"
        f"settings of --grader:\n{describe(GraderConfig)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    add_grading_arguments(parser)
    parser.add_argument("--against", metavar="NAME", help="run in the same results to compare with (default: none)")
    parser.add_argument("--report", type=Path, help="folder for JSON files and plots (default: none are written)")
    arguments = parser.parse_args()
    todo, grader = prepared(arguments), read_grader(arguments)
    name = todo.run.name
    with closing(begun(arguments.out)) as results:
        against = None if arguments.against is None else find_run(results, arguments.against)
        status = say(asyncio.run(answer(results, todo)), todo.run)
        status = max(status, asyncio.run(grade_runs(results, todo.names, grader, arguments)))
        stats.tell(stats.summaries(results, todo.names, None), arguments.report)
        if against is not None:
            both = (results, find_run(results, name)), (results, against)
            compare.tell(compare.compare(*compare.read_both(*both, None)), arguments.report)
    return status

"""Run a recipe in several ranks on this machine; the same command again resumes it."""

import argparse
import os
import re
import sys
from pathlib import Path

from qedmeg.errors import EXIT_REQUEUE, UserError, run_command
from qedmeg.launch import add_job_arguments, read_job

GRACE_SECONDS = 600  # nothing but a second Ctrl-C is in a hurry on one's own machine
EPILOG = f"""\
example:
  python launch/local.py recipes/sft.py --config recipes/configs/sft.yaml --nproc 4 run_dir=runs/first data.seed=1

The run folder is run_dir=, else run_dir of the config, else runs/NAME for NAME.yaml; each rank's output is in its
logs/local.N/rank-R.out and .err, rank 0's on the screen too. Ctrl-C or SIGTERM: the recipe saves and ends with status
{EXIT_REQUEUE}, and the same command goes on from there; Ctrl-C twice does not wait for the save. The status is else
that of the recipe."""


def next_attempt(logs: Path) -> Path:
    """The first of local.1, local.2, ... in `logs` after all those that are there."""
    taken = [int(match[1]) for path in logs.glob("local.*") if (match := re.fullmatch(r"local\.(\d{1,9})", path.name))]
    return logs / f"local.{max(taken, default=0) + 1}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_job_arguments(parser)
    parser.add_argument("--nproc", type=int, default=1, help="ranks to start: one per GPU, or as many as the CPU feeds")
    args = parser.parse_intermixed_args()
    if args.nproc < 1:
        raise UserError(f"--nproc {args.nproc}: must be 1 or more")
    job = read_job(args.recipe, args.config, args.overrides)

    from qedmeg.node import Node, run_node  # takes torch's seconds to import: not before a mistake could be told

    logs = next_attempt(job.run_dir / "logs")
    os.makedirs(logs)
    status = run_node(Node(args.nproc, logs, GRACE_SECONDS), job.arguments(job.config))
    if status == EXIT_REQUEUE:
        print(
            f"stopped; the same command resumes the run from the last complete checkpoint in {job.run_dir}",
            file=sys.stderr,
        )
    return status


if __name__ == "__main__":
    run_command(main)

"""Submit a recipe to SLURM: one sbatch file, one run folder, saved and requeued when its time is up."""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from qedmeg.errors import EXIT_REQUEUE, UserError, run_command
from qedmeg.launch import Job, add_job_arguments, read_job

SECONDS_TO_END = 15  # kept of the grace period for what comes after the ranks' end: statuses, the requeue
EPILOG = f"""\
example:
  python launch/slurm.py recipes/sft.py --config recipes/configs/sft.yaml --nodes 4 --gpus-per-node 8 \\
      --partition h100 --time 24:00:00 run_dir=/scratch/runs/first

The run folder is run_dir=, else run_dir of the config, else runs/NAME for NAME.yaml; it must be on a disk that all
nodes see. It gets launch/job.sbatch, launch/config.yaml (a copy: later edits of the config do not reach a requeued
job), logs/slurm.log and, for each attempt, logs/JOB.ATTEMPT/node-N.log, rank-R.out and rank-R.err.

The ranks get SIGTERM --grace seconds before the time limit, save, and end with status {EXIT_REQUEUE}; the job then
requeues itself and goes on from there. It does not after success, a failure, or scancel."""


@dataclass(frozen=True)
class Submission:
    """A job with the machines it asks for."""

    job: Job
    name: str
    nodes: int
    processes: int
    """Ranks on each node: one per GPU, or as asked for on nodes without."""
    gpus: int
    """GPUs of each node; 0 for CPU nodes."""
    cpus: int | None
    """CPUs of each node; None for whole nodes."""
    options: tuple[str, ...]
    """Further sbatch options, without their leading dashes."""
    grace: int
    """Seconds between SIGTERM and the time limit."""
    max_requeues: int

    @property
    def folder(self) -> Path:
        """Where the files of the submission are kept."""
        return self.job.run_dir / "launch"


def render(submission: Submission) -> str:
    """The sbatch file, with this interpreter and the current folder written into it."""
    templates = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(loader=templates, undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.filters["sh"] = lambda value: shlex.quote(str(value))
    return environment.get_template("job.sbatch.jinja").render(
        vars(submission),
        arguments=submission.job.arguments(submission.folder / "config.yaml"),
        python=Path(sys.executable),
        directory=Path.cwd(),
        requeue=EXIT_REQUEUE,
        seconds_to_end=SECONDS_TO_END,
    )


def describe(submission: Submission) -> str:
    """The sizes that follow from what was asked for, a line each."""
    world = submission.nodes * submission.processes
    device = "GPUs" if submission.gpus else "CPU processes"
    return (
        f"world size   {world} = {submission.nodes} nodes × {submission.processes} {device}\n"
        f"run folder   {submission.job.run_dir}\n"
        f"saves        SIGTERM {submission.grace} s before the time limit, "
        f"{submission.grace - SECONDS_TO_END} s to save, at most {submission.max_requeues} requeues"
    )


def submit(submission: Submission) -> str:
    """Write the run folder's launch/ and hand the job to sbatch; returns the job id.

    Raises:
        UserError: when sbatch is missing or refuses the job, or an earlier job of this run folder has not ended.
    """
    if not shutil.which("sbatch"):
        raise UserError("sbatch: not found on this machine; run this where SLURM is, or see the file with --dry-run")
    folder, run_dir = submission.folder, submission.job.run_dir
    job_id = folder / "job_id"
    if job_id.exists() and _in_queue(earlier := job_id.read_text().strip()):
        raise UserError(f"run_dir '{run_dir}': its job {earlier} is still in the queue; scancel it or give another")
    folder.mkdir(parents=True, exist_ok=True)
    (run_dir / "logs").mkdir(exist_ok=True)
    (folder / "config.yaml").write_bytes(submission.job.config.read_bytes())
    script = folder / "job.sbatch"
    script.write_text(render(submission), encoding="utf-8")
    answer = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise UserError(f"{script}: refused by sbatch: {' '.join(answer.stderr.split())}")
    job_id.write_text(answer.stdout.partition(";")[0].strip() + "\n")
    return job_id.read_text().strip()


def _in_queue(job_id: str) -> bool:
    answer = subprocess.run(["squeue", "--noheader", "--jobs", job_id], capture_output=True, text=True, check=False)
    return bool(answer.stdout.strip())  # squeue fails for a job that SLURM has forgotten


def limit_seconds(limit: str) -> int:
    """A SLURM time limit (minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S) in seconds.

    >>> limit_seconds("90"), limit_seconds("1:30"), limit_seconds("1-2")
    (5400, 90, 93600)
    """
    match = re.fullmatch(r"(?:(\d{1,5})-)?(\d{1,6})(?::(\d{1,6}))?(?::(\d{1,6}))?", limit)
    if not match:
        raise UserError(f"--time '{limit}': not a time limit; expected such as 90 (minutes), 12:00:00 or 2-00:00:00")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:
        hours, minutes, seconds = {1: [0, *numbers, 0], 2: [0, *numbers], 3: numbers}[len(numbers)]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def read_submission(args: argparse.Namespace) -> Submission:
    """The submission that the command line asks for; raises UserError naming the argument, its value and the remedy."""
    if (args.gpus_per_node is None) == (args.procs_per_node is None):
        raise UserError("--gpus-per-node or --procs-per-node: give one of them, the second for nodes without GPUs")
    least = {"nodes": 1, "gpus_per_node": 1, "procs_per_node": 1, "cpus_per_node": 1, "max_requeues": 0}
    least["grace"] = 2 * SECONDS_TO_END
    for field, minimum in least.items():
        value = getattr(args, field)
        if value is not None and value < minimum:
            raise UserError(f"--{field.replace('_', '-')} {value}: must be {minimum} or more")
    if args.time and limit_seconds(args.time) <= args.grace:
        raise UserError(f"--time '{args.time}': leaves nothing before SIGTERM, {args.grace} s earlier; lower --grace")
    named = {"partition": args.partition, "account": args.account, "time": args.time}
    options = [*(f"{key}={value}" for key, value in named.items() if value), *args.sbatch]
    for option in options:
        if not re.fullmatch(r"[a-z][a-z-]*(=[^\s'\"\\]+)?", option):
            raise UserError(f"sbatch option '{option}': expected name or name=value, without blanks and quotes")
    job = read_job(args.recipe, args.config, args.overrides)
    name = args.job_name or job.run_dir.name
    if not re.fullmatch(r"[\w.@+=,-]+", name):
        raise UserError(f"--job-name '{name}': only letters, digits and ._@+=,- may be in it")
    processes = args.gpus_per_node or args.procs_per_node
    return Submission(
        job=job,
        name=name,
        nodes=args.nodes,
        processes=processes,
        gpus=args.gpus_per_node or 0,
        cpus=args.cpus_per_node,
        options=tuple(options),
        grace=args.grace,
        max_requeues=args.max_requeues,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_job_arguments(parser)
    parser.add_argument("--nodes", type=int, required=True, help="machines")
    parser.add_argument("--gpus-per-node", type=int, metavar="G", help="GPUs of each machine, a rank on each")
    parser.add_argument("--procs-per-node", type=int, metavar="P", help="ranks on each machine, for nodes without GPUs")
    parser.add_argument("--cpus-per-node", type=int, metavar="C", help="share nodes and take C CPUs; default: all")
    parser.add_argument("--partition", help="SLURM partition")
    parser.add_argument("--account", help="SLURM account")
    parser.add_argument("--time", help="time limit of one attempt, such as 90 (minutes), 12:00:00 or 2-00:00:00")
    parser.add_argument("--job-name", help="default: the name of the run folder")
    parser.add_argument("--grace", type=int, default=300, help="seconds to save before the time limit (default 300)")
    parser.add_argument("--max-requeues", type=int, default=50, help="how often the job requeues itself (default 50)")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", help="a further sbatch option, such as qos=long"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the sbatch file and write nothing")
    args = parser.parse_intermixed_args()
    submission = read_submission(args)
    print(describe(submission), file=sys.stderr)
    if args.dry_run:
        sys.stdout.write(render(submission))
        return 0
    job_id = submit(submission)
    print(f"submitted    job {job_id}; follow {submission.job.run_dir}/logs/slurm.log", file=sys.stderr)
    print(job_id)
    return 0


if __name__ == "__main__":
    run_command(main)

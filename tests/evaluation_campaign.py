"""Evaluate a model on the real benchmarks, kill it again and again on the way, and compare with an undisturbed run.

eval/run.py and eval/grade.py answer and grade all of IMO-ProofBench and IMO-AnswerBench with a model folder behind
vLLM and a scripted judge that fails three times in ten. Each command is killed with SIGKILL at random moments and given
again. Every answer and every grade must then be as in a run that was left alone; statistics and comparison are made of
both. The model's context is taken to be 8,192 tokens, since the demo's own is too short for olympiad problems. The
result is written as JSON beside this script.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from qedmeg.evaluation.results import Results  # noqa: E402
from tests.grading.judge_server import JudgeServer, drawn  # noqa: E402

RESULT = Path(__file__).with_suffix(".json")
BENCHMARKS = {"imo-proofbench": "proofbench_v2.csv", "imo-answerbench": "answerbench_v2.csv"}
CONTEXT, MAX_TOKENS = 8192, 96
FAILING = 0.3
LONGEST_SECONDS = 1800.0


def run(command: Sequence[object], log: Path, due: Callable[[], bool] = lambda: False) -> bool:
    """Run a command of the repository; whether it came to its end, with whatever status. Once `due` it is killed, with
    all that it has started."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    started = time.monotonic()
    while (status := process.poll()) is None:
        late = time.monotonic() - started > LONGEST_SECONDS
        if late or due():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if late:
                sys.exit(f"no end of {command} within {LONGEST_SECONDS:g} s; its log: {log.read_text()[-2000:]}")
            return False
        time.sleep(0.01)
    if status not in (0, 1):  # 1: some failed, and are tried again
        sys.exit(f"status {status} from {command}\n{log.read_text()[-3000:]}")
    return True


def evaluate(folder: Path, model: Path, judge: Path, data: Path, problems: int | None) -> list[list[object]]:
    """The commands that answer and grade the benchmarks into `folder`."""
    results = folder / "results.sqlite"
    few = [] if problems is None else ["--problems", problems]
    answer: list[list[object]] = [
        [
            *("eval/run.py", "--benchmark", name, "--data", data / file, "--model", model, "--name", name, *few),
            *("--out", results, "--set", f"model.max_tokens={MAX_TOKENS}", "--set", "model.temperature=0.8"),
        ]
        for name, file in BENCHMARKS.items()
    ]
    return [*answer, ["eval/grade.py", results, "--grader", judge, "--regrade", 0.2]]


def rows(path: Path) -> int:
    """Answers and grades that are kept by now."""
    if not path.is_file():
        return 0
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as database:
        try:
            counts = [database.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in ("attempts", "grades")]
        except sqlite3.OperationalError:  # its tables are being made
            return 0
    return sum(counts)


def found(folder: Path) -> dict[str, Any]:
    """All answers and grades, without the times and costs that they took."""
    with closing(Results(folder / "results.sqlite")) as results:
        kept: dict[str, Any] = {}
        for one in results.runs():
            for attempt in results.attempts(one.name):
                place = f"{one.name} {attempt.problem} {attempt.sample}"
                kept[place] = [attempt.text, attempt.ended, attempt.tokens]
            for stored in results.grades(one.name):
                place = f"{one.name} {stored.problem} {stored.sample} {stored.grader} {stored.regrade}"
                kept[place] = getattr(stored.grade, "points", "failed")
        return kept


def main() -> int:
    """Run the campaign; exit status 0 when both ends are equal and all kills were made."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python tests/evaluation_campaign.py --data ../shared/data/imobench --kills 10",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the files of IMO-Bench")
    parser.add_argument("--model", type=Path, default=Path("runs/demo/grpo"), help="folder (default: %(default)s)")
    parser.add_argument("--problems", type=int, help="only the first so many of each (default: all)")
    parser.add_argument("--kills", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="evaluation-campaign-"))
    moments, kills = random.Random(args.seed), 0
    try:
        model = folder / "model"
        shutil.copytree(args.model, model)
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": CONTEXT}))
        with JudgeServer(drawn(FAILING, args.seed), slow_seconds=6.0) as server:
            settings = {"base_url": server.url, "model": "scripted", "timeout_seconds": 5.0, "backoff_seconds": 0.01}
            judge = folder / "judge.yaml"
            judge.write_text(json.dumps({"judges": [settings]}))
            took, made = [], [0]
            for command in evaluate(folder / "alone", model, judge, args.data.absolute(), args.problems):
                (folder / "alone").mkdir(exist_ok=True)
                started = time.monotonic()
                run(command, folder / "alone.log")
                took.append(time.monotonic() - started)
                made.append(rows(folder / "alone" / "results.sqlite"))
            print(f"undisturbed: {', '.join(f'{seconds:.0f} s' for seconds in took)}", flush=True)
            commands = evaluate(folder / "killed", model, judge, args.data.absolute(), args.problems)
            (folder / "killed").mkdir()
            results = folder / "killed" / "results.sqlite"
            for number, command in enumerate(commands):
                planned = args.kills // len(commands) + (number < args.kills % len(commands))
                span = (made[number + 1] - made[number]) / max(planned, 1)
                for part in range(planned):
                    at = made[number] + int((part + moments.random()) * span)
                    kills += not run(command, folder / "killed.log", lambda at=at: rows(results) > at)
                run(command, folder / "killed.log")
        alone, killed = found(folder / "alone"), found(folder / "killed")
        for where in ("alone", "killed"):
            run(["eval/stats.py", folder / where / "results.sqlite", "--out", folder / where], folder / "stats.log")
        for name in BENCHMARKS:
            other = ["--other", folder / "killed" / "results.sqlite", "--runs", name, name]
            run(["eval/compare.py", folder / "alone" / "results.sqlite", *other], folder / "stats.log")
    finally:
        shutil.rmtree(folder)
    differing = sorted(place for place in alone.keys() | killed.keys() if alone.get(place) != killed.get(place))
    report = {
        "kills": kills,
        "answers_and_grades": len(alone),
        "failed_grades": sum(value == "failed" for value in alone.values()),
        "differing": differing[:20],
        "undisturbed_seconds": took,
    }
    print(json.dumps(report, indent=1))
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if not differing and kills == args.kills else 1


if __name__ == "__main__":
    sys.exit(main())

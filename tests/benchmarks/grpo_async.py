"""Steps a minute of GRPO with a judge that takes 2 to 10 s a grade: asynchronous (max_lag above 0) against synchronous.

    python tests/benchmarks/grpo_async.py --model runs/demo/sft

The judge is a server that speaks the chat completions API. It grades the demo's proofs by the symbolic checker and
holds each answer back for a time that follows from the proof and the seed, the same for every run. It and all of the
run share the machine's cores. The runs take turns. A vLLM server of their own is started for each, and they differ in
max_lag alone. Asked are 1.3 times the steps a minute.

Not counted are the first steps of each run, as many as the greatest max_lag has and one: what a run with lag generates
ahead before it trains for the first time would flatter it.
"""

import argparse
import asyncio
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

sys.path.insert(0, str(Path(__file__).parents[2]))

from qedmeg.data.problems import Problem
from qedmeg.grading import symbolic
from tests.benchmarks.grpo_runs import DEMO_CONFIG, Steps, train, write_problems
from tests.benchmarks.side_by_side import gigaflops, spread
from tests.grading.judge_server import JudgeServer, Question, text_content

RESULT = Path(__file__).with_suffix(".json")
FASTEST, SLOWEST = 2.0, 10.0
"""Seconds a grade."""
BAR = 1.3


@dataclass
class ScriptedJudge(JudgeServer):
    """A judge that grades as the symbolic checker does, and takes its time over it."""

    problems: dict[str, Problem] = field(default_factory=dict)
    """By statement."""
    seed: int = 0
    seconds_given: list[float] = field(default_factory=list)

    async def answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        """The verdict, as a judge writes it that answers in text."""
        started = time.monotonic()
        user = body["messages"][-1]["content"]
        question = Question.read(user)
        statement = user.removeprefix("# Problem\n\n").partition("\n\n# Marking scheme")[0]
        graded = symbolic.grade(self.problems[statement], question.proof)
        draw = random.Random(f"{self.seed} {statement} {question.proof}")
        seconds = draw.uniform(FASTEST, SLOWEST)
        self.seconds_given.append(seconds)
        content = text_content("right", replace(question, given=tuple(int(item.points) for item in graded.items)), draw)
        await asyncio.sleep(seconds - (time.monotonic() - started))
        usage = {"prompt_tokens": len(user) // 4, "completion_tokens": len(content) // 4}
        message = {"role": "assistant", "content": content}
        return web.json_response(
            {
                "object": "chat.completion",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": usage | {"total_tokens": sum(usage.values())},
            }
        )


def main() -> int:
    """Run each lag in turns, print the comparison, and keep it; status 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/demo/sft"), help="folder (default: %(default)s)")
    parser.add_argument("--lags", type=int, nargs="+", default=[0, 2, 4], help="max_lag of each (default: 0 2 4)")
    parser.add_argument("--steps", type=int, default=15, help="of each run (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=256, help="the judge's (default: %(default)s)")
    args = parser.parse_args()
    args.lags = sorted({0, *args.lags})
    if args.steps < max(args.lags) + 4:
        parser.error(f"--steps {args.steps}: {max(args.lags) + 1} are not counted; give more")
    folder = Path(tempfile.mkdtemp(prefix="grpo-async-"))
    runs: dict[int, list[dict[str, Any]]] = {lag: [] for lag in args.lags}
    rates = []
    try:
        problems = write_problems(folder / "problems.jsonl")
        with ScriptedJudge(problems={problem.statement: problem for problem in problems}) as judge:
            config = _config(folder, judge.url, args)
            for number in range(args.repeats):
                for lag in args.lags:
                    rates.append(gigaflops("fp32", 2))
                    name = f"lag-{lag}-{number}"
                    steps = train(folder, name, [f"rollout.max_lag={lag}"], config)
                    runs[lag].append(_numbers(steps, max(args.lags) + 1))
                    shown = {key: value for key, value in runs[lag][-1].items() if key != "rewards"}
                    print(f"{name}: {shown}", flush=True)
            grades = judge.seconds_given
    finally:
        shutil.rmtree(folder)
    return _report(args, runs, grades, rates)


def _config(folder: Path, judge: str, args: argparse.Namespace) -> Path:
    """The demo's settings, with a vLLM server and the judge."""
    config = yaml.safe_load(DEMO_CONFIG.read_text())
    config["model"] = {"hf": str(args.model.absolute())}
    config["data"]["train"] = str(folder / "problems.jsonl")
    config["rollout"] |= {"start": 1, "engines": 1}
    config["grader"] = {"judges": [{"base_url": judge, "model": "scripted", "concurrency": args.concurrency}]}
    config["max_steps"] = args.steps
    config["checkpoint"]["save_every"] = args.steps
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def _numbers(steps: Steps, left_out: int) -> dict[str, Any]:
    times = steps.times[left_out - 1 :]
    seconds = {name: statistics.fmean(steps.of(name)[left_out:]) for name in _time_names(steps)}
    return {
        "steps_per_minute": 60 * (len(times) - 1) / (times[-1] - times[0]),
        "seconds_of_a_step": seconds,
        "lag_mean": statistics.fmean(steps.of("lag_mean")[left_out:]),
        "lag_max": max(steps.of("lag_max")[left_out:]),
        "last_reward": 7 * statistics.fmean(steps.of("reward")[-5:]),
        "rewards": [7 * reward for reward in steps.of("reward")],
        "peak_gb": steps.run.peak_bytes / 1e9,
    }


def _time_names(steps: Steps) -> list[str]:
    return sorted(name.removeprefix("train/") for name in steps.metrics[-1] if name.startswith("train/time/"))


def _report(
    args: argparse.Namespace, runs: dict[int, list[dict[str, Any]]], grades: list[float], rates: list[float]
) -> int:
    speeds = {lag: [run["steps_per_minute"] for run in found] for lag, found in runs.items()}
    synchronous = statistics.median(speeds[0])
    result = {
        "prompts_per_step": yaml.safe_load(DEMO_CONFIG.read_text())["data"]["prompts_per_step"],
        "steps_of_a_run": args.steps,
        "steps_not_counted": max(args.lags) + 1,
        "judge_concurrency": args.concurrency,
        "judge_seconds": {"mean": statistics.fmean(grades), "lowest": min(grades), "highest": max(grades)},
        "grades": len(grades),
        "matrix_gigaflops": spread(rates),
        "max_lag": {
            lag: {"steps_per_minute": spread(speeds[lag]), "ratio": statistics.median(speeds[lag]) / synchronous}
            | {"runs": found}
            for lag, found in runs.items()
        },
        "asked": BAR,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    best = max(result["max_lag"][lag]["ratio"] for lag in runs)
    for lag in runs:
        print(f"max_lag {lag}: {statistics.median(speeds[lag]):.2f} steps a minute")
    print(f"{best:.2f} times the synchronous one's; asked: {BAR}")
    return 0 if best >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())

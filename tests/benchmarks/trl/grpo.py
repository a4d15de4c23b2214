"""TRL's side of grpo_speed.py: its GRPOTrainer, graded by the same symbolic checker, in an environment of its own.

PYTHONPATH=. tests/benchmarks/trl/.venv/bin/python tests/benchmarks/trl/grpo.py JOB

JOB is a JSON file: `model` and `problems` to read, `out` to write, and `arguments` of TRL's GRPOConfig. The problems
are taken in the order of their rows.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from step_clock import Clock
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from qedmeg.data.problems import Problem
from qedmeg.grading import symbolic


def main(path: str) -> None:
    """Train, and write times, rewards and lengths of the steps to `out`."""
    job = json.loads(Path(path).read_text())
    problems = [Problem.from_json(json.loads(line)) for line in Path(job["problems"]).read_text().splitlines()]
    rows = [
        {"prompt": [{"role": "user", "content": problem.statement}], "number": number}
        for number, problem in enumerate(problems)
    ]
    grading: list[float] = []

    def reward(completions: list[list[dict[str, str]]], number: list[int], **_: Any) -> list[float]:
        started = time.monotonic()
        grades = [
            symbolic.grade(problems[row], completion[0]["content"])
            for row, completion in zip(number, completions, strict=True)
        ]
        grading.append(time.monotonic() - started)
        return [grade.points / grade.of for grade in grades]

    clock = Clock()
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        reward_funcs=reward,
        train_dataset=Dataset.from_list(rows),
        callbacks=[clock],
        args=GRPOConfig(output_dir=str(Path(job["out"]).with_suffix("")), **job["arguments"]),
    )
    trainer.train()
    if int(os.environ.get("RANK", "0")) > 0:
        return
    logged = [line for line in trainer.state.log_history if "reward" in line]
    result = {
        "times": clock.times,
        "rewards": [line["reward"] for line in logged],
        "tokens": [line["completions/mean_length"] for line in logged],
        "truncated": [line["completions/clipped_ratio"] for line in logged],
        "grading_seconds": grading,
    }
    Path(job["out"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])

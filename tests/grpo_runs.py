"""A small GRPO run for tests: a tiny model, problems, and a judge that gives points by the text of the proof."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from qedmeg.monitor.metrics import read_metrics
from tests.checkpoints import make_checkpoint
from tests.data.conftest import MARKED, save_byte_level

ROOT = Path(__file__).parents[1]
SECONDS = 240.0


def write_inputs(
    folder: Path, judge_url: str, family: str = "qwen3", model: dict[str, Any] | None = None, **settings: Any
) -> Path:
    """`model/`, `problems.jsonl` and `grpo.yaml` in a folder; the path of the last. `settings` are laid over it, and
    `model` goes into the model's config."""
    make_checkpoint(folder / "model", family, **({"vocab_size": 400, "tie_word_embeddings": True} | (model or {})))
    save_byte_level(folder / "model", MARKED)
    rubric = [{"name": "case", "points": 3, "description": "n even"}, {"name": "end", "points": 4, "description": "so"}]
    rows = [{"id": f"p{i}", "problem": f"Prove that n^2 + {i} is n.", "rubric": rubric} for i in range(8)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = {
        "run_dir": str(folder / "run"),
        "model": {"hf": str(folder / "model")},
        "data": {
            "train": str(folder / "problems.jsonl"),
            "prompts_per_step": 3,
            "rollouts_per_prompt": 4,
            "tokens_per_microbatch": 256,
        },
        "rollout": {"max_tokens": 24, "gate_prompts": 2, "gate_every": 2},
        "grader": {"judges": [{"base_url": judge_url, "model": "judge"}]},
        "compute": {"precision": "fp32"},
        "optimizer": {"lr": 1e-3, "schedule": "constant"},
        "checkpoint": {"save_every": 2, "keep_last": 9},
        "max_steps": 4,
    }
    path = folder / "grpo.yaml"
    path.write_text(yaml.safe_dump(written | settings))
    return path


def validation(folder: Path, problems: int = 12) -> dict[str, Any]:
    """A section of the settings, and the file of held-out problems that it names."""
    rubric = "7 for a proof"
    rows = [{"id": f"v{i}", "problem": f"Prove that n^2 - {i} is m.", "rubric": rubric} for i in range(problems)]
    (folder / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "every": 2,
        "benchmark": str(folder / "held_out.jsonl"),
        "samples": 2,
        "greedy": True,
        "scaffold_settings": {"prompt": "{problem}"},
    }


def start(config: Path, *settings: str, ranks: int = 1, recipe: str = "recipes/grpo.py") -> "subprocess.Popen[str]":
    """The recipe in a process group of its own."""
    return start_command(command_line(config, *settings, ranks=ranks, recipe=recipe))


def command_line(config: Path, *settings: str, ranks: int = 1, recipe: str = "recipes/grpo.py") -> list[str]:
    """What starts the recipe."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    return [sys.executable, *launcher, recipe, "--config", str(config), *settings]


def start_command(command: list[str]) -> "subprocess.Popen[str]":
    """A command in a process group of its own, with the environment of a recipe."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit status and output."""
    try:
        output, _ = process.communicate(timeout=SECONDS)
    finally:
        kill(process)
    return process.returncode, output


def refused(config: Path, settings: list[str]) -> str:
    """The error that the settings are refused with; runs on each rank of a pool."""
    from qedmeg.config_rl import GRPOConfig
    from qedmeg.errors import UserError
    from qedmeg.settings import load_config
    from qedmeg.training.grpo import train

    try:
        train(load_config(GRPOConfig, config, settings))
    except UserError as error:
        return str(error)
    raise AssertionError("the settings were taken")


def kill(process: "subprocess.Popen[str]") -> None:
    """SIGKILL to the ranks; the rollout process and its engines must end by themselves."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def read_steps(run_dir: Path) -> list[dict[str, float]]:
    """What the run has logged of its steps, validations left out."""
    return [line for line in read_metrics(run_dir) if "train/reward" in line]


def wait_for_step(run_dir: Path, step: int) -> None:
    """Until the run has logged `step`."""
    deadline = time.monotonic() + SECONDS
    while not any(line["step"] >= step for line in read_steps(run_dir)):
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.05)

"""Runs of recipes/grpo.py and ppo.py on the demo's model and problems, for the benchmarks of reinforcement learning."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qedmeg.data.problems import Problem, generate
from qedmeg.demo.stages import PROBLEMS, SEED
from qedmeg.monitor.metrics import read_metrics
from qedmeg.rollout.schedule import prompt_of
from tests.benchmarks.side_by_side import ROOT, Run, run

DEMO_CONFIG = ROOT / "recipes" / "configs" / "grpo_demo.yaml"
RANKS = 2


@dataclass(frozen=True)
class Steps:
    """What a run logged of its steps: when each ended (seconds since the epoch), and its numbers."""

    run: Run
    times: tuple[float, ...]
    metrics: tuple[dict[str, float], ...]

    def of(self, name: str) -> list[float]:
        """A number of each step."""
        return [line[f"train/{name}"] for line in self.metrics]


def write_problems(path: Path) -> list[Problem]:
    """The demo's training problems, as rows for data.train."""
    problems = generate("train", PROBLEMS, SEED)
    path.write_text("".join(json.dumps(problem.to_json()) + "\n" for problem in problems))
    return problems


def in_order(problems: Sequence[Problem], seed: int, groups: int) -> list[Problem]:
    """The problems of a run's first groups, as data.seed draws them."""
    return [problems[prompt_of(group, seed, len(problems))] for group in range(groups)]


def train(
    folder: Path, name: str, settings: Sequence[str], config: Path = DEMO_CONFIG, recipe: str = "recipes/grpo.py"
) -> Steps:
    """Train on two ranks of one thread each in `folder`/`name`."""
    run_dir = folder / name
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    command += [recipe, "--config", str(config), f"run_dir={run_dir}", *settings]
    done = run(command, 1, folder / f"{name}.log")
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    times = tuple(event.wall_time for event in events.Scalars("train/reward"))
    return Steps(done, times, tuple(line for line in read_metrics(run_dir) if "train/reward" in line))

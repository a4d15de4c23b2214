"""A small run of PPO or REINFORCE for tests: model folder, problems, settings, and a stand-in for rollouts."""

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
import yaml

from qedmeg.grading.grade import Failed, Graded
from qedmeg.rollout.sample import Batch, Group, Rollout, Sample
from tests.checkpoints import make_checkpoint
from tests.data.conftest import MARKED, save_byte_level

PROBLEMS, PROMPTS, ROLLOUTS = 3, 3, 4
ANSWERS = [[11, 45, 102, 7, 2], [250, 33, 2], [61, 62, 63, 64, 65, 66, 2], [5, 301, 77, 2]]
POINTS = [0, 7, 3, 1]
"""What each of the answers earns, of 7."""


def write_inputs(folder: Path, **settings: Any) -> Path:
    """`model/`, `problems.jsonl` and `ppo.yaml` in a folder; the path of the last."""
    make_checkpoint(folder / "model", vocab_size=400)
    save_byte_level(folder / "model", MARKED)
    rows = [{"problem": f"Prove that {2 * i} is even.", "rubric": "7 for a proof"} for i in range(PROBLEMS)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = {
        "run_dir": str(folder / "run"),
        "model": {"hf": str(folder / "model")},
        "data": {
            "train": str(folder / "problems.jsonl"),
            "prompts_per_step": PROMPTS,
            "rollouts_per_prompt": ROLLOUTS,
            "tokens_per_microbatch": 128,
        },
        "rollout": {"max_tokens": 8},
        "compute": {"precision": "fp32"},
        "optimizer": {"lr": 1e-3, "schedule": "constant"},
        "checkpoint": {"save_every": 100, "keep_last": 9},
        "max_steps": 12,
    }
    path = folder / "ppo.yaml"
    path.write_text(yaml.safe_dump(whole | settings))
    return path


class ScriptedRollouts:
    """Stands in for RolloutSource, without engines and graders: an answer is one of `ANSWERS`, the more often the
    likelier each of its tokens is to the policy, and earns what is written in `POINTS`. Grades fail as `failed` says.
    """

    def __init__(self, config: Any, hf_files: Path, policy: Any, prompts: Any) -> None:
        self.policy, self.prompts, self.version = policy, prompts, -1

    def __enter__(self) -> "ScriptedRollouts":
        return self

    def __exit__(self, *_: object) -> None: ...

    def publish(self, version: int) -> dict[str, float]:
        from qedmeg.training.logprobs import document_logprobs

        self.version = version
        answers = [np.array(answer, dtype=np.int32) for answer in ANSWERS]
        documents = [np.concatenate([prompt.tokens_P, answer]) for prompt in self.prompts for answer in answers]
        self.logprobs = [
            logprobs_L[-len(ANSWERS[index % len(ANSWERS)]) :]
            for index, logprobs_L in enumerate(document_logprobs(self.policy, documents))
        ]
        return {"transfer_bytes": 0.0}

    def validate(self, version: int, weights: str) -> dict[str, float]:
        """Of the weights that were published last; the score says which."""
        assert self.version == version
        return {"score": float(version), "weights": float(int(weights[:12], 16))}

    def batch(self, step: int) -> Batch:
        assert self.version == step
        batch = [self._batch(step)]
        dist.broadcast_object_list(batch, 0)
        return batch[0]

    def _batch(self, step: int) -> Batch:
        groups = []
        for number in range(PROMPTS):
            problem = (step * PROMPTS + number) % PROBLEMS
            logprobs = self.logprobs[problem * len(ANSWERS) : (problem + 1) * len(ANSWERS)]
            weights = np.exp([logprobs_T.mean() for logprobs_T in logprobs])
            drawn = np.random.default_rng([step, number]).choice(len(ANSWERS), ROLLOUTS, p=weights / weights.sum())
            rollouts = []
            for place, answer in enumerate(drawn.tolist()):
                tokens_T = np.array(ANSWERS[answer], dtype=np.int32)
                sample = Sample(self.prompts[problem].tokens_P, tokens_T, logprobs[answer], ((step, 0),), "stop")
                grade = Graded(POINTS[answer], 7, (), "script")
                rollouts.append(
                    Rollout(place, sample, Failed("timeout", "script") if failed(step, number, place) else grade)
                )
            groups.append(Group(step * PROMPTS + number, f"problem {problem}", tuple(rollouts)))
        # of the last group of every other step there is nothing, as where groups were dropped
        return Batch(step, tuple(groups[: PROMPTS - step % 2]), {})


def failed(step: int, group: int, place: int) -> bool:
    """Whether this grade fails."""
    return (step + group + 2 * place) % 5 == 0


def train(config_file: Path, settings: list[str]) -> int:
    """Train as recipes/ppo.py does, on scripted rollouts; runs on each rank of a pool."""
    from qedmeg.config_rl import PPOConfig
    from qedmeg.settings import load_config
    from qedmeg.training import ppo

    source, ppo.RolloutSource = ppo.RolloutSource, ScriptedRollouts
    random.seed()  # as in a process of its own: what a run goes on with comes from its checkpoint
    np.random.seed()
    try:
        return ppo.train(load_config(PPOConfig, config_file, settings))
    finally:
        ppo.RolloutSource = source


def recorded(config_file: Path, settings: list[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the policy's and the critic's optimizer steps of a run were given on this rank; runs on each rank of a
    pool. The trainer's rows, as NeMo-Aligner made them."""
    from qedmeg.training import aligner

    learn, train_critic = aligner.Actor.get_loss_and_metrics, aligner.Critic.train
    actor: list[dict[str, Any]] = []
    critic: list[dict[str, Any]] = []

    def learned(self: Any, batch: Any, forward_only: bool) -> Any:
        actor.append({"step": self.step, **{name: tensor.clone() for name, tensor in batch.items()}})
        return learn(self, batch, forward_only)

    def trained(self: Any, data: Any) -> None:
        critic.append({"step": self.actor.step, **{name: tensor.clone() for name, tensor in data.items()}})
        train_critic(self, data)

    aligner.Actor.get_loss_and_metrics, aligner.Critic.train = learned, trained  # type: ignore[method-assign]
    try:
        assert train(config_file, settings) == 0
    finally:
        aligner.Actor.get_loss_and_metrics, aligner.Critic.train = learn, train_critic  # type: ignore[method-assign]
    return actor, critic


def rank() -> int:
    """This process's rank in the pool."""
    return int(os.environ["RANK"])

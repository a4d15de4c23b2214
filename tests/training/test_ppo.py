"""PPO and REINFORCE by NeMo-Aligner's trainers, on scripted rollouts: what trains, how well, and how it is resumed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from qedmeg.config_rl import PPOConfig
from qedmeg.conversion.stored import MegatronModel, read_whole_checkpoint
from qedmeg.errors import UserError
from qedmeg.monitor.metrics import read_metrics
from qedmeg.settings import load_config
from tests import ppo_runs, sft_runs

REINFORCE = ["algorithm=reinforce"]
JUDGES = "grader.judges=[{base_url: http://localhost:1/v1, model: judge}]"
DISCOUNT, GAE_LAMBDA, PENALTY = 0.95, 0.9, 0.1


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> Path:
    return ppo_runs.write_inputs(tmp_path_factory.mktemp("ppo"))


def expected_rows(step: int) -> int:
    """Graded rollouts of a step of the script."""
    places = [(group, place) for group in range(3 - step % 2) for place in range(4)]
    return sum(not ppo_runs.failed(step, *place) for place in places)


def by_row(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a batch that hold a rollout, each with its own part of every tensor."""
    rows = []
    for number, tokens_S in enumerate(data["response_tokens"]):
        length = int((tokens_S >= 0).sum())
        if length:
            row = {name: tensor[number].tolist() for name, tensor in data.items() if isinstance(tensor, torch.Tensor)}
            rows.append({**row, "response_tokens": row["response_tokens"][:length]})
        else:
            assert not data["mask"][number].any()
            assert not data["is_end"][number]
    return rows


def answer_of(row: dict[str, Any]) -> int:
    """Which of the script's answers a row holds."""
    return next(n for n, answer in enumerate(ppo_runs.ANSWERS) if row["response_tokens"][-len(answer) :] == answer)


def reward_of(row: dict[str, Any]) -> float:
    """What the script gives for it."""
    return ppo_runs.POINTS[answer_of(row)] / 7


def gae(rewards: list[float], values: list[float]) -> list[float]:
    """Advantages of one answer's tokens (arXiv 1506.02438, eq. 16)."""
    advantages = []
    following_value = following_advantage = 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        delta = reward + DISCOUNT * following_value - value
        following_advantage = delta + DISCOUNT * GAE_LAMBDA * following_advantage
        following_value = value
        advantages.insert(0, following_advantage)
    return advantages


def test_ppo_trains_on_gae_of_graded_rollouts_alone(ranks, config_file, tmp_path):
    """Two data-parallel ranks, two optimizer steps a batch: each graded rollout once, with the advantages of a few
    lines of plain Python from the same values and log-probabilities."""
    settings = [
        f"run_dir={tmp_path}",
        "max_steps=3",
        "minibatches=2",
        f"critic={{discount: {DISCOUNT}, gae_lambda: {GAE_LAMBDA}, optimizer: {{lr: 0.01, schedule: constant}}}}",
    ]
    results = ranks(ppo_runs.recorded, 2, config_file, settings)
    for step in range(3):
        policy = [row for actor, _ in results for data in actor if data["step"] == step for row in by_row(data)]
        critic = [row for _, critic in results for data in critic if data["step"] == step for row in by_row(data)]
        assert len(policy) == len(critic) == expected_rows(step)
        advantages, found = [], []
        for row in critic:
            answer = [index for index, inside in enumerate(row["mask"]) if inside]
            length = len(ppo_runs.ANSWERS[answer_of(row)])
            assert len(answer) == length
            assert answer[-1] == len(row["response_tokens"]) - 2
            values = [row["values"][index] for index in answer]
            assert step == 0 or any(values)
            own = gae([0.0] * (length - 1) + [reward_of(row)], values)
            returns = [advantage + value for advantage, value in zip(own, values, strict=True)]
            assert [row["returns"][index] for index in answer] == pytest.approx(returns, abs=1e-5)
            advantages += own
            found += [row["advantages"][index] for index in answer]
        mean = sum(advantages) / len(advantages)
        deviation = (sum((advantage - mean) ** 2 for advantage in advantages) / len(advantages)) ** 0.5
        assert found == pytest.approx([(advantage - mean) / deviation for advantage in advantages], abs=1e-4)
        assert sorted(row["response_tokens"] for row in policy) == sorted(row["response_tokens"] for row in critic)
        for row in policy:
            answer = [index for index, inside in enumerate(row["mask"]) if inside]
            # of the same weights as the stand-in's, which are the engine's
            assert [row["prev_logprobs"][i] for i in answer] == pytest.approx(
                [row["engine_logprobs"][i] for i in answer], abs=1e-5
            )


def test_reinforce_trains_on_each_rollout_once_against_the_others_of_its_prompt(ranks, config_file, tmp_path):
    """Two data-parallel ranks: NeMo-Aligner's own `chunk` would give both all rows."""
    settings = [f"run_dir={tmp_path}", "max_steps=3", f"kl_penalty={PENALTY}", *REINFORCE]
    results = ranks(ppo_runs.recorded, 2, config_file, settings)
    penalised = 0
    for step in range(3):
        of_ranks = [[row for data in actor if data["step"] == step for row in by_row(data)] for actor, _ in results]
        rows = of_ranks[0] + of_ranks[1]
        assert len(rows) == expected_rows(step)
        assert all(len(mine) < len(rows) for mine in of_ranks)
        for row in rows:
            answer = ppo_runs.ANSWERS[answer_of(row)]
            prompt = row["response_tokens"][: -len(answer)]
            kl = (reward_of(row) - row["rewards_with_kl"]) / PENALTY
            penalised += abs(kl) > 1e-3
            assert step > 0 or kl == pytest.approx(0.0, abs=1e-4)
            group = [one for one in rows if one["response_tokens"][: len(prompt)] == prompt]
            rewards = [one["rewards_with_kl"] for one in group]
            others = (sum(rewards) - row["rewards_with_kl"]) / (len(rewards) - 1)
            assert row["baseline"] == pytest.approx(others, abs=1e-5)
    assert penalised > 5


PPO = ["critic={warmup_steps: 6, optimizer: {lr: 0.005, schedule: constant}}"]


@pytest.mark.parametrize("settings", [PPO, REINFORCE], ids=["ppo", "reinforce"])
def test_reward_rises(ranks, config_file, tmp_path, settings):
    settings = [f"run_dir={tmp_path}", "max_steps=16", "optimizer.lr=0.0003", *settings]
    assert set(ranks(ppo_runs.train, 2, config_file, settings)) == {0}
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(16))
    rewards = [line["train/reward"] for line in lines]
    print("\nreward", rewards)
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.2
    assert max(line["train/mismatch_max"] for line in lines) < 1e-5
    if PPO[0] in settings:
        explained = [line["train/explained_variance"] for line in lines]
        print("explained variance", explained)
        assert explained[0] == pytest.approx(0.0, abs=1e-6)
        assert max(explained[4:8]) > 0.3


def _checkpoint(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step_{step:08d}"


def _without_times(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if "time" not in k and "second" not in k} for line in lines]


@pytest.mark.parametrize(
    ("settings", "world_size", "stops"),
    [
        (["minibatches=2", "critic.warmup_steps=3", "kl_penalty=0.01"], 2, [2, 4]),
        (["parallel.tp=2", "parallel.pp=2", "critic.warmup_steps=1"], 4, [2]),
        (["kl_penalty=0.01", *REINFORCE], 2, [2]),
    ],
    ids=["ppo dp2", "ppo tp2 pp2", "reinforce dp2"],
)
def test_resume_is_exact(ranks, config_file, tmp_path, settings, world_size, stops):
    """From a checkpoint within the critic's warm-up too, when the policy's optimizer has not begun."""
    last = stops[-1] + 2
    settings = [*settings, f"max_steps={last}", "checkpoint.save_every=2"]
    whole = tmp_path / "whole"
    assert set(ranks(ppo_runs.train, world_size, config_file, [f"run_dir={whole}", *settings])) == {0}
    for step in stops:
        run = tmp_path / str(step)
        shutil.copytree(_checkpoint(whole, step), _checkpoint(run, step))
        assert set(ranks(ppo_runs.train, world_size, config_file, [f"run_dir={run}", *settings])) == {0}
        assert sft_runs.differing(_checkpoint(run, last), _checkpoint(whole, last)) == []
        assert _without_times(read_metrics(run)) == _without_times(read_metrics(whole)[step:])
    weights = sft_runs.tensors(_checkpoint(whole, last))
    assert any(key.startswith("critic.decoder.") for key in weights) == (REINFORCE[0] not in settings)


def test_the_policy_rests_while_the_critic_warms_up(ranks, config_file, tmp_path):
    critic = "critic={warmup_steps: 1, optimizer: {lr: 0.01, weight_decay: 0}}"
    settings = [f"run_dir={tmp_path}", "max_steps=2", "checkpoint.save_every=1", critic]
    assert ranks(ppo_runs.train, 1, config_file, settings) == [0]
    first, second = (sft_runs.tensors(_checkpoint(tmp_path, step)) for step in (1, 2))
    key = "decoder.layers.1.mlp.linear_fc2.weight"
    # the critic began from the policy's weights, and its head, zero at first, has kept the first step from its layers
    assert torch.equal(first[key], first[f"critic.{key}"])
    assert first["critic.value_head.weight"].any()
    assert not torch.equal(first[key], second[key])
    assert not torch.equal(second[key], second[f"critic.{key}"])


def test_a_checkpoint_with_a_critic_is_one_of_the_policy(ranks, config_file, tmp_path):
    assert ranks(ppo_runs.train, 1, config_file, [f"run_dir={tmp_path}", "max_steps=2"]) == [0]
    folder = _checkpoint(tmp_path, 2)
    with MegatronModel(read_whole_checkpoint(folder)) as model:
        assert model.model.layers == 4
    start = ["model.hf=null", f"model.megatron={folder}", f"run_dir={tmp_path / 'next'}", "max_steps=1"]
    assert ranks(ppo_runs.train, 1, config_file, [*start, *REINFORCE, "optimizer.lr=1e-30"]) == [0]
    before, after = sft_runs.tensors(folder), sft_runs.tensors(_checkpoint(tmp_path / "next", 1))
    key = "decoder.layers.1.mlp.linear_fc2.weight"
    assert torch.equal(before[key], after[key])
    with pytest.raises(AssertionError, match=f"algorithm: reinforce, but {folder} was written by ppo"):
        ranks(ppo_runs.train, 1, config_file, [f"run_dir={tmp_path}", *REINFORCE])


@pytest.mark.parametrize("settings", [[], REINFORCE], ids=["ppo", "reinforce"])
def test_validations_are_of_the_first_the_due_and_the_last_weights_and_change_no_step(
    ranks, config_file, tmp_path, settings
):
    plain = [f"run_dir={tmp_path / 'plain'}", "max_steps=3", *settings]
    assert set(ranks(ppo_runs.train, 2, config_file, plain)) == {0}
    rows = [{"id": f"v{number}", "problem": f"Prove {number}.", "rubric": "7 for a proof"} for number in range(2)]
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    validated = [f"validation.benchmark={tmp_path / 'held_out.jsonl'}", "validation.every=2", JUDGES]
    run = tmp_path / "validated"
    settings = [f"run_dir={run}", "max_steps=3", *validated, *settings]
    assert set(ranks(ppo_runs.train, 2, config_file, settings)) == {0}
    lines = read_metrics(run)
    scores = [(line["step"], line["validation/score"]) for line in lines if "validation/score" in line]
    assert scores == [(0, 0.0), (2, 2.0), (3, 3.0)]
    weights = [line["validation/weights"] for line in lines if "validation/score" in line]
    assert len(set(weights)) == 3
    steps = [line for line in lines if "train/reward" in line]
    assert ["train/time/validate" in line for line in steps] == [True, False, True]
    assert _without_times(steps) == _without_times(read_metrics(tmp_path / "plain"))
    # gone on with from the checkpoint of the same weights
    other = tmp_path / "other"
    shutil.copytree(_checkpoint(run, 3), _checkpoint(other, 3))
    more = [f"run_dir={other}", "max_steps=4", *settings[2:]]
    assert set(ranks(ppo_runs.train, 2, config_file, more)) == {0}
    found = {line["step"]: line for line in read_metrics(other) if "validation/score" in line}
    assert list(found) == [4]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (["loss.kl_coef=0.1"], "set kl_penalty"),
        (["critic.warmup_steps=12"], "leaves the policy none of max_steps 12"),
        (["critic.discount=0.9", *REINFORCE], "algorithm reinforce has none"),
        (["minibatches=4"], "minibatches 4 is greater than data.prompts_per_step 3"),
        (["critic={optimizer: {lr: 0.001, min_lr: 0.01}}"], "critic.optimizer.min_lr 0.01 is greater"),
    ],
)
def test_settings_that_do_not_go_together(config_file, setting, message):
    with pytest.raises(UserError, match=message):
        load_config(PPOConfig, config_file, setting)

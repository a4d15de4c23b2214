"""Training with the reasoning cache from end to end: two real ranks, real vLLM, a judge over HTTP."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from qedmeg.errors import EXIT_USER_ERROR
from qedmeg.monitor.metrics import read_metrics
from qedmeg.rollout.store import STORE_FILE, read_batch
from tests import grpo_runs
from tests.grading.judge_server import JudgeServer
from tests.sft_runs import differing

RECIPE = "recipes/rc.py"
DATA = {"prompts_per_step": 6, "rollouts_per_prompt": 3, "tokens_per_microbatch": 512}
CACHE = {
    "rounds": 2,
    "prompts": {"again": "{problem}\n{summary}", "summarise": "{problem}\n{summary}\n{reasoning}"},
    "reason_tokens": 20,
    "summary_tokens": 12,
    "train": "both",
    "states_per_problem": 3,
}


@pytest.fixture(scope="module")
def judge():
    with JudgeServer() as server:
        yield server


def write_inputs(folder: Path, judge: JudgeServer, **cache: Any) -> Path:
    path = grpo_runs.write_inputs(
        folder,
        judge.url,
        data=DATA | {"train": str(folder / "problems.jsonl")},
        cache=CACHE | cache,
        max_steps=3,
        checkpoint={"save_every": 1, "keep_last": 9},
    )
    return path.rename(folder / "rc.yaml")


@pytest.fixture(scope="module")
def finished(judge, tmp_path_factory) -> Path:
    """The run folder of three steps on two ranks that nothing disturbed."""
    config = write_inputs(tmp_path_factory.mktemp("rc"), judge)
    status, output = grpo_runs.finish(grpo_runs.start(config, ranks=2, recipe=RECIPE))
    assert status == 0, output[-3000:]
    return config.parent / "run"


def test_a_run_trains_states_and_summaries_and_logs_them_by_round(finished):
    steps, summary_tokens = read_metrics(finished), 0
    assert [line["step"] for line in steps] == [0, 1, 2]
    for line in steps:
        batch = read_batch(finished / STORE_FILE, int(line["step"]))
        assert line["train/rollouts"] == 18
        assert line["train/groups"] == 6
        assert sum(line.get(f"train/groups_by_round/{round}", 0) for round in (1, 2, 3)) == 6
        assert line["train/state_age_max"] == line["train/lag_max"] == 0
        # the engine's log-probabilities are the trainer's, of the summaries' tokens as of the rollouts'
        assert 0 < line["train/mismatch_max"] < 1e-4
        assert line["train/grad_norm"] > 0
        assert len(batch.summaries) == 2
        assert line["train/summaries"] == 4
        for group in batch.summaries:
            assert all(one.sample.versions == ((batch.step, 0),) for one in group.rollouts)
        trained, of_summaries = (
            sum(tokens_with_an_advantage(group.rollouts) for group in groups)
            for groups in ((*batch.groups, *batch.summaries), batch.summaries)
        )
        assert line["train/trained_tokens"] == trained
        summary_tokens += of_summaries
    assert summary_tokens > 0
    with closing(sqlite3.connect(finished / STORE_FILE)) as database:
        assert database.execute("SELECT count(*), sum(done) FROM chains").fetchone() == (6, 6)
        (longest,) = database.execute("SELECT max(tokens) FROM turns WHERE kind = 'summarise'").fetchone()
        assert longest <= 12


def tokens_with_an_advantage(rollouts: Any) -> int:
    rewards_G = torch.tensor([one.reward for one in rollouts])
    advantages_G = rewards_G - rewards_G.mean()
    same = rewards_G.max() - rewards_G.min() <= 1e-6
    return sum(len(one.sample.tokens_T) for one, by in zip(rollouts, advantages_G, strict=True) if by != 0 and not same)


def test_killed_and_started_again_it_ends_with_the_same_weights(finished, judge, tmp_path):
    config = write_inputs(tmp_path, judge)
    killed = grpo_runs.start(config, ranks=2, recipe=RECIPE)
    grpo_runs.wait_for_step(tmp_path / "run", 1)
    grpo_runs.kill(killed)
    status, output = grpo_runs.finish(grpo_runs.start(config, ranks=2, recipe=RECIPE))
    assert status == 0, output[-3000:]
    last = "checkpoints/step_00000003"
    assert differing(finished / last, tmp_path / "run" / last) == []
    one, other = read_metrics(finished), read_metrics(tmp_path / "run")
    for name in ("train/loss", "train/reward", "train/improvement", "train/grad_norm"):
        assert [line[name] for line in one] == [line[name] for line in other]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["cache.summary_tokens=500"], "lower one of them by"),
        (["cache.summaries_per_state=1", "cache.states_per_problem=2"], "leaves a summary none to be compared with"),
        (["rollout.drop_zero_variance=true"], "groups of equal rewards still tell what a summary brought"),
        (["data.prompt=Show {problem}"], "the cache has prompts of its own"),
        (["data.prompts_per_step=2"], "cache.states_per_problem 3 is greater than data.prompts_per_step 2"),
    ],
)
def test_mistakes_end_before_anything_is_generated(ranks, judge, tmp_path, settings, message):
    config = write_inputs(tmp_path, judge)
    (told,) = ranks(refused, 1, config, settings)
    assert message in told
    assert not (tmp_path / "run").exists()


def refused(config: Path, settings: list[str]) -> str:
    """The error that the settings are refused with; runs on a rank of a pool."""
    from qedmeg.config_rc import RCConfig
    from qedmeg.errors import UserError
    from qedmeg.settings import load_config
    from qedmeg.training.grpo import train

    try:
        train(load_config(RCConfig, config, settings))
    except UserError as error:
        return str(error)
    raise AssertionError("the settings were taken")


def test_a_mistake_is_one_line_and_status_2(judge, tmp_path):
    config = write_inputs(tmp_path, judge)
    status, output = grpo_runs.finish(grpo_runs.start(config, "cache.states_per_problem=2", recipe=RECIPE))
    assert status == EXIT_USER_ERROR
    assert "error: " in output
    assert "set it to 3" in output
    assert "Traceback" not in output

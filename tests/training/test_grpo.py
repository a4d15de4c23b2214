"""GRPO from end to end: real ranks, a real rollout process, a real vLLM engine, a judge over HTTP."""

from pathlib import Path

import pytest

from qedmeg.errors import EXIT_USER_ERROR
from qedmeg.monitor.metrics import read_metrics
from tests import grpo_runs
from tests.grading.judge_server import JudgeServer
from tests.sft_runs import differing


@pytest.fixture(scope="module")
def judge():
    with JudgeServer() as server:
        yield server


@pytest.fixture(scope="module")
def finished(judge, tmp_path_factory) -> Path:
    """The settings of a run of four steps on one rank that nothing disturbed."""
    config = grpo_runs.write_inputs(tmp_path_factory.mktemp("grpo"), judge.url)
    status, output = grpo_runs.finish(grpo_runs.start(config))
    assert status == 0, output[-3000:]
    return config


def test_a_run_logs_what_happened_and_leaves_checkpoints(finished):
    run = finished.parent / "run"
    steps = read_metrics(run)
    assert [line["step"] for line in steps] == [0, 1, 2, 3]
    for line in steps:
        assert line["train/rollouts"] == 12
        assert line["train/lag_max"] == 0
        assert line["train/mismatch_max"] < 1e-4  # the engine's log-probabilities are the trainer's
        assert line["train/grad_norm"] > 0
        assert 0 < line["train/reward"] < 1
    assert [line["step"] for line in steps if "train/gate" in line] == [1, 3]
    assert all(line["train/gate"] < 1e-4 for line in steps if "train/gate" in line)
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["step_00000002", "step_00000004"]


def test_killed_and_started_again_it_ends_with_the_same_weights(finished, judge, tmp_path):
    """Killed after step 2 was done and before its checkpoint: step 2 is trained on the same rollouts again."""
    config = grpo_runs.write_inputs(tmp_path, judge.url)
    killed = grpo_runs.start(config)
    grpo_runs.wait_for_step(tmp_path / "run", 2)
    grpo_runs.kill(killed)
    asked_before = len(judge.served)
    status, output = grpo_runs.finish(grpo_runs.start(config))
    assert status == 0, output[-3000:]
    assert len(judge.served) - asked_before <= 12 * 2  # what was graded is not graded again
    last = "checkpoints/step_00000004"
    assert differing(finished.parent / "run" / last, tmp_path / "run" / last) == []
    one, other = read_metrics(finished.parent / "run"), read_metrics(tmp_path / "run")
    for name in ("train/loss", "train/reward", "train/grad_norm", "train/mismatch"):
        assert [line[name] for line in one] == [line[name] for line in other]


def test_two_model_parallel_ranks_do_the_same(finished, judge, tmp_path):
    """TP 2 adds in another order: the same rollouts as long as no token falls on the other side, the same curve."""
    config = grpo_runs.write_inputs(tmp_path, judge.url)
    status, output = grpo_runs.finish(grpo_runs.start(config, "parallel.tp=2", "max_steps=2", ranks=2))
    assert status == 0, output[-3000:]
    one, other = read_metrics(finished.parent / "run")[:2], read_metrics(tmp_path / "run")
    for name in ("train/loss", "train/reward", "train/grad_norm"):
        assert [line[name] for line in other] == pytest.approx([line[name] for line in one], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["rollout.max_tokens=20000"], "rollout.max_tokens: 20000 leaves no room for a prompt"),
        (["data.train=nowhere.jsonl"], "nowhere.jsonl"),
        (["rollout.max_lag=2"], "max_lag 2 generates while training runs"),
        (["rollout.engines=2", "rollout.start=1"], "engines: 2 are for a run without servers"),
        (["loss.ratio_against=engine"], "would correct twice"),
        (["parallel.tp=3"], "parallel.tp: 3 does not divide"),
        (["data.prompt=Prove it."], "must hold {problem}"),
    ],
)
def test_mistakes_end_before_anything_is_generated(ranks, judge, tmp_path, settings, message):
    config = grpo_runs.write_inputs(tmp_path, judge.url)
    (told,) = ranks(grpo_runs.refused, 1, config, settings)
    assert message in told
    assert not (tmp_path / "run").exists()


def test_a_mistake_is_one_line_and_status_2(judge, tmp_path):
    config = grpo_runs.write_inputs(tmp_path, judge.url)
    status, output = grpo_runs.finish(grpo_runs.start(config, "rollout.max_lag=2"))
    assert status == EXIT_USER_ERROR
    assert "error: " in output
    assert "Traceback" not in output

"""Training while generation goes on, from end to end: the reasoning cache with trained summaries and validations,
a real rank, two real vLLM servers whose weights are changed in flight, a judge over HTTP that takes its time."""

from pathlib import Path

import pytest

from qedmeg.conversion import convert
from qedmeg.monitor.metrics import read_metrics
from qedmeg.rollout.store import STORE_FILE, read_batch
from qedmeg.rollout.validation import VALIDATION_FILE
from tests import grpo_runs
from tests.grading.judge_server import JudgeServer
from tests.training.greedy import check_greedy
from tests.training.test_rc import CACHE, DATA, RECIPE

STEPS, MAX_LAG, MAX_AGE = 4, 2, 3


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The run folder."""
    folder = tmp_path_factory.mktemp("lag")
    with JudgeServer(seconds=0.2) as judge:
        config = grpo_runs.write_inputs(
            folder,
            judge.url,
            data=DATA | {"train": str(folder / "problems.jsonl")},
            rollout={"max_tokens": 24, "start": 2, "max_lag": MAX_LAG, "gate_prompts": 2, "gate_every": 2},
            cache=CACHE | {"max_age": MAX_AGE},
            validation=grpo_runs.validation(folder),
            max_steps=STEPS,
        )
        status, output = grpo_runs.finish(grpo_runs.start(config, recipe=RECIPE))
    assert status == 0, output[-3000:]
    return folder / "run"


def test_rollouts_and_states_lag_behind_no_more_than_they_may_and_summaries_are_trained(run):
    lags, ages = [], []
    for step in range(STEPS):
        batch = read_batch(run / STORE_FILE, step)
        for group in batch.groups:
            assert group.state is not None
            ages.append(group.state.age)
            lags += [step - one.sample.oldest_version for one in group.rollouts]
            assert all(one.sample.newest_version <= step for one in group.rollouts)
    assert 0 < max(lags) <= MAX_LAG
    assert max(ages) <= MAX_AGE
    lines = grpo_runs.read_steps(run)
    assert [line["step"] for line in lines] == list(range(STEPS))
    assert max(line["train/lag_max"] for line in lines) <= MAX_LAG
    trained = [line.get("train/summaries", 0) - line.get("train/summaries_too_old", 0) for line in lines]
    assert sum(trained[1:]) > 0
    gates = [line["train/gate"] for line in lines if "train/gate" in line]
    assert len(gates) == STEPS // 2
    assert max(gates) < 1e-4
    assert lines[0]["train/mismatch_max"] < 1e-4


@pytest.mark.parametrize("step", [2, STEPS])
def test_a_validation_is_of_the_weights_of_its_step_alone(run, step, tmp_path):
    assert {int(line["step"]) for line in read_metrics(run) if "validation/score" in line} == {0, 2, STEPS}
    checkpoint = run / "checkpoints" / f"step_{step:08d}"
    assert convert.megatron_to_hf(checkpoint, tmp_path / "hf", checks=frozenset({"tensors"}), overwrite=False).equal
    assert check_greedy(tmp_path / "hf", run / VALIDATION_FILE, f"step {step} greedy", max_tokens=24) == 12

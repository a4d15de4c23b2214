"""recipes/grpo.py with vLLM on a GPU that trainer and engine share: trains, goes on, and is converted back."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qedmeg.monitor.metrics import read_metrics
from tests import grpo_runs
from tests.grading.judge_server import JudgeServer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM"),
]
SIZES = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "dtype": torch.bfloat16}
# random weights are steep: bf16 alone moves a log-probability by 0.1, other weights move most by more than 1
TOLERANCE = 0.3
ROLLOUT = {"max_tokens": 24, "gate_prompts": 2, "gate_every": 2, "gate_tolerance": TOLERANCE, "kv_cache_gib": 1.0}


@pytest.fixture(scope="module")
def judge():
    with JudgeServer() as server:
        yield server


def _steps(config: Path, *settings: str) -> list[dict[str, float]]:
    """Run the recipe to its end; what its run has logged of each step."""
    run_dir = config.parent / "run"
    status, output = grpo_runs.finish(grpo_runs.start(config, "compute.precision=bf16", *settings))
    log = run_dir / "logs" / "rollout_process.log"
    assert status == 0, output[-3000:] + (log.read_text()[-6000:] if log.exists() else "")
    return read_metrics(run_dir)


def _assert_sound(steps: list[dict[str, float]]) -> None:
    for line in steps:
        assert line["train/rollouts"] == 12
        assert line["train/grad_norm"] > 0
        if line["train/lag_max"] == 0:  # the engine had the weights that the trainer has
            assert 0 < line["train/mismatch_max"] < 2 * TOLERANCE
            assert line["train/mismatch"] < TOLERANCE / 5


def test_trains_goes_on_and_is_converted(judge, tmp_path):
    config = grpo_runs.write_inputs(tmp_path, judge.url, model=SIZES, rollout=ROLLOUT)
    steps = _steps(config)
    assert [line["step"] for line in steps] == [0, 1, 2, 3]
    assert [line["step"] for line in steps if "train/gate" in line] == [1, 3]
    _assert_sound(steps)

    last = tmp_path / "run" / "checkpoints" / "step_00000004"
    shutil.rmtree(last)
    again = _steps(config)
    assert [line["step"] for line in again] == [0, 1, 2, 3]
    assert again[:2] == steps[:2]
    _assert_sound(again)
    # the same rollouts, out of the store; kernels on GPUs add up in another order each time
    assert [line["train/reward"] for line in again] == [line["train/reward"] for line in steps]
    assert [line["train/loss"] for line in again] == pytest.approx([line["train/loss"] for line in steps], abs=1e-2)

    command = [sys.executable, "conversion/megatron_to_hf.py", "--megatron", str(last), "--out", str(tmp_path / "hf")]
    done = subprocess.run(
        [*command, "--checks", "tensors,config,tokenizer"], cwd=grpo_runs.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def test_a_server_that_generates_while_training_runs(judge, tmp_path):
    config = grpo_runs.write_inputs(tmp_path, judge.url, model=SIZES, rollout=ROLLOUT)
    steps = _steps(config, "rollout.start=1", "rollout.max_lag=1", "max_steps=3")
    assert [line["step"] for line in steps] == [0, 1, 2]
    _assert_sound(steps)

"""recipes/sft.py on a GPU: trains, goes on from a checkpoint and is converted back, on every kind of layer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qedmeg.model.spec import has_transformer_engine
from qedmeg.monitor.metrics import read_metrics
from tests.sft_runs import write_inputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
needs_transformer_engine = pytest.mark.skipif(not has_transformer_engine(), reason="needs Transformer Engine")
ROOT = Path(__file__).parents[2]
# widths of which FP8's tiles make whole numbers
SIZES = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}


def _run(*command: object) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.parametrize(
    "compute",
    [
        [],
        pytest.param(
            ["compute.transformer_engine=true", "compute.fp8=tensorwise"], marks=needs_transformer_engine, id="fp8"
        ),
    ],
)
def test_trains_goes_on_and_is_converted(tmp_path, compute):
    config = write_inputs(tmp_path, dtype=torch.bfloat16, **SIZES)
    train = ["recipes/sft.py", "--config", config, "compute.precision=bf16", *compute]
    _run(*train)
    losses = [line["train/loss"] for line in read_metrics(tmp_path / "run") if "train/loss" in line]
    assert len(losses) == 12
    assert losses[-1] < losses[0]

    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000012")
    _run(*train)
    again = {line["step"]: line["train/loss"] for line in read_metrics(tmp_path / "run") if "train/loss" in line}
    assert again[11] == pytest.approx(losses[-1], rel=1e-2)  # kernels on GPUs add up in another order each time

    trained = tmp_path / "run" / "checkpoints" / "step_00000012"
    checks = ["--checks", "tensors,config,tokenizer"]
    _run("conversion/megatron_to_hf.py", "--megatron", trained, "--out", tmp_path / "hf", *checks)

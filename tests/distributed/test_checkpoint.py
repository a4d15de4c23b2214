"""A run that stops and goes on ends as one that did not: bit for bit at the same topology, nearly so at another."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qedmeg.errors import EXIT_REQUEUE, EXIT_USER_ERROR
from qedmeg.monitor.metrics import read_metrics
from tests import sft_runs

TP2_PP2 = ["parallel.tp=2", "parallel.pp=2"]
BF16 = ["compute.precision=bf16"]
HALF, LAST = 4, 8
"""Steps of a run's checkpoints, the last of which is its end."""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> Path:
    return sft_runs.write_inputs(tmp_path_factory.mktemp("sft"))


@pytest.fixture(scope="module")
def experts_file(tmp_path_factory) -> Path:
    return sft_runs.write_inputs(tmp_path_factory.mktemp("experts"), "qwen3_moe")


@pytest.fixture(scope="module")
def straight(ranks):
    """`straight(config_file, settings, world_size)`: a folder with a run that was not stopped, and its checkpoints
    of steps `HALF` and `LAST`."""
    runs = {}

    def run(config_file: Path, settings: list[str], world_size: int) -> Path:
        key = (config_file, *settings, world_size)
        if key not in runs:
            runs[key] = config_file.parent / f"straight{len(runs)}"
            _train(ranks, world_size, config_file, runs[key], settings)
        return runs[key]

    return run


def _train(ranks, world_size: int, config_file: Path, run_dir: Path, settings: list[str]) -> None:
    steps = [f"max_steps={LAST}", f"checkpoint.save_every={HALF}"]
    assert set(ranks(sft_runs.train, world_size, config_file, [f"run_dir={run_dir}", *steps, *settings])) == {0}


def _checkpoint(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step_{step:08d}"


def _losses(run_dir: Path) -> dict[int, float]:
    return {int(line["step"]): line["train/loss"] for line in read_metrics(run_dir) if "train/loss" in line}


def _largest_difference(one: Path, other: Path) -> float:
    """Largest difference of a weight, in units of the root mean square of its tensor."""
    ours, theirs = sft_runs.tensors(one), sft_runs.tensors(other)
    assert ours.keys() == theirs.keys()
    names = [name for name in ours if not name.startswith("optimizer.")]
    return max(((ours[n] - theirs[n]).abs().max() / theirs[n].square().mean().sqrt()).item() for n in names)


@pytest.mark.parametrize(
    ("settings", "world_size", "change"),
    [
        (TP2_PP2, 4, ["checkpoint.background=false"]),
        (["parallel.pp=2", "parallel.vpp=2"], 2, []),
        ([], 2, []),  # DP2
        (BF16, 2, []),
        ([*BF16, "parallel.tp=2", "parallel.sp=true"], 2, []),
    ],
)
def test_resume_is_exact_at_the_same_topology(ranks, config_file, straight, tmp_path, settings, world_size, change):
    whole = straight(config_file, settings, world_size)
    shutil.copytree(_checkpoint(whole, HALF), _checkpoint(tmp_path, HALF))
    _train(ranks, world_size, config_file, tmp_path, [*settings, *change])
    assert sft_runs.differing(_checkpoint(tmp_path, LAST), _checkpoint(whole, LAST)) == []
    assert _losses(tmp_path) == {step: loss for step, loss in _losses(whole).items() if step >= HALF}
    ours, theirs = (ranks(sft_runs.random_state, world_size, _checkpoint(run, LAST)) for run in (tmp_path, whole))
    assert ours == theirs


@pytest.mark.parametrize(
    ("settings", "world_size", "then", "world_size_then"),
    [
        (TP2_PP2, 4, [], 2),
        (TP2_PP2, 4, [], 1),
        ([], 1, ["parallel.tp=2"], 2),
        ([], 1, ["parallel.pp=2", "parallel.vpp=2"], 2),
        ([], 1, ["parallel.cp=2"], 2),
    ],
)
def test_resume_at_another_topology(
    ranks, config_file, straight, tmp_path, settings, world_size, then, world_size_then
):
    whole = straight(config_file, settings, world_size)
    shutil.copytree(_checkpoint(whole, HALF), _checkpoint(tmp_path, HALF))
    _train(ranks, world_size_then, config_file, tmp_path, then)
    difference = _largest_difference(_checkpoint(tmp_path, LAST), _checkpoint(whole, LAST))
    print(f"\n{settings}, {world_size} ranks, then {then}, {world_size_then}: {difference:.1e}")
    assert difference < 1e-4
    ours, theirs = _losses(tmp_path), _losses(whole)
    assert list(ours) == list(range(HALF, LAST))
    assert all(ours[step] == pytest.approx(theirs[step], rel=1e-5) for step in ours)


@pytest.mark.parametrize(
    ("settings", "world_size", "then", "world_size_then"),
    [
        (["parallel.ep=2"], 2, ["parallel.ep=2"], 2),
        (["parallel.ep=2"], 2, [], 1),
        ([], 1, ["parallel.ep=2"], 2),
    ],
)
def test_resume_of_experts(ranks, experts_file, straight, tmp_path, settings, world_size, then, world_size_then):
    whole = straight(experts_file, settings, world_size)
    shutil.copytree(_checkpoint(whole, HALF), _checkpoint(tmp_path, HALF))
    _train(ranks, world_size_then, experts_file, tmp_path, then)
    difference = _largest_difference(_checkpoint(tmp_path, LAST), _checkpoint(whole, LAST))
    print(f"\n{settings}, {world_size} ranks, then {then}, {world_size_then}: {difference:.1e}")
    assert difference <= (0.0 if settings == then else 1e-4)


def test_sigterm_saves_and_the_same_command_goes_on(ranks, config_file, straight, tmp_path):
    whole = straight(config_file, [], 1)
    assert ranks(sft_runs.train, 1, config_file, [f"run_dir={tmp_path}", f"max_steps={LAST}"], 3) == [EXIT_REQUEUE]
    (stopped,) = (tmp_path / "checkpoints").iterdir()
    assert 3 <= int(stopped.name.removeprefix("step_")) < LAST
    _train(ranks, 1, config_file, tmp_path, [])
    assert sft_runs.differing(_checkpoint(tmp_path, LAST), _checkpoint(whole, LAST)) == []
    assert _losses(tmp_path) == _losses(whole)


def test_weights_of_a_training_checkpoint(ranks, config_file, straight, tmp_path):
    """A new run from them begins with the loss that the old one would have had, and at step 0."""
    whole = straight(config_file, TP2_PP2, 4)
    folder = _checkpoint(whole, HALF)
    settings = [f"model.megatron={folder}", "model.hf=null", "max_steps=2", "optimizer.warmup_steps=0"]
    _train(ranks, 1, config_file, tmp_path, settings)
    trained = sft_runs.tensors(_checkpoint(tmp_path, 2))
    assert all(torch.isfinite(tensor).all() for tensor in trained.values())
    losses = _losses(tmp_path)
    assert losses.keys() == {0, 1}
    assert losses[0] < 0.97 * _losses(whole)[0]  # the documents are those of step 0, the weights are not


def test_which_checkpoints_are_kept(ranks, config_file, tmp_path):
    half = _checkpoint(tmp_path, 5)
    half.mkdir(parents=True)
    (half / "__0_0.distcp").write_text("a run was killed here")
    (tmp_path / "checkpoints" / "step_00000004.0a1b2c3d.partial").mkdir()
    settings = ["checkpoint.save_every=2", "checkpoint.keep_last=2", "checkpoint.keep_every=4"]
    _train(ranks, 1, config_file, tmp_path, settings)
    assert _losses(tmp_path).keys() == set(range(LAST))
    steps = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert steps == [f"step_{step:08d}" for step in (4, 6, 8)]


def test_settings_may_change_between_stop_and_resume(ranks, config_file, straight, tmp_path):
    whole = straight(config_file, [], 1)
    shutil.copytree(_checkpoint(whole, HALF), _checkpoint(tmp_path, HALF))
    _train(ranks, 1, config_file, tmp_path, ["optimizer.lr=0.0002", "max_steps=10", "checkpoint.save_every=20"])
    rates = {int(line["step"]): line["train/lr"] for line in read_metrics(tmp_path)}
    assert rates[HALF] == pytest.approx(0.0002)
    assert max(rates) == 9


def test_checkpoint_of_another_model_is_refused(ranks, config_file, straight, tmp_path):
    whole = straight(config_file, [], 1)
    other = sft_runs.write_inputs(tmp_path, num_hidden_layers=3)
    newest = f"error: {_checkpoint(whole, LAST)}: the run's checkpoint is of another model: "
    ((status, message),) = ranks(sft_runs.command, 1, other, [f"run_dir={whole}"])
    assert status == EXIT_USER_ERROR
    assert message.startswith(newest + "layers 4, and now 3; ")
    ((status, message),) = ranks(sft_runs.command, 1, config_file, [f"run_dir={whole}", *BF16])
    assert status == EXIT_USER_ERROR
    assert message.startswith(newest + "dtype float32, and now bfloat16; ")


def test_nan_on_one_rank_stops_all_with_its_message(ranks, tmp_path):
    config_file = sft_runs.write_inputs(tmp_path)
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.3.mlp.up_proj.weight"][-1, -1] = torch.nan  # held by the last stage alone
    save_file(weights, path, metadata={"format": "pt"})
    (status, message), (other_status, other_message) = ranks(sft_runs.command, 2, config_file, ["parallel.pp=2"])
    assert status == other_status == EXIT_USER_ERROR
    assert "model.layers.3.mlp.up_proj.weight holds NaN or infinity" in message.splitlines()[-1]
    assert "error: " not in other_message  # once a machine
    assert not (tmp_path / "run").exists()

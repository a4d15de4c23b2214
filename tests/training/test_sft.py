"""Settings, models and checkpoints that cannot be trained: one clear line, exit status 2, and nothing written."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qedmeg.errors import EXIT_USER_ERROR
from qedmeg.monitor.metrics import read_metrics
from tests import sft_runs
from tests.data.conftest import PLAIN


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> Path:
    return sft_runs.write_inputs(tmp_path_factory.mktemp("sft"))


def _refused(ranks, config_file: Path, settings: list[str], message: str) -> None:
    ((status, text),) = ranks(sft_runs.command, 1, config_file, settings)
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert status == EXIT_USER_ERROR
    assert len(errors) == 1
    assert text.endswith(errors[0] + "\n")  # a single line, and the last
    assert re.search(message, errors[0])
    assert not (config_file.parent / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.max_length=20000", "data.tokens_per_microbatch=20000"], r"data\.max_length: 20000 .* context of 16384"),
        (["parallel.tp=3"], r"parallel\.tp: 3 does not divide the model's 4 attention heads"),
        (["parallel.pp=5"], r"parallel\.pp: 5 stages .* the model has 4"),
        (["parallel.tp=2", "parallel.pp=2"], r"tp 2 × pp 2 .* 1 processes .* --nproc-per-node"),
        (["parallel.sp=true"], r"parallel\.sp: true .* parallel\.tp is 1"),
        (["parallel.ep=2"], r"parallel\.ep: 2, but Qwen3ForCausalLM has no experts"),
        (["parallel.tpp=2"], r"command line: parallel\.tpp: unknown setting; did you mean 'tp'\?"),
        (["max_steps=ten"], r"command line: max_steps: 'ten': should be a valid integer"),
        (["compute.precision=fp8"], r"compute\.precision: 'fp8': should be 'fp32' or 'bf16'"),
        (["compute.fp8=delayed"], r"compute\.fp8: delayed needs compute\.transformer_engine: true"),
        (["compute.gradient_accumulation_fusion=true"], r"or the package apex with its CUDA extensions"),
        (["compute.transformer_engine=true"], r"the package transformer_engine is not installed"),
        (["compute.transformer_engine=true", "compute.fp8=blockwise"], r"transformer_engine is not installed"),
        (["optimizer.min_lr=0.1"], r"optimizer\.min_lr: 0\.1 is greater than optimizer\.lr of 0\.001"),
        (["validate_every=4"], r"validate_every: 4 does not divide checkpoint\.save_every of 6"),
        (["data.train=/nowhere.jsonl"], r"/nowhere\.jsonl"),
        (["model.hf=/nowhere"], r"/nowhere/config\.json: no such file"),
    ],
)
def test_settings_that_do_not_fit(ranks, config_file, settings, message):
    _refused(ranks, config_file, settings, message)


def _tokens_not_to_be_cut(config_file: Path) -> str:
    """What `train` says of settings that only fit two processes."""
    from qedmeg.errors import UserError

    try:
        sft_runs.train(config_file, ["data.tokens_per_microbatch=127", "parallel.tp=2", "parallel.sp=true"])
    except UserError as error:
        return str(error)
    return "trained"


def test_tokens_that_sequence_parallelism_cannot_cut(ranks, config_file):
    messages = set(ranks(_tokens_not_to_be_cut, 2, config_file))
    assert messages == {
        "data.tokens_per_microbatch: 127 is not a multiple of 2, as context and sequence parallelism cut it"
    }


def test_experts_need_sequence_parallelism(ranks, tmp_path):
    config_file = sft_runs.write_inputs(tmp_path, "qwen3_moe")
    _refused(ranks, config_file, ["parallel.tp=2"], r"parallel\.sp: false, but Qwen3MoeForCausalLM has experts")


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ({"prompt": "Prove it.", "proof": ""}, [], r"rows\.jsonl: row 41: column 'proof'"),
        ({"prompt": "Prove it.", "proof": "n " * 99}, [], r"row 41: .* 117 tokens, more than data\.max_length 64"),
        ({"prompt": "Prove it."}, [], r"row 41: .*'proof'"),
        ({"prompt": "Prove it.", "proof": "So."}, ["data.chat_template={folder}/plain.jinja"], r"generation"),
    ],
)
def test_rows_that_cannot_be_trained_on(ranks, tmp_path, row, settings, message):
    config_file = sft_runs.write_inputs(tmp_path)
    (tmp_path / "plain.jinja").write_text(PLAIN)
    with (tmp_path / "rows.jsonl").open("a") as rows:
        rows.write(json.dumps(row) + "\n")
    _refused(ranks, config_file, [setting.format(folder=tmp_path) for setting in settings], message)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"model: holds neither model\.safetensors nor"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"model\.safetensors: not a whole"),
        (
            lambda path: save_file(
                load_file(path) | {"model.norm.weight": torch.ones(63)}, path, metadata={"format": "pt"}
            ),
            r"model\.norm\.weight .*\[63\].*\[64\]",
        ),
    ],
)
def test_a_damaged_model(ranks, tmp_path, damage, message):
    config_file = sft_runs.write_inputs(tmp_path)
    damage(tmp_path / "model" / "model.safetensors")
    _refused(ranks, config_file, [], message)


def test_nan_weights(ranks, tmp_path):
    config_file = sft_runs.write_inputs(tmp_path)
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})
    _refused(ranks, config_file, [], r"model\.safetensors: tensor model\.norm\.weight holds NaN or infinity")


def test_unknown_architecture(ranks, tmp_path):
    config_file = sft_runs.write_inputs(tmp_path)
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["Qwen4ForCausalLM"]}))
    _refused(
        ranks, config_file, [], r"config\.json: architectures: 'Qwen4ForCausalLM' .* did you mean 'Qwen3ForCausalLM'"
    )


def test_damaged_checkpoint_to_start_from_or_to_go_on_from(ranks, config_file, tmp_path):
    (status,) = ranks(sft_runs.train, 1, config_file, [f"run_dir={tmp_path}", "max_steps=1"])
    assert status == 0
    folder = tmp_path / "checkpoints" / "step_00000001"
    damaged = max(folder.glob("*.distcp"), key=lambda path: path.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:-100_000])
    _refused(ranks, config_file, [f"model.megatron={folder}", "model.hf=null"], rf"{damaged.name}: ends after")
    _refused(ranks, config_file, [f"run_dir={tmp_path}", "max_steps=2"], rf"{damaged.name}: ends after")
    damaged.unlink()
    _refused(
        ranks, config_file, [f"run_dir={tmp_path}", "max_steps=2"], rf"{damaged.name}: cannot be read \(No such file"
    )


def test_validation_within_a_run(ranks, config_file, tmp_path):
    settings = [f"run_dir={tmp_path}", "data.validation_fraction=0.2", "validate_every=3"]
    assert ranks(sft_runs.train, 1, config_file, settings) == [0]
    found = {int(line["step"]): line["val/loss"] for line in read_metrics(tmp_path) if "val/loss" in line}
    assert len(found) == 4  # after 3, 6, 9 and 12 steps
    losses = list(found.values())
    assert losses == sorted(losses, reverse=True)  # rows of one kind: what is learned of some helps with all
    assert losses[-1] < 0.8 * losses[0]


def test_half_written_checkpoint_to_start_from(ranks, config_file, tmp_path):
    (status,) = ranks(sft_runs.train, 1, config_file, [f"run_dir={tmp_path}", "max_steps=1"])
    assert status == 0
    folder = tmp_path / "checkpoints" / "step_00000001"
    (folder / "complete").unlink()
    settings = [f"model.megatron={folder}", "model.hf=null"]
    _refused(ranks, config_file, settings, r"step_00000001: holds no file 'complete': it was not written to its end")

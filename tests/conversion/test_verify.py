"""Whatever differs is found, reported by name and ends with status 1; engines are asked for real."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qedmeg.conversion import engines, verify
from qedmeg.conversion.convert import hf_to_megatron, megatron_to_hf
from qedmeg.conversion.report import Check, Report
from qedmeg.conversion.stored import HuggingFaceModel
from qedmeg.model import torch_dist
from tests.conversion.conftest import SCRIPTS

WEIGHTS = "model.safetensors"
GATE = "model.layers.2.mlp.gate_proj.weight"


@pytest.fixture
def other(hf_folder, tmp_path) -> Path:
    """A second copy of the checkpoint, to be changed."""
    return Path(shutil.copytree(hf_folder(), tmp_path / "other"))


def _check(folder: Path, name: str) -> dict:
    (check,) = (check for check in json.loads((folder / "verify.json").read_text())["checks"] if check["name"] == name)
    return check


def test_equal_models(command, hf_folder, tmp_path):
    hf_to_megatron(hf_folder(), tmp_path / "megatron", tp=2, checks=())
    ended = command("verify.py", "--hf", hf_folder(), "--megatron", tmp_path / "megatron", "--checks", "tensors,config")
    assert ended.status == 0
    assert "39 tensors are equal bit for bit" in ended.out
    found = json.loads((tmp_path / "megatron" / "verify.json").read_text())
    assert found["equal"]
    assert [check["name"] for check in found["checks"]] == ["tensors", "config"]
    assert len(found["tensors"]) == 39
    assert found["tensors"][2] == {
        "name": "decoder.layers.0.self_attention.linear_qkv.weight",
        "sources": [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv"],
        "shape": [256, 64],
        "dtypes": ["float32", "float32"],
        "equal": True,
        "differing": 0,
    }
    page = (tmp_path / "megatron" / "verify.md").read_text()
    assert page.count("bit-equal") == 39


def test_one_bit(command, hf_folder, other):
    stored = load_file(other / WEIGHTS)
    stored[GATE].view(torch.int32)[3, 4] ^= 1
    save_file(stored, other / WEIGHTS)
    assert command("verify.py", "--hf", hf_folder(), "--hf", other, "--checks", "tensors").status == 1
    check = _check(other, "tensors")
    assert check["status"] == "differs"
    assert "1 of 39 differ, first decoder.layers.2.mlp.linear_fc1.weight_w in 1 elements" in check["detail"]
    assert "1 elements differ" in (other / "verify.md").read_text()


def test_the_sign_of_zero_is_a_bit(command, hf_folder, other, tmp_path):
    for folder, zero in ((tmp_path / "first", 0.0), (other, -0.0)):
        shutil.copytree(hf_folder(), folder, dirs_exist_ok=True)
        stored = load_file(folder / WEIGHTS)
        stored[GATE][0, 0] = zero
        save_file(stored, folder / WEIGHTS)
    assert command("verify.py", "--hf", tmp_path / "first", "--hf", other, "--checks", "tensors").status == 1


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [("config.json", "rms_norm_eps", 1e-5), ("generation_config.json", "eos_token_id", 7)],
)
def test_a_field(command, hf_folder, other, name, field, value):
    path = other / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value, "transformers_version": "0"}))
    assert command("verify.py", "--hf", hf_folder(), "--hf", other, "--checks", "config").status == 1
    check = _check(other, "config")
    assert check["figures"] == {"differing_fields": 1}
    assert f"{name}: {field}: " in check["detail"]


def test_a_tokenizer_file(command, hf_folder, other):
    (other / "chat_template.jinja").write_text("{{ messages }}")
    assert command("verify.py", "--hf", hf_folder(), "--hf", other, "--checks", "tokenizer").status == 1
    assert "chat_template.jinja differs" in _check(other, "tokenizer")["detail"]


def test_a_result_that_differs_is_not_complete(command, hf_folder, tmp_path, monkeypatch):
    """The writer drops a row: the checks must find it, and what was written must not look whole."""
    write_rows = torch_dist.Writer.write_rows

    def damage(self, key, start, rows):
        write_rows(self, key, start, rows.roll(1) if key == "output_layer.weight" else rows)

    monkeypatch.setattr(torch_dist.Writer, "write_rows", damage)
    out = tmp_path / "out"
    ended = command("hf_to_megatron.py", "--hf", hf_folder(), "--out", out, "--tp", 2, "--checks", "tensors,config")
    assert ended.status == 1
    assert "output_layer.weight" in ended.out
    assert not out.exists()
    partial = tmp_path / "out.partial"
    assert not (partial / "complete").exists()
    assert not json.loads((partial / "report.json").read_text())["equal"]
    monkeypatch.undo()
    assert command("megatron_to_hf.py", "--megatron", partial, "--out", tmp_path / "back").status == 2
    ended = command("hf_to_megatron.py", "--hf", hf_folder(), "--out", out, "--tp", 2, "--checks", "tensors,config")
    assert ended.status == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def _answers(served: HuggingFaceModel, shift: float):
    """An `ask` whose vLLM is `shift` off transformers."""
    tokens = verify.prompts(served)
    logits = [np.random.default_rng(1).standard_normal((len(ids), 300), dtype=np.float32) for ids in tokens]
    logprobs = [
        torch.from_numpy(table).log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy() + shift
        for table, ids in zip(logits, tokens, strict=True)
    ]
    told = {"transformers": logits, "vllm": logprobs}
    return tokens, lambda jobs: [told[job.engine] for job in jobs]


@pytest.mark.parametrize(("shift", "status"), [(0.0, "equal"), (2e-4, "differs"), (np.nan, "differs")])
def test_logprobs_have_a_bound(hf_folder, shift, status):
    with HuggingFaceModel(hf_folder()) as served:
        check = verify.compare_with_vllm(served, *_answers(served, shift))
    assert check.status == status


@pytest.mark.parametrize(("shift", "status"), [(0.0, "equal"), (1e-4, "differs"), (np.nan, "differs")])
def test_logits_have_a_bound(hf_folder, shift, status):
    with HuggingFaceModel(hf_folder()) as first, HuggingFaceModel(hf_folder("qwen2")) as second:
        answers = [[np.ones((3, 4), dtype=np.float32)], [np.ones((3, 4), dtype=np.float32) + np.float32(shift)]]
        check = verify.compare_logits(first, second, lambda jobs: answers)
    assert check.status == status


def test_vllm_is_not_asked_of_a_head_dim_that_it_does_not_take(hf_folder):
    with HuggingFaceModel(hf_folder("qwen2")) as served:  # 64 / 4 = 16
        check = verify.compare_with_vllm(served, *_answers(served, 0.0))
    assert check == Check("vllm", "not run", check.detail)
    assert "head_dim 16" in check.detail


def test_too_little_memory_is_said(hf_folder, monkeypatch):
    monkeypatch.setattr(verify, "_IMPORTS_BYTES", 10**18)
    with HuggingFaceModel(hf_folder()) as model:
        report = verify.verify(model, model, ["logits", "vllm"])
    assert [check.status for check in report.checks] == ["not run", "not run"]
    assert "needs 1000000000.0 GB of memory" in report.checks[0].detail
    assert report.equal


def test_an_engine_that_fails_is_no_proof(tmp_path):
    with pytest.raises(engines.EngineFailed, match="other failed: KeyError: 'other'"):
        engines.ask([engines.Job("other", str(tmp_path))], [[1, 2]])
    report = Report("verify", "a", "b", "c", [Check("logits", "failed", "")], [], [], {})
    assert not report.equal


def test_the_whole_command_with_logits(hf_folder, tmp_path):
    """A process of its own, as a user starts it, with the checks that it makes when none are named."""
    arguments = ["--hf", hf_folder(), "--out", tmp_path / "out", "--tp", "2", "--pp", "2"]
    command = [sys.executable, SCRIPTS / "hf_to_megatron.py", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    statuses = {check["name"]: check["status"] for check in report["checks"]}
    others = dict.fromkeys(("tensors", "config", "logits", "vllm"), "equal")
    assert statuses == others | {"tokenizer": "not run"}
    logits = report["checks"][3]["figures"]
    assert logits["maximum_difference"] <= 1e-5
    assert logits["largest_logit"] > 0.1
    assert (tmp_path / "out" / "complete").is_file()


@pytest.mark.vllm
def test_vllm_and_transformers_agree_and_other_weights_do_not(hf_folder, other):
    """The second model is changed: vLLM agrees with transformers about it, and it differs from the first."""
    stored = load_file(other / WEIGHTS)
    stored[GATE] *= 1.01
    save_file(stored, other / WEIGHTS)
    with HuggingFaceModel(hf_folder()) as first, HuggingFaceModel(other) as second:
        logits, vllm = verify.verify(first, second, ["logits", "vllm"]).checks
    assert logits.status == "differs"
    assert logits.figures["maximum_difference"] > 1e-4
    assert vllm.status == "equal", vllm.detail
    assert vllm.figures["maximum_difference"] <= 1e-4


def test_an_export_loads_in_transformers(hf_folder, tmp_path):
    """What `from_pretrained` makes of the export has every weight of the source: no name is missing or unknown."""
    from transformers import AutoModelForCausalLM

    for family in ("qwen3", "qwen3_moe", "qwen2", "llama"):
        hf_to_megatron(hf_folder(family), tmp_path / family, pp=2, checks=())
        megatron_to_hf(tmp_path / family, tmp_path / f"{family}-back", checks=())
        model, told = AutoModelForCausalLM.from_pretrained(tmp_path / f"{family}-back", output_loading_info=True)
        assert not told["missing_keys"]
        assert not told["unexpected_keys"]
        source = AutoModelForCausalLM.from_pretrained(hf_folder(family)).state_dict()
        assert all(torch.equal(tensor, source[name]) for name, tensor in model.state_dict().items())

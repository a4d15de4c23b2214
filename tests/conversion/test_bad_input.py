"""What cannot be converted ends with status 2 and one clear line, and leaves nothing behind that looks whole."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qedmeg.conversion.convert import hf_to_megatron
from tests.checkpoints import make_checkpoint

WEIGHTS = "model.safetensors"
KEYS = "model.layers.1.self_attn.k_proj.weight"


def _assert_refused(ended, out: Path, *parts: object) -> None:
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert str(part) in line
    assert not out.exists()
    assert not list(out.parent.glob(f"{out.name}*"))


@pytest.fixture
def hf(hf_folder, tmp_path) -> Path:
    """A checkpoint in two shards, to be damaged."""
    return Path(shutil.copytree(hf_folder(shard_size="500KB"), tmp_path / "hf"))


@pytest.fixture
def megatron(hf_folder, tmp_path) -> Path:
    """A converted checkpoint, to be damaged."""
    hf_to_megatron(hf_folder(), tmp_path / "megatron", tp=2, pp=2, checks=())
    return tmp_path / "megatron"


def _tensor(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for path in folder.glob("*.safetensors"):
        stored = load_file(path)
        if name in stored:
            stored[name] = change(stored[name])
            save_file(stored, path)


def _config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[1]


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda hf: _shard(hf).unlink(), ["model-00002-of-00002.safetensors", "missing"]),
        (lambda hf: _shard(hf).write_bytes(_shard(hf).read_bytes()[:-1]), ["model-00002-of-00002", "not a whole"]),
        (lambda hf: _shard(hf).write_bytes(b"\0" * 100), ["model-00002-of-00002", "not a whole"]),
        (lambda hf: _tensor(hf, KEYS, lambda keys: keys[1:].clone()), [KEYS, "[63, 64]", "[64, 64]"]),
        (lambda hf: _tensor(hf, KEYS, lambda keys: keys * math.nan), [KEYS, "NaN"]),
        (lambda hf: _tensor(hf, KEYS, lambda keys: keys / 0), [KEYS, "infinity"]),
        (lambda hf: _tensor(hf, KEYS, lambda keys: keys.to(torch.int32)), [KEYS, "torch.int32"]),
        (lambda hf: _config(hf, architectures=["Qwen4ForCausalLM"]), ["config.json", "Qwen4ForCausalLM", "did you"]),
        (lambda hf: _config(hf, num_hidden_layers=5), ["lacks tensor", "model.layers.4."]),
        (lambda hf: _config(hf, num_hidden_layers=3), ["model.layers.3.", "not part of"]),
        (lambda hf: _config(hf, tie_word_embeddings=True), ["tie_word_embeddings", "lm_head.weight"]),
        (lambda hf: (hf / "config.json").write_text("{"), ["config.json", "not valid JSON"]),
        (lambda hf: (hf / "config.json").write_text("[]"), ["config.json", "not a JSON object"]),
        (lambda hf: _config(hf, num_attention_heads="4"), ["config.json", "num_attention_heads: '4' is not a whole"]),
        (lambda hf: _config(hf, num_attention_heads=0), ["config.json", "num_attention_heads: 0 is not a whole"]),
        (lambda hf: _config(hf, num_hidden_layers=None), ["config.json", "num_hidden_layers: missing"]),
        (lambda hf: _config(hf, rope_parameters={"rope_type": "llama3"}), ["rope_parameters.factor: None"]),
        (lambda hf: (hf / "config.json").unlink(), ["config.json", "no such file"]),
        (lambda hf: [path.unlink() for path in hf.glob("*.safe*")], ["model.safetensors", "holds neither"]),
        (shutil.rmtree, ["hf/config.json", "no such file"]),
    ],
)
def test_a_damaged_model(command, hf, tmp_path, damage, parts):
    damage(hf)
    out = tmp_path / "out"
    _assert_refused(command("hf_to_megatron.py", "--hf", hf, "--out", out), out, *parts)


@pytest.mark.parametrize(
    ("family", "sizes", "parts"),
    [
        ("qwen3", ["--tp", 3], ["tp: 3", "4 attention heads"]),
        ("qwen3", ["--tp", 0], ["tp: 0"]),
        ("qwen3", ["--pp", 5], ["pp: 5", "has 4"]),
        ("qwen3", ["--ep", 2], ["ep: 2", "no experts"]),
        ("qwen3_moe", ["--ep", 3], ["ep: 3", "4 experts"]),
        ("qwen3", ["--checks", "tensors,logit"], ["--checks", "'logit'", "did you mean 'logits'"]),
        ("qwen3", ["--checks", ""], ["--checks", "nothing would be proved"]),
    ],
)
def test_sizes_that_do_not_divide(command, hf_folder, tmp_path, family, sizes, parts):
    out = tmp_path / "out"
    _assert_refused(command("hf_to_megatron.py", "--hf", hf_folder(family), "--out", out, *sizes), out, *parts)


def test_a_dtype_that_cannot_hold_the_weights(command, tmp_path):
    make_checkpoint(tmp_path / "hf")
    _tensor(tmp_path / "hf", KEYS, lambda keys: keys * 1e6)
    ended = command("hf_to_megatron.py", "--hf", tmp_path / "hf", "--out", tmp_path / "out", "--dtype", "float16")
    _assert_refused(ended, tmp_path / "out", KEYS, "too large for torch.float16")


def _rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda folder: (folder / "complete").unlink(), ["'complete'", "not written to its end"]),
        (lambda folder: (folder / "__2_0.distcp").unlink(), ["__2_0.distcp", "cannot be read"]),
        (
            lambda folder: _rewrite(folder / "__2_0.distcp", lambda old: old[: len(old) // 2]),
            ["__2_0.distcp", "ends after"],
        ),
        (lambda folder: _rewrite(folder / "__2_0.distcp", lambda old: b"\1" * len(old)), ["__2_0.distcp", "damaged"]),
        (lambda folder: (folder / ".metadata").unlink(), [".metadata", "no such file"]),
        (lambda folder: _rewrite(folder / ".metadata", lambda old: old[:1000]), [".metadata", "not a checkpoint's"]),
        (lambda folder: (folder / "qedmeg.json").unlink(), ["qedmeg.json"]),
        (lambda folder: _config(folder / "hf", num_hidden_layers=6), ["lacks decoder.layers.4."]),
        (lambda folder: _config(folder / "hf", num_hidden_layers=2), ["decoder.layers.2.", "not part of"]),
        (lambda folder: _config(folder / "hf", intermediate_size=64), ["weight_w", "[128, 64]", "[64, 64]"]),
        (shutil.rmtree, ["no such folder"]),
    ],
)
def test_a_damaged_checkpoint(command, megatron, tmp_path, damage, parts):
    damage(megatron)
    out = tmp_path / "out"
    _assert_refused(command("megatron_to_hf.py", "--megatron", megatron, "--out", out), out, *parts)


def test_nan_in_a_checkpoint(command, hf_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("qedmeg.model.weights.checked_cast", lambda rows, *_: rows * math.nan)
    hf_to_megatron(hf_folder(), tmp_path / "megatron", checks=())
    monkeypatch.undo()
    out = tmp_path / "out"
    ended = command("megatron_to_hf.py", "--megatron", tmp_path / "megatron", "--out", out)
    _assert_refused(ended, out, "embedding.word_embeddings.weight", "NaN")


def test_verify_refuses_another_model(command, hf_folder, tmp_path, megatron):
    ended = command("verify.py", "--hf", hf_folder(num_hidden_layers=5), "--megatron", megatron)
    _assert_refused(ended, tmp_path / "out", megatron, "another model", "layers 5 and 4")
    ended = command("verify.py", "--hf", hf_folder(), "--hf", hf_folder("llama"))
    _assert_refused(ended, tmp_path / "out", "another model", "Qwen3ForCausalLM and LlamaForCausalLM")
    assert not list(tmp_path.rglob("verify.*"))


def test_verify_refuses_a_half_written_checkpoint(command, hf_folder, tmp_path, megatron):
    (megatron / "complete").unlink()
    ended = command("verify.py", "--hf", hf_folder(), "--megatron", megatron)
    _assert_refused(ended, tmp_path / "out", megatron, "not written to its end")


def test_verify_wants_two_models(command, hf_folder, tmp_path):
    _assert_refused(command("verify.py", "--hf", hf_folder()), tmp_path / "out", "two models are compared")


def test_what_is_there_is_not_overwritten(command, hf_folder, tmp_path, megatron):
    before = {path: path.read_bytes() for path in megatron.rglob("*") if path.is_file()}
    for out, part in ((megatron, "is there and complete"), (hf_folder(), "holds what is to be converted")):
        ended = command("hf_to_megatron.py", "--hf", hf_folder(), "--out", out)
        assert (ended.status, part in ended.err) == (2, True)
    ended = command("megatron_to_hf.py", "--megatron", megatron, "--out", megatron, "--overwrite")
    assert (ended.status, "holds what is to be converted" in ended.err) == (2, True)
    assert {path: path.read_bytes() for path in megatron.rglob("*") if path.is_file()} == before
    ended = command("hf_to_megatron.py", "--hf", hf_folder(), "--out", megatron, "--overwrite", "--checks", "tensors")
    assert ended.status == 0
    assert len(list(megatron.glob("*.distcp"))) == 1

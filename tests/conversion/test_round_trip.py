"""Hugging Face to Megatron and back gives the same bits, for every family, size of the groups, dtype and layout."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM

from qedmeg.conversion import verify
from qedmeg.conversion.convert import hf_to_megatron, megatron_to_hf
from qedmeg.model.torch_dist import Reader
from tests.checkpoints import FAMILIES, make_checkpoint

CHECKS = ("tensors", "config", "tokenizer")


def _load(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, by the safetensors library."""
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def _assert_same(one: Path, other: Path) -> None:
    first, second = _load(one), _load(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert second[name].dtype == tensor.dtype
        assert torch.equal(second[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_at_every_tp_and_pp(hf_folder, tmp_path, family, tied):
    """4 layers do not divide by PP 3, nor a vocabulary of 300 by TP 4 padded to 128s, nor 2 KV heads by TP 4."""
    source = hf_folder(family, tie_word_embeddings=tied)
    assert ("lm_head.weight" in _load(source)) != tied
    for tp, pp in itertools.product((1, 2, 4), (1, 2, 3)):
        megatron, back = tmp_path / f"megatron-{tp}-{pp}", tmp_path / f"back-{tp}-{pp}"
        assert hf_to_megatron(source, megatron, tp=tp, pp=pp, checks=CHECKS).equal
        assert len(list(megatron.glob("*.distcp"))) == tp * pp
        assert megatron_to_hf(megatron, back, checks=()).equal
        _assert_same(source, back)
        assert (back / "config.json").read_bytes() == (source / "config.json").read_bytes()


@pytest.mark.parametrize(("tp", "pp", "ep"), [(1, 1, 2), (2, 2, 4), (1, 3, 4)])
def test_experts_are_spread_over_ep(hf_folder, tmp_path, tp, pp, ep):
    source = hf_folder("qwen3_moe")
    assert hf_to_megatron(source, tmp_path / "megatron", tp=tp, pp=pp, ep=ep, checks=CHECKS).equal
    assert len(list((tmp_path / "megatron").glob("*.distcp"))) == tp * pp * ep
    with Reader(tmp_path / "megatron") as reader:
        up = reader.tensors["decoder.layers.0.mlp.experts.experts.3.linear_fc1.weight_v"]
        ranks = [tp * (ep - 1) + rank for rank in range(tp)]  # the last expert is with the last EP rank
        assert [chunk.path.name for chunk in up.chunks] == [f"__{rank}_0.distcp" for rank in ranks]
    assert megatron_to_hf(tmp_path / "megatron", tmp_path / "back", checks=CHECKS).equal
    _assert_same(source, tmp_path / "back")


@pytest.mark.parametrize("shard_size", ["1GB", "100KB"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_dtype_single_and_sharded(hf_folder, tmp_path, dtype, shard_size):
    source = hf_folder(dtype=dtype, shard_size=shard_size)
    assert (len(list(source.glob("*.safetensors"))) > 1) == (shard_size == "100KB")
    assert hf_to_megatron(source, tmp_path / "megatron", tp=2, pp=2, checks=CHECKS).equal
    assert megatron_to_hf(tmp_path / "megatron", tmp_path / "back", checks=CHECKS).equal
    _assert_same(source, tmp_path / "back")


def test_dtypes_that_differ_within_a_model_are_kept(tmp_path):
    model = make_checkpoint(tmp_path / "hf", dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data = parameter.data.float() + 1e-6  # more than bfloat16 holds
    model.save_pretrained(tmp_path / "hf")
    assert hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", tp=2, checks=CHECKS).equal
    assert megatron_to_hf(tmp_path / "megatron", tmp_path / "back", checks=CHECKS).equal
    _assert_same(tmp_path / "hf", tmp_path / "back")


def test_weights_are_rounded_when_asked(hf_folder, tmp_path):
    source = hf_folder()
    report = hf_to_megatron(source, tmp_path / "megatron", tp=2, dtype=torch.bfloat16, checks=CHECKS)
    assert report.equal
    assert {tuple(tensor.dtypes) for tensor in report.tensors} == {("float32", "bfloat16")}
    assert json.loads((tmp_path / "megatron" / "qedmeg.json").read_text())["dtype"] == "bfloat16"
    megatron_to_hf(tmp_path / "megatron", tmp_path / "back", checks=CHECKS)
    back = _load(tmp_path / "back")
    assert all(torch.equal(back[name], tensor.bfloat16()) for name, tensor in _load(source).items())
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config == json.loads((source / "config.json").read_text()) | {"dtype": "bfloat16"}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "back").dtype == torch.bfloat16


def test_padding_of_the_vocabulary_stays_inside(hf_folder, tmp_path):
    hf_to_megatron(hf_folder(), tmp_path / "megatron", tp=4, checks=())
    with Reader(tmp_path / "megatron") as reader:
        for key in ("embedding.word_embeddings.weight", "output_layer.weight"):
            assert reader.tensors[key].shape == (384, 64)
            rows = torch.full((84, 64), torch.nan)
            reader.read_rows(key, 300, rows)
            assert not rows.any()
    megatron_to_hf(tmp_path / "megatron", tmp_path / "back", checks=())
    assert _load(tmp_path / "back")["model.embed_tokens.weight"].shape == (300, 64)


def test_blocks_smaller_than_a_tensor(hf_folder, tmp_path, monkeypatch):
    """Blocks end inside chunks, query groups and the padding."""
    monkeypatch.setattr("qedmeg.model.tensor_bytes.BLOCK_BYTES", 7 * 64 * 4)
    for family in ("qwen2", "qwen3_moe"):
        assert hf_to_megatron(hf_folder(family), tmp_path / family, tp=2, pp=2, checks=CHECKS).equal
        assert megatron_to_hf(tmp_path / family, tmp_path / f"{family}-back", checks=CHECKS).equal
        _assert_same(hf_folder(family), tmp_path / f"{family}-back")


def _add_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(verify.TEXTS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text("{{ messages }}")


def test_the_tokenizer_goes_along(tmp_path):
    make_checkpoint(tmp_path / "hf")
    _add_tokenizer(tmp_path / "hf")
    report = hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", checks=CHECKS)
    megatron_to_hf(tmp_path / "megatron", tmp_path / "back", checks=CHECKS)
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()
    (check,) = (check for check in report.checks if check.name == "tokenizer")
    assert (check.status, check.figures) == ("equal", {"files": 2})
    assert "5 texts are encoded to the same tokens" in check.detail


def test_a_tied_output_that_is_stored_is_left_out(hf_folder, tmp_path):
    source = tmp_path / "hf"
    make_checkpoint(source, tie_word_embeddings=True)
    stored = _load(source)
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
    from safetensors.torch import save_file

    save_file(stored, source / "model.safetensors")
    report = hf_to_megatron(source, tmp_path / "megatron", checks=CHECKS)
    assert report.equal
    assert any("lm_head.weight is stored beside model.embed_tokens.weight" in note for note in report.notes)
    megatron_to_hf(tmp_path / "megatron", tmp_path / "back", checks=CHECKS)
    del stored["lm_head.weight"]
    assert _load(tmp_path / "back").keys() == stored.keys()

"""How Megatron's tensors are made of Hugging Face's, against numbers worked out by hand and by brute force."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from qedmeg.errors import UserError
from qedmeg.model import families, tensor_bytes, weights
from qedmeg.model.safetensors_file import SINGLE_FILE, Reader, read_folder
from qedmeg.model.weights import GlobalTensor, Source, cut, pieces
from tests.checkpoints import FAMILIES, make_checkpoint

# 4 heads and 2 KV heads of 2 rows each: group 0 is q 0-3, k 0-1, v 0-1; group 1 is q 4-7, k 2-3, v 2-3
Q, K, V = Source("q", (8, 3)), Source("k", (4, 3)), Source("v", (4, 3))
QKV = GlobalTensor("qkv", (Q, K, V), split=0, layer=0, expert=None, groups=2)


def _numbers(start: int, stop: int) -> list[tuple[str, int, int, int]]:
    return [(piece.source.name, piece.start, piece.target, piece.count) for piece in pieces(QKV, start, stop)]


def test_pieces_of_the_whole_take_turns_by_group():
    assert _numbers(0, 16) == [
        ("q", 0, 0, 4),
        ("k", 0, 4, 2),
        ("v", 0, 6, 2),
        ("q", 4, 8, 4),
        ("k", 2, 12, 2),
        ("v", 2, 14, 2),
    ]


def test_pieces_of_tp_chunks():
    assert _numbers(8, 16) == [("q", 4, 0, 4), ("k", 2, 4, 2), ("v", 2, 6, 2)]  # TP 2: a group each
    assert _numbers(4, 8) == [("k", 0, 0, 2), ("v", 0, 2, 2)]  # TP 4, more ranks than groups: q, or k and v
    assert _numbers(3, 5) == [("q", 3, 0, 1), ("k", 0, 1, 1)]


def test_padding_belongs_to_no_piece():
    assert _numbers(14, 20) == [("v", 2, 0, 2)]
    assert _numbers(16, 20) == []


def test_cut():
    assert list(cut((8, 6), 0, 2)) == [((0, 0), (4, 6)), ((4, 0), (4, 6))]
    assert list(cut((8, 6), 1, 3)) == [((0, 0), (8, 2)), ((0, 2), (8, 2)), ((0, 4), (8, 2))]
    assert list(cut((8,), None, 4)) == [((0,), (8,))]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_chunks_tile_every_tensor_and_use_every_source_row_once(tmp_path, family, tp):
    make_checkpoint(tmp_path, family)
    model = families.read_architecture(tmp_path)
    stored = load_file(tmp_path / SINGLE_FILE)
    used = dict.fromkeys(stored, 0)
    with Reader(tmp_path) as reader:
        for tensor in weights.global_tensors(model).values():
            shape = weights.stored_shape(model, tensor, tp)
            whole = torch.full(shape, math.nan)
            for start, size in cut(shape, tensor.split, tp):
                box = whole[tuple(slice(first, first + length) for first, length in zip(start, size, strict=True))]
                assert box.isnan().all()  # nothing is written twice
                box.copy_(weights.read_chunk(reader, tensor, start, size, torch.float32))
            assert whole.isfinite().all()
            assert not whole[tensor.shape[0] :].any()
            for piece in pieces(tensor, 0, shape[0]):
                rows = stored[piece.source.name][piece.start : piece.start + piece.count]
                assert torch.equal(whole[piece.target : piece.target + piece.count], rows)
                used[piece.source.name] += piece.count
    assert used == {name: tensor.shape[0] for name, tensor in stored.items()}


NORM, KEYS = "model.layers.1.input_layernorm.weight", "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (KEYS, lambda tensor: tensor[:-1].contiguous(), r"k_proj\.weight has shape \[63, 64\].*\[64, 64\]"),
        (KEYS, lambda tensor: tensor.bfloat16(), r"layers\.1\.self_attention\.linear_qkv\.weight .* several dtypes"),
        (NORM, lambda tensor: tensor.double(), "input_layernorm.weight has dtype torch.float64"),
        ("model.layers.9.odd.weight", None, r"model\.layers\.9\.odd\.weight is not part of a Qwen3ForCausalLM"),
    ],
)
def test_sources_that_do_not_fit_are_refused(tmp_path, name, change, message):
    make_checkpoint(tmp_path)
    stored = load_file(tmp_path / SINGLE_FILE)
    stored[name] = change(stored[name]) if change else torch.ones(2)
    save_file(stored, tmp_path / SINGLE_FILE)
    with pytest.raises(UserError, match=message):
        weights.check_sources(families.read_architecture(tmp_path), read_folder(tmp_path), tmp_path)


def test_a_missing_source_is_refused(tmp_path):
    make_checkpoint(tmp_path)
    stored = load_file(tmp_path / SINGLE_FILE)
    del stored[KEYS]
    save_file(stored, tmp_path / SINGLE_FILE)
    with pytest.raises(UserError, match=r"lacks tensor model\.layers\.1\.self_attn\.k_proj\.weight"):
        weights.check_sources(families.read_architecture(tmp_path), read_folder(tmp_path), tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(dtype, wrong):
    rows = torch.ones(4, 4, dtype=dtype)
    assert torch.equal(weights.checked_cast(rows, dtype, "x"), rows)
    rows[2, 1] = wrong
    with pytest.raises(UserError, match=r"^x holds NaN or infinity"):
        weights.checked_cast(rows, dtype, "x")


def test_weights_that_a_dtype_cannot_hold_are_refused():
    with pytest.raises(UserError, match=r"^x is too large for torch\.float16"):
        weights.checked_cast(torch.full((2, 2), 1e6), torch.float16, "x")


def test_a_rank_reads_its_slices_and_nothing_else(tmp_path, monkeypatch):
    make_checkpoint(tmp_path)
    model = families.read_architecture(tmp_path)
    read = []
    read_into = tensor_bytes.read_into

    def counting(tensor, file, position):
        read.append(tensor.numel())
        return read_into(tensor, file, position)

    monkeypatch.setattr(tensor_bytes, "read_into", counting)
    with Reader(tmp_path) as reader:
        for tensor in weights.global_tensors(model).values():
            whole = torch.cat([reader.read(source.name).flatten() for source in tensor.sources]).numel()
            for tp in (2, 4):
                read.clear()
                for start, shape in cut(weights.stored_shape(model, tensor, tp), tensor.split, tp):
                    chunk = weights.read_chunk(reader, tensor, start, shape, torch.float32)
                    assert chunk.shape == shape
                assert sum(read) == whole, tensor.key  # what is not split has one chunk

"""The norm against its formula. Attention of packed documents: which share a call, and that it makes no difference."""

import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.transformer_config import TransformerConfig

from qedmeg.model.layers import AttentionBlock, RMSNorm, SDPAttention, attention_blocks, multiply_in


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 1, 16), (5, 4, 16), (3, 16)])
def test_the_norm_is_its_formula_to_the_bit_and_has_its_gradients(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    config = TransformerConfig(num_layers=1, hidden_size=16, num_attention_heads=4, params_dtype=dtype)
    norm = RMSNorm(config, 16, eps=1e-3)
    norm.weight.data.uniform_(0.5, 2.0)
    hidden = (3 * torch.randn(shape)).to(dtype).requires_grad_()
    wide = hidden.float()
    formula = norm.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-3)).to(dtype)
    found = norm(hidden)
    assert torch.equal(found, formula)
    weight = torch.randn(shape).to(dtype)
    gradients = [torch.autograd.grad(output, (hidden, norm.weight), weight) for output in (found, formula)]
    rounding = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(*gradients, **rounding)


def _bounds(*lengths: int) -> tuple[int, ...]:
    return tuple(itertools.accumulate(lengths, initial=0))


def _spans(blocks: tuple[AttentionBlock, ...]) -> list[tuple[int, int]]:
    return [(block.start, block.end) for block in blocks]


def test_neighbours_of_nearly_one_length_share_a_call() -> None:
    assert _spans(attention_blocks(_bounds(100, 90, 80, 40, 40))) == [(0, 270), (270, 350)]
    assert _spans(attention_blocks(_bounds(76, 100, 74))) == [(0, 176), (176, 250)]


def test_long_documents_and_lone_ones_have_a_call_of_their_own() -> None:
    blocks = attention_blocks(_bounds(600, 600, 500))
    assert _spans(blocks) == [(0, 600), (600, 1200), (1200, 1700)]
    assert all(block.index_DL is None for block in blocks)


def test_empty_documents_are_left_out() -> None:
    assert _spans(attention_blocks((0, 0, 8, 8, 16, 16))) == [(0, 16)]


@pytest.mark.parametrize("lengths", [(7, 6, 6), (9, 3, 2, 2, 1), (5,), (4, 5, 4, 30)])
def test_documents_together_attend_as_each_alone(lengths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    config = TransformerConfig(num_layers=1, hidden_size=16, num_attention_heads=4, num_query_groups=2)
    alone = SimpleNamespace(cp=SimpleNamespace(size=lambda: 1, rank=lambda: 0))
    attention = SDPAttention(config, 1, None, "self", pg_collection=alone)  # type: ignore[arg-type]
    bounds = torch.tensor(_bounds(*lengths), dtype=torch.int32)
    packed = PackedSeqParams(qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds)
    query, key, value = (torch.randn(sum(lengths), heads, 4, requires_grad=True) for heads in (4, 2, 2))
    found = attention(query, key, value, packed_seq_params=packed)
    expected = torch.cat(
        [
            F.scaled_dot_product_attention(
                *(tensor[start:end].transpose(0, 1) for tensor in (query, key, value)), is_causal=True, enable_gqa=True
            ).transpose(0, 1)
            for start, end in itertools.pairwise(bounds.tolist())
        ]
    ).flatten(1)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(found)
    gradients = [torch.autograd.grad(output, (query, key, value), weight) for output in (found, expected)]
    torch.testing.assert_close(*gradients)


class _Linear(torch.nn.Module):
    """The part of Megatron's linear layers that `multiply_in` takes hold of."""

    def _forward_impl(self, input, weight, bias):
        self.seen = {input.dtype, weight.dtype, bias.dtype}
        return F.linear(input, weight, bias)


def test_a_linear_layer_that_multiplies_in_fp32_keeps_bf16() -> None:
    generator = torch.Generator().manual_seed(0)
    given = [
        torch.randn(shape, generator=generator).bfloat16().requires_grad_() for shape in ((5, 8), (3, 8), (3,), (5, 3))
    ]
    input_TH, weight_OH, bias_O, upstream_TO = given
    layer = _Linear()
    multiply_in(layer, torch.float32)
    output_TO = layer._forward_impl(input=input_TH, weight=weight_OH, bias=bias_O)
    ((product, _),) = output_TO.grad_fn.next_functions
    assert product._raw_saved_mat1.data.dtype == torch.bfloat16  # kept for backward
    assert product._saved_mat1.dtype == torch.float32  # and what backward makes of it
    output_TO.backward(upstream_TO.detach())
    assert layer.seen == {torch.float32}
    assert output_TO.dtype == torch.bfloat16
    input, weight, bias, upstream = (tensor.detach().float() for tensor in given)
    assert torch.equal(output_TO, (input @ weight.T + bias).bfloat16())
    assert torch.equal(input_TH.grad, (upstream @ weight).bfloat16())
    assert torch.equal(weight_OH.grad, (upstream.T @ input).bfloat16())

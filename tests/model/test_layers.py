"""The norm against its formula. Attention of packed documents: which share a call, and that it makes no difference."""

import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig

from qedmeg.data.packing import NO_BRANCH, Branch
from qedmeg.model.layers import AttentionPlan, RMSNorm, SDPAttention, SegmentedSequence, attention_plan, multiply_in


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


def _rows(plan: AttentionPlan) -> list[int]:
    """Documents of each call."""
    return [1 if isinstance(call, slice) else len(call) for call in plan.calls]


def test_documents_of_nearly_one_length_share_a_call() -> None:
    assert _rows(attention_plan(_bounds(100, 40, 90, 80, 40))) == [3, 2]
    assert _rows(attention_plan(_bounds(76, 100, 74))) == [2, 1]


def test_long_documents_and_lone_ones_have_a_call_of_their_own() -> None:
    plan = attention_plan(_bounds(600, 600, 512))
    assert plan.calls == (slice(0, 600), slice(600, 1200), slice(1200, 1712))
    assert plan.kept_T is None  # nothing is moved


def test_empty_documents_are_left_out() -> None:
    plan = attention_plan((0, 0, 8, 8, 16, 16))
    assert _rows(plan) == [2]
    assert plan.kept_T is not None
    assert plan.kept_T.tolist() == [*range(16)]


def test_answers_to_one_prompt_by_hand() -> None:
    """One of 4 tokens, and one of 5 whose first 2 are the same: two rows, and the output of those from the first."""
    plan = attention_plan(_bounds(4, 3), (NO_BRANCH, Branch(0, 2)))
    (call,) = plan.calls
    assert isinstance(call, torch.Tensor)
    assert call.tolist() == [[0, 1, 4, 5, 6], [0, 1, 2, 3, 3]]
    assert plan.kept_T is not None
    assert plan.kept_T.tolist() == [0, 1, 7, 8, 2, 3, 4]


@pytest.mark.parametrize(
    ("lengths", "follows"),
    [
        ((7, 6, 6), ()),
        ((9, 3, 2, 2, 1), ()),
        ((5,), ()),
        ((4, 5, 4, 30), ()),
        ((600, 530), ()),
        ((4, 5, 4, 30), ((-1, 0), (0, 4), (0, 2), (-1, 0))),
        ((6, 4, 5, 5, 3, 2, 8, 4), ((-1, 0), (0, 6), (1, 8), (-1, 0), (3, 2), (4, 4), (5, 5), (-1, 0))),
        ((500, 30, 20, 700), ((-1, 0), (0, 500), (1, 510), (0, 3))),
    ],
)
def test_documents_together_attend_as_each_alone(
    lengths: tuple[int, ...], follows: tuple[tuple[int, int], ...]
) -> None:
    torch.manual_seed(0)
    config = TransformerConfig(num_layers=1, hidden_size=16, num_attention_heads=4, num_query_groups=2)
    alone = SimpleNamespace(cp=SimpleNamespace(size=lambda: 1, rank=lambda: 0))
    attention = SDPAttention(config, 1, None, "self", pg_collection=alone)  # type: ignore[arg-type]
    bounds = torch.tensor(_bounds(*lengths), dtype=torch.int32)
    branches = tuple(Branch(*branch) for branch in follows)
    packed = SegmentedSequence(qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds, follows=branches)
    query, key, value = (torch.randn(sum(lengths), heads, 4, requires_grad=True) for heads in (4, 2, 2))
    found = attention(query, key, value, packed_seq_params=packed)
    segments = [torch.arange(start, end) for start, end in itertools.pairwise(bounds.tolist())]
    expected, wholes = [], []
    for number, segment in enumerate(segments):
        before = wholes[follows[number][0]][: follows[number][1]] if follows and follows[number][1] else segment[:0]
        whole = torch.cat([before, segment])
        wholes.append(whole)
        attended = F.scaled_dot_product_attention(
            *(tensor[whole].transpose(0, 1) for tensor in (query, key, value)), is_causal=True, enable_gqa=True
        )
        expected.append(attended.transpose(0, 1)[len(before) :])
    one_by_one = torch.cat(expected).flatten(1)
    torch.testing.assert_close(found, one_by_one)
    weight = torch.randn_like(found)
    gradients = [torch.autograd.grad(output, (query, key, value), weight) for output in (found, one_by_one)]
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

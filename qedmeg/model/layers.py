"""Layers of our own for Megatron-core's layer spec, where Transformer Engine is not: RMSNorm and SDPA attention."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from qedmeg import device
from qedmeg.data.packing import Branch, segment_rows


class RMSNorm(torch.nn.Module):
    """Root mean square norm (arXiv 1910.07467, eq. 4), computed in fp32 as transformers does.

    Megatron's own torch norm lacks the mark by which gradients are summed over TP ranks under sequence parallelism.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self.eps = eps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension."""
        normalised: torch.Tensor = _RMSNorm.apply(hidden, self.weight, self.eps)
        return normalised


class _RMSNorm(torch.autograd.Function):
    """x̂ = x / √(mean(x²) + ε) in fp32, then rounded and times the weight in the model's precision: transformers' order.

    Autograd would keep fp32 copies, in bf16 the most of a layer's activations: here the input is kept, which others
    keep too, and one number a row. Backward: dx = (g·w − x̂ · mean(g·w·x̂)) / √(mean(x²) + ε), dw = Σ g·x̂.
    """

    @staticmethod
    def forward(context: Any, hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = hidden.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(eps))
        context.save_for_backward(hidden, weight, scale)
        return (wide * scale).to(hidden.dtype).mul_(weight)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        hidden, weight, scale = context.saved_tensors
        grad, normalised = gradients[0].float(), hidden.float() * scale
        grad_weight = (grad * normalised).flatten(0, -2).sum(0).to(weight.dtype)
        grad = grad * weight.float()
        along = (grad * normalised).mean(-1, keepdim=True)
        return grad.sub_(normalised.mul_(along)).mul_(scale).to(hidden.dtype), grad_weight, None


class _GatherSequence(torch.autograd.Function):
    """[tokens of this rank, ...] to [ranks, tokens of a rank, ...]; backward sums over ranks and takes this rank's."""

    @staticmethod
    def forward(context: Any, tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        context.group = group
        gathered = tensor.new_empty(group.size(), *tensor.shape)
        dist.all_gather_into_tensor(gathered.view(-1, *tensor.shape[1:]), tensor.contiguous(), group=group)
        return gathered

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = gradients[0].contiguous()
        dist.all_reduce(total, group=context.group)
        return total[context.group.rank()], None


@dataclass
class SegmentedSequence(PackedSeqParams):
    """Megatron's bounds of packed segments, and which of them go on from another."""

    follows: tuple[Branch, ...] = ()
    """As in `PackedBatch`."""


SHARED_CALL_TOKENS = 512
"""Documents shorter than this share a call of attention: below it, what a call costs by itself shows."""
_SHARED_CALL_FILL = 0.75


@dataclass(frozen=True)
class AttentionPlan:
    """The calls of attention that a packed batch takes, each over D documents padded to the longest's L tokens."""

    calls: tuple[slice | torch.Tensor, ...]
    """Where the tokens of each are in the batch: those of one document, or indices [D, L]."""
    kept_T: torch.Tensor | None
    """Of each token of the batch, where it is in the outputs of the calls, end to end. None: they are in its order."""


@lru_cache(maxsize=64)  # all layers of all passes over a micro-batch ask for the same
def attention_plan(
    bounds: tuple[int, ...], follows: tuple[Branch, ...] = (), together: int = SHARED_CALL_TOKENS
) -> AttentionPlan:
    """How the segments between consecutive `bounds` are attended to, some of which go on from another (`follows`).

    Documents shorter than `together` share a call with others of nearly one length, so that three quarters of it or
    more are no padding. What a segment goes on from is in its row of a call too: its keys are needed there, and what is
    computed of it besides is taken from the first row that has it.
    """
    rows = [row_L for row_L in segment_rows(bounds, follows) if len(row_L)]
    branches = any(before.tokens for before in follows)
    if not branches and all(len(row_L) >= together for row_L in rows):
        return AttentionPlan(tuple(slice(int(row_L[0]), int(row_L[-1]) + 1) for row_L in rows), None)
    calls: list[list[np.ndarray]] = []
    for row_L in sorted(rows, key=len, reverse=True):
        longest = len(calls[-1][0]) if calls else 0
        if longest < together and len(row_L) >= _SHARED_CALL_FILL * longest > 0:
            calls[-1].append(row_L)
        else:
            calls.append([row_L])
    kept_T, done = np.full(bounds[-1], -1), 0
    for call in calls:
        for row_L in call:
            new_L = kept_T[row_L] < 0
            kept_T[row_L[new_L]] = done + new_L.nonzero()[0]
            done += len(call[0])
    return AttentionPlan(tuple(_place(call) for call in calls), torch.from_numpy(kept_T))


def _place(rows: Sequence[np.ndarray]) -> slice | torch.Tensor:
    first = rows[0]
    if len(rows) == 1 and first[-1] - first[0] == len(first) - 1:
        return slice(int(first[0]), int(first[-1]) + 1)
    # padded by tokens of its own at the end, where causal attention does not see them
    padded = [np.concatenate([row_L, row_L[-1:].repeat(len(first) - len(row_L))]) for row_L in rows]
    return torch.from_numpy(np.stack(padded))


def multiply_in(linear: torch.nn.Module, dtype: torch.dtype) -> None:
    """Let one of Megatron's parallel linear layers compute in another precision than its weights and inputs have.

    What backward needs is kept in theirs: it has been there before, so that nothing is lost.
    """
    layer: Any = linear
    forward = layer._forward_impl

    def converted(
        input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, **options: Any
    ) -> torch.Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda kept: kept.to(input.dtype), lambda kept: kept.to(dtype)):
            output = forward(
                input=input.to(dtype),
                weight=weight.to(dtype),
                bias=bias if bias is None else bias.to(dtype),
                **options,
            )
        return output.to(input.dtype)

    layer._forward_impl = converted


class SDPAttention(MegatronModule):
    """Causal attention by torch's scaled_dot_product_attention: dense or packed, with context parallelism.

    Nothing outside the diagonal blocks of packed documents is computed (see `attention_plan`).
    Under context parallelism each rank holds chunks r and 2·CP−1−r of the 2·CP chunks of each sequence (Megatron's
    balanced order); keys and values are gathered, queries stay.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        groups = pg_collection or ProcessGroupCollection.use_mpu_process_groups(required_pgs=["cp"])
        self.cp_group = groups.cp
        self.scale = softmax_scale

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        attn_mask_type: Any = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> torch.Tensor:
        """Dense: q, k, v [s, b, h, d] to [s, b, h·d]. Packed: [t, h, d] to [t, h·d]; both of this CP rank."""
        if packed_seq_params is None:
            attended = self._attend(query, key, value)
            return attended.reshape(*attended.shape[:2], -1)
        bounds = tuple((packed_seq_params.cu_seqlens_q // self.cp_group.size()).tolist())
        follows = packed_seq_params.follows if isinstance(packed_seq_params, SegmentedSequence) else ()
        plan = attention_plan(bounds, follows, SHARED_CALL_TOKENS if self.cp_group.size() == 1 else 0)
        query, key, value = (tensor.view(-1, *tensor.shape[-2:]) for tensor in (query, key, value))
        attended = torch.cat([self._attend_call(query, key, value, call) for call in plan.calls])
        if plan.kept_T is not None:
            attended = attended.index_select(0, plan.kept_T.to(attended.device))
        return attended.flatten(1)

    def _attend_call(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: slice | torch.Tensor
    ) -> torch.Tensor:
        """Causal attention of the documents of a call, [t, h, d] to [D·L, h, d]."""
        if isinstance(call, slice):
            return self._attend(*(tensor[call, None] for tensor in (query, key, value))).squeeze(1)
        index_DL = call.to(query.device)
        padded = (
            tensor.index_select(0, index_DL.flatten()).view(*index_DL.shape, *tensor.shape[1:]).transpose(0, 1)
            for tensor in (query, key, value)
        )
        return self._attend(*padded).transpose(0, 1).flatten(0, 1)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """One causal attention over [s, b, h, d]."""
        mask = None
        if self.cp_group.size() > 1:
            mask = self._causal_mask(query.shape[0]).to(query.device)
            key, value = self._whole_sequence(key), self._whole_sequence(value)
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))  # [b, h, s, d]
        grouped = query.shape[1] != key.shape[1]
        dtype = query.dtype
        query, key, value = (tensor.to(device.product_dtype(dtype)) for tensor in (query, key, value))
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=self.scale, enable_gqa=grouped
        )
        return attended.permute(2, 0, 1, 3).to(dtype)

    def _whole_sequence(self, tensor: torch.Tensor) -> torch.Tensor:
        """[s / CP, ...] of each rank to [s, ...] in the sequence's order."""
        low, high = _GatherSequence.apply(tensor, self.cp_group).chunk(2, dim=1)  # [CP, s / 2CP, ...] each
        return torch.cat([low.flatten(0, 1), high.flip(0).flatten(0, 1)])

    def _causal_mask(self, local: int) -> torch.Tensor:
        """[s / CP, s]: which keys each of this rank's queries may see."""
        positions = positions_of_rank(local * self.cp_group.size(), self.cp_group.size(), self.cp_group.rank())
        return positions[:, None] >= torch.arange(local * self.cp_group.size())


def positions_of_rank(length: int, cp: int, rank: int) -> torch.Tensor:
    """Positions [length / CP] of a sequence that a context-parallel rank holds, in the order it holds them."""
    chunks = torch.arange(length).chunk(2 * cp)
    return torch.cat([chunks[rank], chunks[2 * cp - 1 - rank]]) if cp > 1 else torch.arange(length)

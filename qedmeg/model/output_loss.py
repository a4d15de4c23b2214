"""The output layer's cross-entropy, in chunks of tokens over the vocabulary shards of the TP ranks.

[tokens, vocabulary] logits never stand in memory: a chunk's logits are made, its loss and gradients taken, and the
memory used again for the next. Tokens that are not trained on are left out of the product altogether.
"""

from typing import Any

import torch
import torch.distributed as dist

from qedmeg import device

CHUNK_BYTES, GPU_CHUNK_BYTES = 64 * 2**20, 2**30
"""fp32 logits of one chunk; large enough that the matrix products run at full speed."""


def chunk_tokens(vocabulary_rows: int) -> int:
    """Tokens a chunk, so that its fp32 logits fill `CHUNK_BYTES` (on a GPU `GPU_CHUNK_BYTES`); never fewer than 64."""
    return max(64, (GPU_CHUNK_BYTES if device.has_gpu() else CHUNK_BYTES) // (4 * vocabulary_rows))


def shard_rows(weight_VH: torch.Tensor, vocabulary: int, tp_group: dist.ProcessGroup) -> tuple[int, int]:
    """The token id of the first row of this rank's shard, and how many of its rows are not padding."""
    rows = weight_VH.shape[0]
    first = rows * tp_group.rank()
    return first, min(max(vocabulary - first, 0), rows)


def shift_by_highest(logits_CR: torch.Tensor, tp_group: dist.ProcessGroup) -> torch.Tensor:
    """Subtract from each token's logits, in place, the highest of them over all ranks, which is returned [chunk]."""
    highest_C = logits_CR.amax(1) if logits_CR.shape[1] else logits_CR.new_full(logits_CR.shape[:1], -torch.inf)
    if tp_group.size() > 1:
        dist.all_reduce(highest_C, dist.ReduceOp.MAX, group=tp_group)
    logits_CR.sub_(highest_C[:, None])
    return highest_C


def label_places(labels_C: torch.Tensor, real: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the labels are among the [chunk, real] logits of this rank: token and column of each that it holds.

    `labels_C` counts from this rank's first row; a label outside of its rows lies with another rank.
    """
    mine_C = (labels_C >= 0) & (labels_C < real)
    return mine_C.nonzero().squeeze(1), labels_C[mine_C]


def summed_cross_entropy(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    labels_T: torch.Tensor,
    mask_T: torch.Tensor,
    vocabulary: int,
    tp_group: dist.ProcessGroup,
) -> torch.Tensor:
    """Sum over tokens of mask × −log p(label), a scalar in fp32, equal on all TP ranks.

    Args:
        hidden_TH: the last hidden states [tokens, hidden], the same on all TP ranks; each rank's gradient for it
            covers its own shard and is to be summed over the group.
        weight_VH: this rank's rows [padded vocabulary / TP, hidden] of the output matrix.
        labels_T: token ids [tokens], anything where the mask is 0.
        mask_T: weight of each token's loss [tokens].
        vocabulary: entries of the vocabulary over all ranks without padding; padding rows take no part.
        tp_group: the tensor-parallel group.
    """
    first, real = shard_rows(weight_VH, vocabulary, tp_group)
    kept_K = mask_T.nonzero().squeeze(1)
    if not torch.is_grad_enabled():
        # An autograd function is told that a weight needs a gradient even where none will be asked for.
        hidden_TH, weight_VH = hidden_TH.detach(), weight_VH.detach()
    loss: torch.Tensor = _SummedCrossEntropy.apply(
        hidden_TH, weight_VH, labels_T[kept_K] - first, mask_T[kept_K].float(), kept_K, real, tp_group
    )
    return loss


class _SummedCrossEntropy(torch.autograd.Function):
    """Gradients are taken in the forward pass: the loss is a sum, so its gradient's scale is one number, known later.

    For one token with logits z: loss = log Σ exp z − z_label, d loss / d z = softmax(z) − onehot(label).
    """

    @staticmethod
    def forward(
        context: Any,
        hidden_TH: torch.Tensor,
        weight_VH: torch.Tensor,
        labels_K: torch.Tensor,
        mask_K: torch.Tensor,
        kept_K: torch.Tensor,
        real: int,
        tp_group: dist.ProcessGroup,
    ) -> torch.Tensor:
        need_hidden, need_weight = context.needs_input_grad[:2]
        dtype = device.product_dtype(hidden_TH.dtype)
        weight_RH = weight_VH[:real].to(dtype)
        grad_hidden_TH = torch.zeros_like(hidden_TH) if need_hidden else None
        # The weight's gradient sums many chunks: in fp32, as Megatron's own gradient buffers do.
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if need_weight else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden_TH.device)
        size = chunk_tokens(weight_VH.shape[0])
        for start in range(0, kept_K.numel(), size):
            chunk = slice(start, start + size)
            tokens_C = kept_K[chunk]
            hidden_CH = hidden_TH[tokens_C].to(dtype)
            logits_CR = (hidden_CH @ weight_RH.T).float()
            losses_C, grad_CR = _loss_and_gradient(logits_CR, labels_K[chunk], tp_group)
            loss += (losses_C * mask_K[chunk]).sum()
            if grad_hidden_TH is None and grad_weight_VH is None:
                continue
            grad_CR = grad_CR.mul_(mask_K[chunk, None]).to(dtype)
            if grad_hidden_TH is not None:
                grad_hidden_TH[tokens_C] = (grad_CR @ weight_RH).to(hidden_TH.dtype)
            if grad_weight_VH is not None:
                grad_weight_VH[:real] += grad_CR.T @ hidden_CH
        context.save_for_backward(
            grad_hidden_TH, grad_weight_VH.to(weight_VH.dtype) if grad_weight_VH is not None else None
        )
        return loss

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (scale,) = gradients
        grad_hidden_TH, grad_weight_VH = context.saved_tensors
        return (
            grad_hidden_TH.mul_(scale) if grad_hidden_TH is not None else None,
            grad_weight_VH.mul_(scale) if grad_weight_VH is not None else None,
            *[None] * 5,
        )


def _loss_and_gradient(
    logits_CR: torch.Tensor, labels_C: torch.Tensor, tp_group: dist.ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses [chunk] and softmax − onehot [chunk, rows], the latter in the memory of `logits_CR`."""
    highest_C = shift_by_highest(logits_CR, tp_group)
    places = label_places(labels_C, logits_CR.shape[1])
    label_logits_C = torch.zeros_like(highest_C)
    label_logits_C[places[0]] = logits_CR[places]
    logits_CR.exp_()
    sums_2C = torch.stack([logits_CR.sum(1), label_logits_C])
    if tp_group.size() > 1:
        dist.all_reduce(sums_2C, group=tp_group)
    logits_CR.div_(sums_2C[0][:, None])
    logits_CR[places] -= 1.0
    return sums_2C[0].log() - sums_2C[1], logits_CR

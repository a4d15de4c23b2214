"""The output layer's log-probabilities of labels, and entropies, in chunks over the vocabulary shards of the TP ranks.

[tokens, vocabulary] logits never stand in memory: of each token, the log of the sum of exponentials and the entropy
are kept, and the backward pass makes the logits again, a chunk at a time. Any loss may follow, unlike in
`output_loss`, which takes the gradient of one loss along with it.
"""

from typing import Any

import torch
import torch.distributed as dist

from qedmeg import device
from qedmeg.model.output_loss import chunk_tokens, label_places, shard_rows, shift_by_highest


def token_logprobs(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    labels_T: torch.Tensor,
    mask_T: torch.Tensor,
    vocabulary: int,
    tp_group: dist.ProcessGroup,
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """log p(label) of each token and, if asked for, the entropy −Σ p log p of its distribution, in fp32.

    Both are [tokens], 0 where the mask is 0, equal on all TP ranks. p is the softmax of logits / temperature over the
    whole vocabulary, from which a sampler draws that cuts off nothing (top_p 1, no top_k).

    Args:
        hidden_TH: the last hidden states [tokens, hidden], the same on all TP ranks; each rank's gradient for it
            covers its own shard and is to be summed over the group. The gradients that come for the two results must
            be the same on all TP ranks, as they are where each computes the same loss from them.
        weight_VH: this rank's rows [padded vocabulary / TP, hidden] of the output matrix.
        labels_T: token ids [tokens], anything where the mask is 0.
        mask_T: 0 for tokens that are left out: they cost nothing and get no gradient.
        vocabulary: entries of the vocabulary over all ranks without padding; padding rows take no part.
        tp_group: the tensor-parallel group.
        temperature: what the logits are divided by, as the sampler does.
        entropy: whether to compute entropies too, at the memory of a second chunk; else the second result is None.
    """
    first, real = shard_rows(weight_VH, vocabulary, tp_group)
    kept_K = mask_T.nonzero().squeeze(1)
    results: tuple[torch.Tensor, torch.Tensor | None] = _TokenLogprobs.apply(
        hidden_TH, weight_VH, labels_T[kept_K] - first, kept_K, real, tp_group, temperature, entropy
    )
    return results


class _TokenLogprobs(torch.autograd.Function):
    """For one token with z = logits / temperature, s = log Σ exp z, p = exp(z − s) and H = s − Σ p z:

    log p(label) = z_label − s, d log p(label) / d z = onehot(label) − p, d H / d z = −p (log p + H).
    """

    @staticmethod
    def forward(
        context: Any,
        hidden_TH: torch.Tensor,
        weight_VH: torch.Tensor,
        labels_K: torch.Tensor,
        kept_K: torch.Tensor,
        real: int,
        tp_group: dist.ProcessGroup,
        temperature: float,
        entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        logprobs_T = torch.zeros(hidden_TH.shape[0], dtype=torch.float32, device=hidden_TH.device)
        entropy_T = torch.zeros_like(logprobs_T) if entropy else None
        dtype = device.product_dtype(hidden_TH.dtype)
        weight_RH = weight_VH[:real].to(dtype)
        log_sums_K = torch.empty(kept_K.shape, dtype=torch.float32, device=hidden_TH.device)
        size = chunk_tokens(weight_VH.shape[0])
        for start in range(0, kept_K.numel(), size):
            chunk = slice(start, start + size)
            tokens_C = kept_K[chunk]
            logits_CR = _scaled_logits(hidden_TH[tokens_C].to(dtype), weight_RH, temperature)
            highest_C = shift_by_highest(logits_CR, tp_group)
            places = label_places(labels_K[chunk], real)
            sums_3C = torch.zeros(3, tokens_C.numel(), dtype=torch.float32, device=hidden_TH.device)
            sums_3C[0, places[0]] = logits_CR[places]
            exp_CR = logits_CR.exp() if entropy else logits_CR.exp_()
            sums_3C[1] = exp_CR.sum(1)
            if entropy:
                sums_3C[2] = exp_CR.mul_(logits_CR).sum(1)
            del logits_CR, exp_CR  # before the next chunk's are made
            if tp_group.size() > 1:
                dist.all_reduce(sums_3C, group=tp_group)
            label_logits_C, exp_sums_C, weighted_C = sums_3C
            log_sums_C = exp_sums_C.log()
            logprobs_T[tokens_C] = label_logits_C - log_sums_C
            log_sums_K[chunk] = highest_C + log_sums_C
            if entropy_T is not None:
                entropy_T[tokens_C] = log_sums_C - weighted_C / exp_sums_C
        context.save_for_backward(hidden_TH, weight_VH, labels_K, kept_K, log_sums_K, entropy_T)
        context.real, context.temperature = real, temperature
        context.set_materialize_grads(False)
        return logprobs_T, entropy_T

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        grad_logprobs_T, grad_entropy_T = gradients
        need_hidden, need_weight = context.needs_input_grad[:2]
        hidden_TH, weight_VH, labels_K, kept_K, log_sums_K, entropy_T = context.saved_tensors
        dtype = device.product_dtype(hidden_TH.dtype)
        weight_RH = weight_VH[: context.real].to(dtype)
        grad_hidden_TH = torch.zeros_like(hidden_TH) if need_hidden else None
        # The weight's gradient sums many chunks: in fp32, as Megatron's own gradient buffers do.
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if need_weight else None
        if grad_logprobs_T is None:
            grad_logprobs_T = torch.zeros(hidden_TH.shape[0], dtype=torch.float32, device=hidden_TH.device)
        size = chunk_tokens(weight_VH.shape[0])
        for start in range(0, kept_K.numel(), size):
            chunk = slice(start, start + size)
            tokens_C = kept_K[chunk]
            hidden_CH = hidden_TH[tokens_C].to(dtype)
            grad_logprobs_C = grad_logprobs_T[tokens_C] / context.temperature
            logp_CR = _scaled_logits(hidden_CH, weight_RH, context.temperature).sub_(log_sums_K[chunk, None])
            if grad_entropy_T is None:
                grad_CR = logp_CR.exp_().mul_(-grad_logprobs_C[:, None])
            else:
                grad_entropy_C = grad_entropy_T[tokens_C] / context.temperature
                prob_CR = logp_CR.exp()
                logp_CR.add_(entropy_T[tokens_C, None]).mul_(grad_entropy_C[:, None]).add_(grad_logprobs_C[:, None])
                grad_CR = prob_CR.mul_(logp_CR).neg_()
            del logp_CR
            places = label_places(labels_K[chunk], context.real)
            grad_CR[places] += grad_logprobs_C[places[0]]
            grad_CR = grad_CR.to(dtype)
            if grad_hidden_TH is not None:
                grad_hidden_TH[tokens_C] = (grad_CR @ weight_RH).to(hidden_TH.dtype)
            if grad_weight_VH is not None:
                grad_weight_VH[: context.real] += grad_CR.T @ hidden_CH
            del grad_CR
        return (
            grad_hidden_TH,
            grad_weight_VH.to(weight_VH.dtype) if grad_weight_VH is not None else None,
            *[None] * 6,
        )


def _scaled_logits(hidden_CH: torch.Tensor, weight_RH: torch.Tensor, temperature: float) -> torch.Tensor:
    logits_CR = (hidden_CH @ weight_RH.T).float()
    return logits_CR if temperature == 1.0 else logits_CR.div_(temperature)

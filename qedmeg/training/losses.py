"""The policy loss of GRPO and its relatives over packed documents. Pure functions of per-token tensors.

T are the tokens of a micro-batch as this rank holds it, K those of them that are trained on, S the segments. A step's
loss is the sum over all micro-batches and ranks of what `policy_loss` returns: `loss_weights` has the normalisation.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.distributed as dist

from qedmeg.config_rl import LossConfig

LOG_RATIO_BOUND = 20.0
"""Log-ratios are cut here, far beyond any clip: an infinite ratio has NaN for a gradient even where it is clipped."""


@dataclass(frozen=True)
class LossSums:
    """Sums over trained tokens, fp64 scalars: those of micro-batches and ranks add up. Divided by `tokens`, all but
    `loss` are means or shares."""

    loss: torch.Tensor
    """The loss itself, weighted as it is trained."""
    tokens: torch.Tensor
    """Tokens trained on."""
    clipped_low: torch.Tensor
    """Tokens whose ratio the lower clip changed: with objective clip, at a negative advantage."""
    clipped_high: torch.Tensor
    """Tokens whose ratio the upper clip changed: with objective clip, at a positive advantage."""
    clipped_dual: torch.Tensor
    """Tokens whose ratio the dual clip bounded."""
    correction_capped: torch.Tensor
    """Tokens whose weight between trainer and engine was above the cap."""
    reference_kl: torch.Tensor
    """The chosen estimate of the divergence from the reference; 0 without one."""
    entropy: torch.Tensor
    """0 where it was not given."""
    mismatch: torch.Tensor
    """|trainer − engine| of log-probabilities, of the trainer's weights now: what lies between versions is in it."""
    mismatch_kl: torch.Tensor
    """k3 of KL(engine ‖ trainer), whose samples the tokens are."""
    mismatch_max: torch.Tensor
    """The greatest |trainer − engine|: of several, the greatest counts."""

    @staticmethod
    def zero(device: torch.device) -> "LossSums":
        """Of no tokens."""
        return LossSums(*torch.zeros(len(fields(LossSums)), dtype=torch.float64, device=device))

    def __add__(self, other: "LossSums") -> "LossSums":
        sums = {field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        return replace(LossSums(**sums), mismatch_max=torch.maximum(self.mismatch_max, other.mismatch_max))

    def over_ranks(self, group: dist.ProcessGroup) -> "LossSums":
        """The sums over all ranks of `group`, on each of them."""
        sums_M = torch.stack([getattr(self, field.name) for field in fields(self)])
        greatest = self.mismatch_max.clone()
        dist.all_reduce(sums_M, group=group)
        dist.all_reduce(greatest, dist.ReduceOp.MAX, group=group)
        return replace(LossSums(*sums_M), mismatch_max=greatest)


def loss_weights(
    config: LossConfig, mask_T: torch.Tensor, cu_seqlens: torch.Tensor, step_sequences: float, step_tokens: float
) -> torch.Tensor:
    """The weight of each token's loss, fp32 [T], 0 where `mask_T` is.

    token_sum is 1 / sequences, as QED-Nano has it (over a constant length, Dr. GRPO, arXiv 2503.20783); token_mean
    1 / tokens (DAPO, arXiv 2503.14476, eq. 8); sequence_mean 1 / (sequences · tokens of this one) (GRPO, arXiv
    2402.03300, eq. 3).

    Args:
        mask_T: of whole documents: before context parallelism cuts them.
        cu_seqlens: bounds [segments + 1] of the documents among the T tokens.
        step_sequences: sequences trained on in the step, over all micro-batches and ranks.
        step_tokens: tokens trained on in the step, likewise.
    """
    trained_T = (mask_T != 0).float()
    if config.normalisation == "token_sum":
        return trained_T / max(step_sequences, 1.0)
    if config.normalisation == "token_mean":
        return trained_T / max(step_tokens, 1.0)
    segment_T = _segments(cu_seqlens, 1)
    lengths_S = _segment_sums(trained_T, segment_T, len(cu_seqlens) - 1)
    return trained_T / (lengths_S.clamp(min=1.0)[segment_T] * max(step_sequences, 1.0))


def policy_loss(
    config: LossConfig,
    *,
    logprobs_T: torch.Tensor,
    old_logprobs_T: torch.Tensor,
    engine_logprobs_T: torch.Tensor,
    advantages_T: torch.Tensor,
    mask_T: torch.Tensor,
    weights_T: torch.Tensor,
    cu_seqlens: torch.Tensor,
    reference_logprobs_T: torch.Tensor | None = None,
    entropy_T: torch.Tensor | None = None,
    cp_group: dist.ProcessGroup | None = None,
) -> tuple[torch.Tensor, LossSums]:
    """Σ weight · (policy + kl_coef · KL − entropy_coef · H) over the tokens with mask 1, a scalar, and its metrics.

    The policy term is that of PPO (arXiv 1707.06347, eq. 7), with separate clips (DAPO, arXiv 2503.14476, eq. 8), the
    dual clip (arXiv 1912.09729) and GSPO's ratio of sequences (arXiv 2507.18071, eqs. 5 and 7); or of CISPO
    (arXiv 2506.13585, eqs. 4 and 5). KL and entropy are not corrected for the engine.

    A sequence's correction is the product of its tokens' ratios or their geometric mean. Only the product, before the
    cap, is unbiased, but the variance of its logarithm grows with the length: at a deviation of 0.02 a token and 10,000
    tokens its logarithm spreads by 2, and what remains after truncation is chance (GSPO divides by the length for the
    same reason; huggingface/trl#5815 measured mean weights of 0.57 by the product and 0.99 by the mean on the same
    tokens).

    Where the mask is 0, any number may stand, NaN too: it changes neither loss nor gradient.

    Args:
        logprobs_T: the trainer's log-probabilities of the labels, with gradient.
        old_logprobs_T: those that the ratio is against: the trainer's before the step, or the engine's.
        engine_logprobs_T: the sampler's own. May be the same tensor as `old_logprobs_T`.
        advantages_T: of each token; in GRPO the same for all tokens of a rollout.
        mask_T: 1 where trained on, else 0.
        weights_T: from `loss_weights`.
        cu_seqlens: bounds [segments + 1] of the whole documents, as in `PackedBatch`.
        reference_logprobs_T: the frozen reference's; needed for kl_coef > 0.
        entropy_T: of the trainer's distribution, with gradient where it has a bonus; needed for entropy_coef > 0.
        cp_group: the context-parallel group, over whose ranks each document's tokens are spread evenly; the loss is
            this rank's part, and the gradient that of the sum over ranks. All of them call forward and backward.

    Raises:
        ValueError: `cu_seqlens` do not end at T, or a tensor that the settings need is missing.
    """
    if config.kl_coef and reference_logprobs_T is None:
        raise ValueError("kl_coef > 0 needs reference_logprobs_T")
    if config.entropy_coef and entropy_T is None:
        raise ValueError("entropy_coef > 0 needs entropy_T")
    segment_T = _segments(cu_seqlens, 1 if cp_group is None else cp_group.size())
    if len(segment_T) != len(logprobs_T):
        raise ValueError(f"cu_seqlens end at {len(segment_T)} of this rank's tokens, but there are {len(logprobs_T)}")
    kept_K = mask_T.nonzero().squeeze(1)
    documents = _Documents(segment_T[kept_K], len(cu_seqlens) - 1, cp_group)
    logprobs_K, advantages_K, weights_K = logprobs_T[kept_K], advantages_T[kept_K], weights_T[kept_K]
    old_K, engine_K = old_logprobs_T[kept_K].detach(), engine_logprobs_T[kept_K].detach()

    log_ratio_K = _bounded(logprobs_K - old_K)
    ratio_K = (documents.means(log_ratio_K) if config.ratio == "sequence" else log_ratio_K).exp()
    if config.objective == "clip":
        losses_K = _clipped(ratio_K, advantages_K, config)
    else:
        losses_K = _cispo(ratio_K, logprobs_K, advantages_K, config)
    low_K, high_K, dual_K = _clip_effects(ratio_K.detach(), advantages_K, config)

    capped_K = torch.zeros_like(low_K)
    if config.correction != "none":
        log_weight_K = _bounded(old_K - engine_K)
        if config.correction == "sequence_product":
            log_weight_K = documents.sums(log_weight_K)
        elif config.correction == "sequence_mean":
            log_weight_K = documents.means(log_weight_K)
        correction_K = log_weight_K.exp()
        capped_K = correction_K > config.correction_cap
        losses_K = losses_K * correction_K.clamp(max=config.correction_cap)

    kl_K = torch.zeros_like(logprobs_K)
    if reference_logprobs_T is not None:
        kl_K = kl_estimate(logprobs_K, reference_logprobs_T[kept_K].detach(), config.kl_estimator)
    if config.kl_coef:
        losses_K = losses_K + config.kl_coef * (kl_K * log_ratio_K.exp() if config.kl_importance else kl_K)
    entropy_K = torch.zeros_like(logprobs_K) if entropy_T is None else entropy_T[kept_K]
    if config.entropy_coef:
        losses_K = losses_K - config.entropy_coef * entropy_K
    loss = (weights_K * losses_K).sum()

    with torch.no_grad():
        mismatch_K = (logprobs_K - engine_K).abs()
        sums = LossSums(
            loss=loss.detach().double(),
            tokens=torch.tensor(kept_K.numel(), dtype=torch.float64, device=loss.device),
            clipped_low=_total(low_K),
            clipped_high=_total(high_K),
            clipped_dual=_total(dual_K),
            correction_capped=_total(capped_K),
            reference_kl=_total(kl_K),
            entropy=_total(entropy_K),
            mismatch=_total(mismatch_K),
            mismatch_kl=_total(kl_estimate(engine_K, logprobs_K, "k3")),
            mismatch_max=mismatch_K.max().double() if kept_K.numel() else _total(mismatch_K),
        )
    return loss, sums


def kl_estimate(logprobs_K: torch.Tensor, other_logprobs_K: torch.Tensor, estimator: str) -> torch.Tensor:
    """An estimate of KL(p ‖ q) from each sample of p, of log-probabilities under p and q.

    With d = log p − log q: k1 = d, k2 = d²/2, k3 = e⁻ᵈ − 1 + d (http://joschu.net/blog/kl-approx.html).
    """
    difference_K = _bounded(logprobs_K - other_logprobs_K)
    if estimator == "k1":
        return difference_K
    if estimator == "k2":
        return difference_K.square() / 2
    return torch.expm1(-difference_K) + difference_K


def _clipped(ratio_K: torch.Tensor, advantages_K: torch.Tensor, config: LossConfig) -> torch.Tensor:
    bounded_K = ratio_K.clamp(1 - config.clip_low, 1 + config.clip_high)
    surrogate_K = torch.minimum(ratio_K * advantages_K, bounded_K * advantages_K)
    if config.dual_clip is not None:
        floor_K = torch.maximum(surrogate_K, config.dual_clip * advantages_K)
        surrogate_K = torch.where(advantages_K < 0, floor_K, surrogate_K)
    return -surrogate_K


def _cispo(
    ratio_K: torch.Tensor, logprobs_K: torch.Tensor, advantages_K: torch.Tensor, config: LossConfig
) -> torch.Tensor:
    return -ratio_K.detach().clamp(1 - config.clip_low, 1 + config.clip_high) * advantages_K * logprobs_K


def _clip_effects(
    ratio_K: torch.Tensor, advantages_K: torch.Tensor, config: LossConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where the lower, the upper and the dual clip change the loss."""
    low_K, high_K = ratio_K < 1 - config.clip_low, ratio_K > 1 + config.clip_high
    if config.objective == "cispo":
        return low_K, high_K, torch.zeros_like(low_K)
    negative_K = advantages_K < 0
    dual_K = negative_K & (ratio_K > (config.dual_clip or torch.inf))
    return low_K & negative_K, high_K & (advantages_K > 0), dual_K


def _total(values_K: torch.Tensor) -> torch.Tensor:
    return values_K.sum(dtype=torch.float64)


def _bounded(log_ratio_K: torch.Tensor) -> torch.Tensor:
    return log_ratio_K.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)


def _segments(cu_seqlens: torch.Tensor, cp: int) -> torch.Tensor:
    """The segment [T] that each of a context-parallel rank's tokens lies in."""
    lengths_S = (cu_seqlens[1:] - cu_seqlens[:-1]) // cp
    return torch.arange(len(lengths_S), device=cu_seqlens.device).repeat_interleave(lengths_S)


def _segment_sums(values_K: torch.Tensor, segment_K: torch.Tensor, segments: int) -> torch.Tensor:
    return values_K.new_zeros(segments).index_add(0, segment_K, values_K)


@dataclass(frozen=True)
class _Documents:
    """Which document each trained token belongs to, and who has the rest of it."""

    segment_K: torch.Tensor
    segments: int
    cp_group: dist.ProcessGroup | None

    def sums(self, values_K: torch.Tensor) -> torch.Tensor:
        """For each token, the sum of `values_K` over the trained tokens of its document, on whichever rank."""
        sums_S = _segment_sums(values_K, self.segment_K, self.segments)
        if self.cp_group is not None:
            sums_S = _SumOverRanks.apply(sums_S, self.cp_group)
        return sums_S[self.segment_K]

    def means(self, values_K: torch.Tensor) -> torch.Tensor:
        """For each token, the mean of `values_K` over the trained tokens of its document, on whichever rank."""
        return self.sums(values_K) / self.sums(torch.ones_like(values_K))


class _SumOverRanks(torch.autograd.Function):
    """The sum over ranks. What is differentiated is the sum of all ranks' losses: backward sums over them as well."""

    @staticmethod
    def forward(context: Any, values: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        context.group = group
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=context.group)
        return total, None

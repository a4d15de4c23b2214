"""From the rewards of one prompt's group of rollouts to their advantages. Pure functions.

A rollout whose grade failed has no reward and is not in the group: the caller leaves it out.
"""

from dataclasses import dataclass

import torch

from qedmeg.config_rl import AdvantageConfig

STD_FLOOR = 1e-4
"""Added to the standard deviation that advantages are divided by: rewards that hardly differ are not blown up."""
SAME_REWARD = 1e-6
"""Rewards that differ by no more are the same: means of votes differ by rounding."""


@dataclass(frozen=True)
class GroupAdvantages:
    """What a group of G rollouts trains."""

    advantages_G: torch.Tensor
    """0 for a rollout that is not trained on."""
    trained_G: torch.Tensor
    """bool: which rollouts are trained on."""
    zero_variance: bool
    """All rewards of the trained rollouts are the same: the group trains nothing."""


def group_advantages(
    rewards_G: torch.Tensor,
    lengths_G: torch.Tensor,
    truncated_G: torch.Tensor,
    max_tokens: int,
    config: AdvantageConfig,
) -> GroupAdvantages | None:
    """The advantages of a group; None where fewer than two of its rollouts are left to compare.

    `group_mean` is r − mean(r) (DeepSeekMath, arXiv 2402.03300, section 4.1.2), `leave_one_out` r minus the mean of the
    others (RLOO, arXiv 2402.14740). Division is by the sample standard deviation + `STD_FLOOR`; without it this is
    Dr. GRPO's advantage (arXiv 2503.20783). Masked rollouts (DAPO, arXiv 2503.14476, section 3.4) leave the baseline
    too, unlike in the paper: being cut off says nothing about the proof, as little as a failed grade does.

    Args:
        rewards_G: one for each rollout.
        lengths_G: tokens of each rollout, without the prompt.
        truncated_G: bool: which were cut off at the token limit.
        max_tokens: that limit.

    Raises:
        ValueError: see `overlong_penalties`.
    """
    trained_G = ~truncated_G if config.mask_truncated else torch.ones_like(truncated_G)
    if int(trained_G.sum()) < 2:
        return None
    shaped_K = (rewards_G + overlong_penalties(lengths_G, max_tokens, config))[trained_G]
    advantages_K = shaped_K - shaped_K.mean()
    if config.baseline == "leave_one_out":
        # r_i − (Σ r − r_i) / (K − 1) = (r_i − mean) · K / (K − 1)
        advantages_K = advantages_K * (shaped_K.numel() / (shaped_K.numel() - 1))
    if config.divide_by_std:
        advantages_K = advantages_K / (shaped_K.std() + STD_FLOOR)
    zero_variance = is_zero_variance(shaped_K)
    advantages_G = torch.zeros_like(rewards_G)
    if not zero_variance:
        advantages_G[trained_G] = advantages_K
    return GroupAdvantages(advantages_G, trained_G, zero_variance)


def is_zero_variance(rewards_G: torch.Tensor) -> bool:
    """Whether all rewards are the same, so that none is better than its baseline."""
    return bool(rewards_G.max() - rewards_G.min() <= SAME_REWARD)


def overlong_penalties(lengths_G: torch.Tensor, max_tokens: int, config: AdvantageConfig) -> torch.Tensor:
    """What is added to the rewards of long rollouts: DAPO's soft over-long punishment (arXiv 2503.14476, eq. 13).

    0 up to max_tokens − overlong_buffer, from there linearly down to −overlong_penalty at max_tokens. The paper's
    rewards lie 2 apart and its greatest penalty is 1. Raises ValueError where the buffer is longer than the limit.
    """
    if config.overlong_penalty == 0:
        return torch.zeros(lengths_G.shape)
    if config.overlong_buffer > max_tokens:
        raise ValueError(f"overlong_buffer {config.overlong_buffer} is greater than the limit of {max_tokens} tokens")
    start = max_tokens - config.overlong_buffer
    return -config.overlong_penalty * ((lengths_G - start) / config.overlong_buffer).clamp(0.0, 1.0)

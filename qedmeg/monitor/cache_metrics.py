"""What is logged of a step with the reasoning cache: pure functions from its batch to numbers by name.

reward_by_round/N, groups_by_round/N     mean reward of the groups of round N's states, and how many there are
state_age_mean, state_age_max            weight versions between a state and the beginning of its group
states_held                              in the buffer, without those dropped
states_too_old                           dropped since the step before, as a share of these and of those held
summary_tokens                           mean length of the summaries that the groups' states came from
reason_truncated, summarise_truncated    shares of the chains' turns since the step before that were cut off
chain_tokens                             generated for chains since the step before
improvement, improvement_std             what the summaries that are trained brought, and how much they differ
summaries                                how many
summaries_too_old                        of these, left out since their weights lag too far behind
"""

from collections import defaultdict
from statistics import fmean, pstdev

from qedmeg.rollout.sample import Batch

PREFIXES = ("turns", "turn_tokens", "turns_truncated", "states_", "last_turn")
"""Of the counts in a batch's stats that are told of here."""


def cache_metrics(batch: Batch, max_lag: int) -> dict[str, float]:
    """Nothing for a batch without the reasoning cache."""
    states = [group.state for group in batch.groups if group.state is not None]
    if not states:
        return {}
    rewards: dict[int, list[float]] = defaultdict(list)
    counts: dict[int, int] = defaultdict(int)
    for group in batch.groups:
        if group.state is not None:
            counts[group.state.round] += 1
            rewards[group.state.round] += [one.reward for one in group.rollouts if one.reward is not None]
    metrics: dict[str, float] = {}
    for round in sorted(counts):
        metrics[f"groups_by_round/{round}"] = float(counts[round])
        if rewards[round]:
            metrics[f"reward_by_round/{round}"] = fmean(rewards[round])
    ages = [state.age for state in states]
    lengths = [state.summary_tokens for state in states if state.summary_tokens is not None]
    metrics |= {"state_age_mean": fmean(ages), "state_age_max": float(max(ages))}
    if lengths:
        metrics["summary_tokens"] = fmean(lengths)
    return metrics | _chains(batch.stats) | _summaries(batch, max_lag)


def _chains(stats: dict[str, float]) -> dict[str, float]:
    dropped, held = stats["states_too_old"], stats["states_held"]
    metrics = {
        "states_held": float(held),
        "states_too_old": dropped / max(dropped + held, 1),
        "chain_tokens": float(stats["turn_tokens/reason"] + stats["turn_tokens/summarise"]),
    }
    for kind in ("reason", "summarise"):
        if turns := stats[f"turns/{kind}"]:
            metrics[f"{kind}_truncated"] = stats[f"turns_truncated/{kind}"] / turns
    return metrics


def _summaries(batch: Batch, max_lag: int) -> dict[str, float]:
    written = [one for group in batch.summaries for one in group.rollouts]
    if not written:
        return {}
    earned = [one.reward for one in written]
    old = sum(batch.step - one.sample.oldest_version > max_lag for one in written)
    return {
        "improvement": fmean(earned),
        "improvement_std": pstdev(earned),
        "summaries": float(len(written)),
        "summaries_too_old": float(old),
    }

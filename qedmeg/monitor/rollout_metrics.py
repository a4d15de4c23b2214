"""What is logged of a step on rollouts: pure functions from its batch and its loss to numbers by name."""

from collections import defaultdict
from statistics import fmean, pstdev

from qedmeg.grading.grade import Graded
from qedmeg.monitor.cache_metrics import PREFIXES, cache_metrics
from qedmeg.rollout.sample import Batch
from qedmeg.training.losses import LossSums

MOST_ITEMS = 100
"""Rubric items that get a curve each: problems with rubrics of their own have thousands, which no curve could show."""


def batch_metrics(batch: Batch, max_lag: int = 0) -> dict[str, float]:
    """Rewards, rubric items, lengths and lag of a batch, with the counts that came with it. `max_lag`: beyond which no
    summary is trained."""
    rollouts = [rollout for group in batch.groups for rollout in group.rollouts]
    rewards = [rollout.reward for rollout in rollouts if rollout.reward is not None]
    lengths = [len(rollout.sample.tokens_T) for rollout in rollouts]
    lags = [batch.step - rollout.sample.oldest_version for rollout in rollouts]
    prompts = sum(len(rollout.sample.prompt_P) for rollout in rollouts)
    metrics = {
        "reward": fmean(rewards) if rewards else 0.0,
        "reward_std": pstdev(rewards) if rewards else 0.0,
        "response_tokens": fmean(lengths) if lengths else 0.0,
        "response_tokens_max": float(max(lengths, default=0)),
        "truncated": fmean([rollout.sample.finish_reason == "length" for rollout in rollouts]) if rollouts else 0.0,
        "lag_mean": fmean(lags) if lags else 0.0,
        "lag_max": float(max(lags, default=0)),
        "groups": float(len(batch.groups)),
        "rollouts": float(len(rollouts)),
        "tokens": float(sum(lengths) + prompts),
    }
    return metrics | _items(batch) | _counts(batch.stats) | cache_metrics(batch, max_lag)


def _counts(stats: dict[str, float]) -> dict[str, float]:
    """What the rollout process counted since the step before, its seconds left out."""
    elsewhere = ("seconds_", "lag_", *PREFIXES)
    counts = {name: value for name, value in stats.items() if not name.startswith(elsewhere)}
    tokens = counts.pop("grader_prompt_tokens", 0.0) + counts.pop("grader_completion_tokens", 0.0)
    return counts | {"grader_tokens": tokens}


def waiting(batch: Batch) -> dict[str, float]:
    """The seconds of the trainer's wait for a batch by what went on: generating, and grading when that was done."""
    stats = batch.stats
    return {
        "generate": stats.get("seconds_generate", 0.0),
        "grade": stats.get("seconds_grade", 0.0) + stats.get("seconds_paused", 0.0),
    }


def _items(batch: Batch) -> dict[str, float]:
    """The share of its points that each rubric item earned, as 'item/FAMILY / NAME'."""
    shares: dict[str, list[float]] = defaultdict(list)
    for group in batch.groups:
        family = group.problem.partition(".")[0]
        for rollout in group.rollouts:
            if isinstance(rollout.grade, Graded):
                for item in rollout.grade.items:
                    shares[f"item/{family} / {item.name}"].append(item.points / item.of if item.of else 0.0)
    return {name: fmean(values) for name, values in sorted(shares.items())} if len(shares) <= MOST_ITEMS else {}


def loss_metrics(sums: LossSums, optimizer_steps: int) -> dict[str, float]:
    """Means over trained tokens and shares of them, of the sums over a step's `optimizer_steps`."""
    tokens = max(float(sums.tokens), 1.0)
    shares = ("clipped_low", "clipped_high", "clipped_dual", "correction_capped")
    means = ("reference_kl", "entropy", "mismatch", "mismatch_kl")
    return {
        "loss": float(sums.loss) / optimizer_steps,
        "trained_tokens": float(sums.tokens),
        "mismatch_max": float(sums.mismatch_max),
        **{name: float(getattr(sums, name)) / tokens for name in (*shares, *means)},
    }

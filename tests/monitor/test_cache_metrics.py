"""What is logged with the reasoning cache, against numbers worked out by hand."""

import numpy as np
import pytest

from qedmeg.grading.grade import Graded
from qedmeg.monitor.rollout_metrics import batch_metrics
from qedmeg.rollout.sample import Batch, Credited, Group, GroupState, Rollout, Sample, SummaryGroup
from qedmeg.training.rollout_batch import trained_summaries

STATS = {
    "last_turn": 40.0,
    "states_too_old": 3.0,
    "states_held": 9.0,
    "turns/reason": 4.0,
    "turns/summarise": 8.0,
    "turn_tokens/reason": 100.0,
    "turn_tokens/summarise": 20.0,
    "turns_truncated/reason": 3.0,
    "turns_truncated/summarise": 2.0,
    "queue_length": 1.0,
}


def sample(version: int) -> Sample:
    return Sample(np.zeros(3, np.int32), np.zeros(5, np.int32), np.zeros(5, np.float32), ((version, 0),), "stop")


def group(id: int, state: GroupState | None, *points: float) -> Group:
    return Group(id, "p", tuple(Rollout(n, sample(5), Graded(p, 7, (), "test")) for n, p in enumerate(points)), state)


BATCH = Batch(
    5,
    (
        group(0, GroupState(1, 0, None), 7.0, 0.0),
        group(1, GroupState(2, 2, 30), 7.0, 3.5),
        group(2, GroupState(2, 1, 10), 0.0, 0.0),
    ),
    STATS,
    (SummaryGroup(7, 0.5, (Credited(sample(5), 0.25), Credited(sample(5), -0.75), Credited(sample(3), 0.5))),),
)


def test_rewards_and_groups_by_round_ages_and_shares() -> None:
    metrics = batch_metrics(BATCH, max_lag=1)
    expected = {
        "reward_by_round/1": 0.5,
        "groups_by_round/1": 1,
        "reward_by_round/2": 0.375,
        "groups_by_round/2": 2,
        "state_age_mean": 1.0,
        "state_age_max": 2.0,
        "summary_tokens": 20.0,
        "states_held": 9.0,
        "states_too_old": 0.25,
        "chain_tokens": 120.0,
        "reason_truncated": 0.75,
        "summarise_truncated": 0.25,
        "improvement": 0.0,
        "improvement_std": pytest.approx(np.std([0.25, -0.75, 0.5])),
        "summaries": 3,
        "summaries_too_old": 1,
    }
    assert {name: metrics[name] for name in expected} == expected
    assert metrics["queue_length"] == 1.0
    assert not [name for name in metrics if "turn" in name]


def test_without_the_cache_there_is_nothing_of_it() -> None:
    plain = batch_metrics(Batch(5, (group(0, None, 7.0, 0.0),), {"queue_length": 1.0}))
    assert not [name for name in plain if "state" in name or "round" in name or "summar" in name]


def test_summaries_of_weights_that_lag_too_far_are_not_trained() -> None:
    (kept,) = trained_summaries(BATCH, max_lag=1)
    assert [one.reward for one in kept.rollouts] == [0.25, -0.75]
    (kept,) = trained_summaries(BATCH, max_lag=2)
    assert len(kept.rollouts) == 3

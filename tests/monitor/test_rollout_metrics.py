"""What is logged of a step on rollouts, against numbers worked out by hand."""

import numpy as np
import pytest
import torch

from qedmeg.grading.grade import Failed, Graded, ItemGrade
from qedmeg.monitor.rollout_metrics import batch_metrics, loss_metrics, waiting
from qedmeg.rollout.sample import Batch, Group, Rollout, Sample
from qedmeg.training.losses import LossSums


def _rollout(points: float | None, length: int, version: int, finish: str = "stop") -> Rollout:
    sample = Sample(
        np.zeros(3, np.int32), np.zeros(length, np.int32), np.zeros(length, np.float32), ((version, 0),), finish
    )
    if points is None:
        return Rollout(0, sample, Failed("timeout", "no answer"))
    items = (ItemGrade("case", min(points, 3.0), 3, ""), ItemGrade("end", max(points - 3.0, 0.0), 4, ""))
    return Rollout(0, sample, Graded(points, 7, items, "test"))


BATCH = Batch(
    5,
    (
        Group(0, "parity.a3", (_rollout(7.0, 10, 5), _rollout(0.0, 20, 4, "length"))),
        Group(1, "parity.a4", (_rollout(3.0, 30, 5), _rollout(None, 40, 3))),
    ),
    {
        "seconds_generate": 1.5,
        "seconds_grade": 0.5,
        "seconds_paused": 0.25,
        "groups_dropped/too old": 2.0,
        "grader_prompt_tokens": 30.0,
        "grader_completion_tokens": 12.0,
        "lag_mean": 9.0,
    },
)


def test_rewards_are_of_graded_rollouts_alone():
    metrics = batch_metrics(BATCH)
    assert metrics["reward"] == pytest.approx((1 + 0 + 3 / 7) / 3)
    assert metrics["response_tokens"] == 25
    assert metrics["response_tokens_max"] == 40
    assert metrics["truncated"] == 0.25
    assert metrics["lag_mean"] == pytest.approx((0 + 1 + 0 + 2) / 4)
    assert metrics["lag_max"] == 2
    assert metrics["groups_dropped/too old"] == 2
    assert metrics["grader_tokens"] == 42
    assert metrics["item/parity / case"] == pytest.approx((1 + 0 + 1) / 3)
    assert metrics["item/parity / end"] == pytest.approx(1 / 3)
    assert metrics["tokens"] == 100 + 4 * 3
    assert not [name for name in metrics if "seconds" in name]


def test_a_wait_is_for_generating_or_for_grading():
    assert waiting(BATCH) == {"generate": 1.5, "grade": 0.75}


def test_sums_become_means_over_tokens():
    sums = LossSums(*(torch.tensor(float(value)) for value in (0.5, 10, 1, 2, 0, 3, 4, 5, 6, 7, 0.25)))
    metrics = loss_metrics(sums, optimizer_steps=2)
    assert metrics["loss"] == 0.25
    assert metrics["trained_tokens"] == 10
    assert metrics["clipped_high"] == 0.2
    assert metrics["entropy"] == 0.5
    assert metrics["mismatch"] == 0.6
    assert metrics["mismatch_max"] == 0.25

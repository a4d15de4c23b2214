"""From graded groups to packed micro-batches: what is trained on, and what stands beside each token."""

import numpy as np
import pytest
import torch

from qedmeg.config_rl import AdvantageConfig, LossConfig
from qedmeg.data.loader import Placement
from qedmeg.grading.grade import Failed, Graded
from qedmeg.rollout.sample import Group, Rollout, Sample
from qedmeg.training.rollout_batch import minibatches, pack_rollouts, train_on


def rollout(number: int, answer: int, points: float | None, finish: str = "stop") -> Rollout:
    """Prompt 1, 2, 3 and an answer of so many tokens 10, 11, ... with log-probabilities −0.1, −0.2, ..."""
    tokens_T = np.arange(10, 10 + answer, dtype=np.int32)
    logprobs_T = -np.arange(1, answer + 1, dtype=np.float32) / 10
    sample = Sample(np.array([1, 2, 3], np.int32), tokens_T, logprobs_T, ((0, 0),), finish)
    grade = Failed("timeout", "no answer") if points is None else Graded(points, 7, (), "test")
    return Rollout(number, sample, grade)


def group(*rollouts: Rollout) -> Group:
    return Group(0, "problem", rollouts)


def test_failed_grades_are_in_no_baseline_and_train_nothing():
    trained = train_on(
        [group(rollout(0, 4, 7.0), rollout(1, 5, None), rollout(2, 6, 0.0))], 100, AdvantageConfig(), keep_zero=False
    )
    assert [len(one.sample.tokens_T) for one in trained.samples] == [4, 6]
    assert [one.advantage for one in trained.samples] == pytest.approx([0.5, -0.5])
    assert (trained.sequences, trained.tokens, trained.zero_variance) == (2, 10, 0)


def test_groups_without_variance_count_but_are_not_computed():
    same, other = group(rollout(0, 4, 3.0), rollout(1, 4, 3.0)), group(rollout(2, 5, 0.0), rollout(3, 5, 7.0))
    trained = train_on([same, other], 100, AdvantageConfig(), keep_zero=False)
    assert len(trained.samples) == 2
    assert (trained.sequences, trained.tokens, trained.zero_variance) == (4, 18, 1)
    assert len(train_on([same, other], 100, AdvantageConfig(), keep_zero=True).samples) == 4


def test_truncated_answers_can_be_left_out():
    groups = [group(rollout(0, 4, 7.0), rollout(1, 5, 0.0, "length"), rollout(2, 6, 0.0))]
    trained = train_on(groups, 5, AdvantageConfig(mask_truncated=True), keep_zero=False)
    assert [one.advantage for one in trained.samples] == pytest.approx([0.5, -0.5])
    assert trained.sequences == 2


def test_each_label_has_its_logprob_advantage_and_weight():
    trained = train_on([group(rollout(0, 4, 7.0), rollout(1, 2, 0.0))], 100, AdvantageConfig(), keep_zero=False)
    (batch,) = pack_rollouts(trained, 64, 0, LossConfig(normalisation="token_mean"), Placement())
    assert batch.documents == 2
    longest_first = sorted(trained.samples, key=lambda one: -len(one.sample.tokens_T))
    for start, one in zip(batch.cu_seqlens.tolist(), longest_first, strict=False):
        length = len(one.sample.tokens_T)
        places = slice(start + 2, start + 2 + length)
        assert batch.labels_T[places].tolist() == one.sample.tokens_T.tolist()
        assert batch.mask_T[places].tolist() == [1.0] * length
        torch.testing.assert_close(batch.engine_logprobs_T[places], torch.from_numpy(one.sample.logprobs_T))
        assert batch.advantages_T[places].tolist() == [one.advantage] * length
    assert batch.mask_T.sum() == 6
    assert batch.weights_T[batch.mask_T == 1].tolist() == pytest.approx([1 / 6] * 6)
    assert not batch.advantages_T[batch.mask_T == 0].any()
    assert not batch.engine_logprobs_T[batch.mask_T == 0].any()


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_the_samples_and_have_as_many_microbatches(ranks):
    rollouts = [rollout(number, 4 + number, float(number % 8)) for number in range(9)]
    trained = train_on([group(*rollouts)], 100, AdvantageConfig(), keep_zero=True)
    parts = [pack_rollouts(trained, 32, 0, LossConfig(), Placement(rank, ranks)) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    assert sum(batch.documents for part in parts for batch in part) == 9
    assert sum(float(batch.weights_T.sum()) for part in parts for batch in part) == pytest.approx(1.0)


def test_a_batch_that_trains_nothing_is_padding():
    trained = train_on([group(rollout(0, 4, 3.0), rollout(1, 4, 3.0))], 100, AdvantageConfig(), keep_zero=False)
    (batch,) = pack_rollouts(trained, 64, 0, LossConfig(), Placement())
    assert batch.documents == 0
    assert not batch.mask_T.any()


def test_minibatches_are_nearly_equal_and_in_order():
    groups = [Group(number, "p", ()) for number in range(7)]
    parts = minibatches(groups, 3)
    assert [group.id for part in parts for group in part] == list(range(7))
    assert sorted(map(len, parts)) == [2, 2, 3]

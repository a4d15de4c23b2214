"""Trees of answers that begin alike: what is computed, and where each answer finds its numbers."""

import numpy as np
import pytest
import torch

from qedmeg.config_rl import LossConfig
from qedmeg.data.loader import Placement
from qedmeg.data.packing import NO_BRANCH
from qedmeg.rollout.sample import Sample
from qedmeg.training.prefix_sharing import SharedRollouts, pack_shared
from qedmeg.training.rollout_batch import TrainedGroups, TrainedSample, pack_rollouts

PROMPT = (1, 2, 3)


def answer(*tokens: int, advantage: float = 1.0, prompt: tuple[int, ...] = PROMPT) -> TrainedSample:
    """With log-probabilities −0.1, −0.2, ..."""
    logprobs_T = -np.arange(1, len(tokens) + 1, dtype=np.float32) / 10
    sample = Sample(np.array(prompt, np.int32), np.array(tokens, np.int32), logprobs_T, ((0, 0),), "stop")
    return TrainedSample(sample, advantage)


def packed(*samples: TrainedSample, budget: int = 64, loss: LossConfig | None = None) -> tuple[SharedRollouts, ...]:
    tokens = sum(len(one.sample.tokens_T) for one in samples)
    trained = TrainedGroups(samples, len(samples), tokens, 0)
    return pack_shared(trained, budget, 0, loss or LossConfig(), Placement())


def test_two_answers_by_hand():
    """Prompt and first answer whole; of the second what is its own, after the last token that both have."""
    (batch,) = packed(answer(10, 11, 12, advantage=0.5), answer(10, 20, advantage=-0.5))
    used = slice(0, 8)
    assert batch.cu_seqlens.tolist() == [0, 6, 8, 64]
    assert batch.follows == (NO_BRANCH, (0, 3), NO_BRANCH)
    assert batch.tokens_T[used].tolist() == [1, 2, 3, 10, 11, 12, 10, 20]
    assert batch.positions_T[used].tolist() == [0, 1, 2, 3, 4, 5, 3, 4]
    assert batch.labels_T[used].tolist() == [2, 3, 10, 11, 12, 0, 20, 0]
    assert batch.mask_T[used].tolist() == [0, 0, 1, 1, 1, 0, 1, 0]
    assert batch.places_A.tolist() == [2, 3, 4, 2, 6]
    assert batch.cu_answers.tolist() == [0, 3, 5]
    assert batch.engine_logprobs_A.tolist() == pytest.approx([-0.1, -0.2, -0.3, -0.1, -0.2])
    assert batch.advantages_A.tolist() == [0.5, 0.5, 0.5, -0.5, -0.5]
    assert batch.of_answers(torch.arange(64)).tolist() == batch.places_A.tolist()


def test_equal_answers_are_computed_once_and_count_twice():
    (batch,) = packed(answer(10, 11, advantage=1.0), answer(7), answer(10, 11, advantage=-2.0))
    assert batch.documents == 2
    assert batch.cu_answers.tolist() == [0, 1, 3, 5]
    assert batch.places_A[1:3].tolist() == batch.places_A[3:5].tolist()
    assert batch.advantages_A.tolist() == [1.0, 1.0, 1.0, -2.0, -2.0]


def test_an_answer_that_goes_on_where_another_ends():
    (batch,) = packed(answer(10, 11, 12, 13), answer(10, 11))
    assert batch.tokens_T[:8].tolist() == [1, 2, 3, 10, 11, 11, 12, 13]
    assert batch.mask_T[:8].tolist() == [0, 0, 1, 1, 0, 1, 1, 0]


def test_answers_for_which_there_is_no_room_begin_another_tree():
    """With a prompt of 3 tokens, two answers of 4 that begin alike take 7 + 4 tokens, and one alone 7."""
    answers = [answer(10, number, 1, 2) for number in range(5)]
    batches = packed(*answers, budget=12)
    assert sorted(batch.documents for batch in batches) == [1, 2, 2]
    assert sorted(len(batch.places_A) for batch in batches) == [4, 8, 8]


def test_a_prompt_of_one_token_has_nothing_to_share():
    (batch,) = packed(answer(10, prompt=(1,)), answer(11, prompt=(1,)))
    assert batch.follows == (NO_BRANCH,) * 3


@pytest.mark.parametrize("normalisation", ["token_sum", "token_mean", "sequence_mean"])
def test_each_answer_finds_what_it_would_have_alone(normalisation: str):
    """Random trees of few letters: whatever is said of a token by all that stands before it, an answer reads it along
    its way as it does where it stands alone; and weights and advantages are those of the plain packing."""
    loss = LossConfig(normalisation=normalisation)
    random = np.random.default_rng(0)
    samples = []
    for group in range(6):
        prompt = tuple(random.integers(0, 3, random.integers(1, 4)).tolist())
        for _ in range(12):
            tokens = random.integers(0, 2, random.integers(1, 7)).tolist()
            samples.append(answer(*tokens, advantage=float(random.normal()), prompt=(group, *prompt)))
    shared = packed(*samples, budget=40, loss=loss)
    assert len(shared) > 1
    trained = TrainedGroups(tuple(samples), len(samples), sum(len(one.sample.tokens_T) for one in samples), 0)
    plain = pack_rollouts(trained, 40, 0, loss, Placement())
    assert sum(batch.tokens_T.numel() for batch in shared) < 0.6 * sum(batch.tokens_T.numel() for batch in plain)

    found = []
    for batch in shared:
        told = _history(batch)
        for start, end in zip(batch.cu_answers[:-1].tolist(), batch.cu_answers[1:].tolist(), strict=True):
            places = batch.places_A[start:end].tolist()
            assert all(batch.mask_T[place] for place in places)
            found.append(
                (
                    [(*told[place], int(batch.labels_T[place])) for place in places],
                    batch.advantages_A[start:end].tolist(),
                    batch.weights_A[start:end].tolist(),
                )
            )
    expected = []
    for batch in plain:
        told = _history(batch)
        for start, end in zip(batch.cu_seqlens[: batch.documents], batch.cu_seqlens[1:], strict=False):
            places = [place for place in range(int(start), int(end)) if batch.mask_T[place]]
            expected.append(
                (
                    [(*told[place], int(batch.labels_T[place])) for place in places],
                    batch.advantages_T[places].tolist(),
                    batch.weights_T[places].tolist(),
                )
            )
    assert sorted(found) == sorted(expected)


def _history(batch) -> list[tuple[int, ...]]:
    """Of each token of a batch all tokens that it attends to, itself the last: of those that it goes on from, and of
    its own segment."""
    told: list[tuple[int, ...]] = []
    ends: list[tuple[int, ...]] = []
    bounds, tokens = batch.cu_seqlens.tolist(), batch.tokens_T.tolist()
    for start, end, before in zip(bounds[:-1], bounds[1:], batch.follows, strict=True):
        text = ends[before.segment][: before.tokens] if before.tokens else ()
        for place in range(start, end):
            text = (*text, tokens[place])
            told.append(text)
            assert batch.positions_T[place] == len(text) - 1
        ends.append(text)
    return told


def test_nothing_to_train_is_a_batch_of_padding():
    (batch,) = packed()
    assert batch.documents == 0
    assert batch.places_A.numel() == batch.weights_A.numel() == 0
    assert not batch.mask_T.any()


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_the_trees_and_have_as_many_microbatches(ranks: int):
    samples = [answer(group, 5, 6, number, prompt=(group, 2)) for group in range(9) for number in range(4)]
    trained = TrainedGroups(tuple(samples), 36, 144, 0)
    parts = [pack_shared(trained, 32, 0, LossConfig(), Placement(rank, ranks)) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    assert sum(len(batch.cu_answers) - 1 for part in parts for batch in part) == 36

"""Rows of rollouts: what NeMo-Aligner's trainers hold, and packed and back."""

from typing import Any

import numpy as np
import pytest
import torch

from qedmeg.data.loader import Placement
from qedmeg.grading.grade import Failed, Graded
from qedmeg.rollout.sample import Group, Rollout, Sample
from qedmeg.training.rollout_rows import NO_TOKEN, pack_rows, rollout_rows


def rollout(prompt: list[int], answer: list[int], points: float | None) -> Rollout:
    logprobs_T = -np.arange(1, len(answer) + 1, dtype=np.float32)
    sample = Sample(np.array(prompt, dtype=np.int32), np.array(answer, dtype=np.int32), logprobs_T, ((0, 0),), "stop")
    return Rollout(0, sample, Failed("timeout", "") if points is None else Graded(points, 7, (), "test"))


GROUPS = [
    Group(0, "a", (rollout([1, 2], [3, 4, 5], 7), rollout([1, 2], [6], None), rollout([1, 2], [7, 8], 3.5))),
    Group(1, "b", (rollout([9], [10, 11], 0), rollout([9], [12], 7))),
]


def test_rows_by_hand():
    rows = rollout_rows(GROUPS, count=3, rollouts_per_group=3)
    none = NO_TOKEN
    assert rows["response_tokens"].tolist() == [
        [1, 2, 3, 4, 5],
        [1, 2, 7, 8, none],
        [none] * 5,  # its grade failed
        [9, 10, 11, none, none],
        [9, 12, none, none, none],
        *[[none] * 5] * 4,
    ]
    assert rows["text"].tolist() == [[1, 2], [1, 2], [none] * 2, [9, none], [9, none], *[[none] * 2] * 4]
    assert rows["prompt_lengths"].tolist() == rows["length"].tolist() == [2, 2, 0, 1, 1, 0, 0, 0, 0]
    assert rows["response_lengths"].tolist() == [5, 4, 0, 3, 2, 0, 0, 0, 0]
    assert rows["is_end"].tolist() == [True, True, False, True, True, *[False] * 4]
    assert rows["rewards"].tolist() == [1.0, 0.5, 0.0, 0.0, 1.0, *[0.0] * 4]
    assert rows["engine_logprobs"][:5].tolist() == [
        [0, -1, -2, -3],
        [0, -1, -2, 0],
        [0, 0, 0, 0],
        [-1, -2, 0, 0],
        [-1, 0, 0, 0],
    ]


def test_more_than_there_is_room_for():
    with pytest.raises(ValueError, match="2 groups are more than 1"):
        rollout_rows(GROUPS, count=1, rollouts_per_group=3)
    with pytest.raises(ValueError, match="group 0 has 2 graded rollouts, more than 1"):
        rollout_rows(GROUPS, count=2, rollouts_per_group=1)


def packed_on_ranks(place: dict[str, Any]) -> tuple[list[list[int]], list[list[float]], torch.Tensor]:
    """Tokens and masks of this rank's micro-batches, and numbers that went in and out; runs on each rank of a pool."""
    from qedmeg import parallel

    parallel.initialize(parallel.Parallelism(), seed=1)
    rows = rollout_rows(GROUPS, count=2, rollouts_per_group=3)
    half = {name: tensor.chunk(parallel.data_size())[parallel.data_rank()] for name, tensor in rows.items()}
    tokens_BS = half["response_tokens"]
    mask_BL = torch.arange(tokens_BS.shape[1] - 1) >= half["prompt_lengths"][:, None] - 1
    packed = pack_rows(tokens_BS, mask_BL, tokens_per_microbatch=8, pad_id=0, placement=Placement(**place))
    moved = packed.take_back(packed.lay_out(half["engine_logprobs"]), tokens_BS.shape[1] - 1)
    assert torch.equal(moved, half["engine_logprobs"])
    tokens = [batch.tokens_T.tolist() for batch in packed.batches]
    return tokens, [batch.mask_T.tolist() for batch in packed.batches], tokens_BS


def test_packed_and_back(ranks):
    ((tokens, masks, _),) = ranks(packed_on_ranks, 1, {})
    assert tokens == [[1, 2, 3, 4, 5, 9, 10, 11], [1, 2, 7, 8, 9, 12, 0, 0]]
    assert masks == [[0, 1, 1, 1, 0, 1, 1, 0], [0, 1, 1, 0, 1, 0, 0, 0]]


def test_ranks_agree_on_the_number_of_microbatches(ranks):
    (first, *_), (second, *_) = ranks(packed_on_ranks, 2, {"document_multiple": 4})
    assert first == [[1, 2, 3, 4, 5, 0, 0, 0], [1, 2, 7, 8, 0, 0, 0, 0]]
    assert second == [[9, 10, 11, 0, 9, 12, 0, 0], [0] * 8]

"""Packing: numbers worked out by hand, and properties over random lengths."""

import random

import numpy as np
import pytest
import torch

from qedmeg.data.chat import Document
from qedmeg.data.packing import (
    NO_BRANCH,
    Branch,
    deal,
    make_batch,
    microbatches_per_rank,
    pack,
    padded_length,
    segment_rows,
)


def document(tokens: list[int], mask: list[int]) -> Document:
    return Document(np.asarray(tokens, dtype=np.int32), np.asarray(mask, dtype=np.bool_))


A = document([11, 12, 13, 14, 15], [0, 0, 1, 1, 1])
B = document([21, 22, 23], [0, 1, 1])


def test_first_fit_decreasing_by_hand() -> None:
    # 7 opens bin 0; 6 opens 1; 5 opens 2; 4 fits 1 (6 + 4); the first 3 fits 0 (7 + 3), the second 2 (5 + 3); 2 fits 2
    assert pack([3, 7, 2, 5, 6, 4, 3], budget=10) == [[1, 0], [4, 5], [3, 6, 2]]
    assert pack([], budget=10) == []
    with pytest.raises(ValueError, match="document 1 has 11 tokens"):
        pack([1, 11], budget=10)


def test_equal_lengths_keep_their_order() -> None:
    assert pack([4, 4, 4], budget=8) == [[0, 1], [2]]


def test_packing_keeps_every_document_once_within_the_budget() -> None:
    generator = random.Random(0)
    for _ in range(50):
        lengths = [generator.randint(1, 100) for _ in range(generator.randint(0, 60))]
        bins = pack(lengths, 100)
        assert sorted(index for members in bins for index in members) == list(range(len(lengths)))
        assert all(sum(lengths[index] for index in members) <= 100 for members in bins)
        # no two bins of a first fit could be one
        assert len(bins) <= 2 * -(-sum(lengths) // 100)


def test_batch_by_hand() -> None:
    batch = make_batch([A, B], tokens_per_microbatch=12, pad_id=9)
    assert batch.tokens_T.tolist() == [11, 12, 13, 14, 15, 21, 22, 23, 9, 9, 9, 9]
    assert batch.labels_T.tolist() == [12, 13, 14, 15, 9, 22, 23, 9, 9, 9, 9, 9]
    assert batch.mask_T.tolist() == [0, 1, 1, 1, 0, 1, 1, 0, 0, 0, 0, 0]
    assert batch.positions_T.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3]
    assert batch.cu_seqlens.tolist() == [0, 5, 8, 12]
    assert batch.documents == 2
    integers = [batch.tokens_T, batch.labels_T, batch.positions_T]
    assert {tensor.dtype for tensor in integers} == {torch.int64}
    assert (batch.mask_T.dtype, batch.cu_seqlens.dtype) == (torch.float32, torch.int32)


def test_documents_that_follow_another_by_hand() -> None:
    branches = [NO_BRANCH, Branch(0, 4), Branch(1, 6)]
    batch = make_batch([A, B, B], tokens_per_microbatch=12, pad_id=9, follows=branches)
    assert batch.positions_T.tolist() == [0, 1, 2, 3, 4, 4, 5, 6, 6, 7, 8, 0]
    assert batch.follows == (*branches, NO_BRANCH)  # the last is padding
    assert batch.longest == 9
    rows = segment_rows(batch.cu_seqlens.tolist(), batch.follows)
    assert [row.tolist() for row in rows] == [
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 5, 6, 7],
        [0, 1, 2, 3, 5, 6, 8, 9, 10],
        [11],
    ]
    assert make_batch([A, B], tokens_per_microbatch=8).follows == (NO_BRANCH, NO_BRANCH)


def test_documents_padded_for_context_parallelism_by_hand() -> None:
    batch = make_batch([A, B], tokens_per_microbatch=16, document_multiple=4, pad_id=9)
    assert batch.tokens_T.tolist() == [11, 12, 13, 14, 15, 9, 9, 9, 21, 22, 23, 9, 9, 9, 9, 9]
    assert batch.labels_T.tolist() == [12, 13, 14, 15, 9, 9, 9, 9, 22, 23, 9, 9, 9, 9, 9, 9]
    assert batch.mask_T.tolist() == [0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0]
    assert batch.positions_T.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 0, 1, 2, 3]
    assert batch.cu_seqlens.tolist() == [0, 8, 12, 16]
    assert [padded_length(n, 4) for n in (1, 4, 5)] == [4, 4, 8]


def test_full_and_empty_batches() -> None:
    assert make_batch([A, B], tokens_per_microbatch=8).cu_seqlens.tolist() == [0, 5, 8]
    empty = make_batch([], tokens_per_microbatch=4, pad_id=9)
    assert (empty.cu_seqlens.tolist(), empty.mask_T.sum().item(), empty.documents) == ([0, 4], 0, 0)
    assert empty.tokens_T.tolist() == [9] * 4
    with pytest.raises(ValueError, match="do not fit"):
        make_batch([A, B], tokens_per_microbatch=7)
    with pytest.raises(ValueError, match="not a multiple of 4"):
        make_batch([A], tokens_per_microbatch=10, document_multiple=4)


def test_dealing_by_hand() -> None:
    # fullest first: 10 to rank 0, 9 to rank 1; 6 to rank 1, which has less; 5 to rank 0; 1 to rank 0, both at 15
    assert deal([5, 10, 6, 1, 9], ranks=2) == [[1, 0, 3], [4, 2]]
    assert deal([5], ranks=3) == [[0], [], []]


@pytest.mark.parametrize(
    ("bins", "ranks", "multiple", "expected"), [(5, 2, 1, 3), (5, 2, 4, 4), (1, 8, 1, 1), (9, 2, 4, 8)]
)
def test_microbatches_per_rank(bins: int, ranks: int, multiple: int, expected: int) -> None:
    assert microbatches_per_rank(bins, ranks, multiple) == expected


def test_dealing_is_even_and_complete() -> None:
    generator = random.Random(1)
    for ranks in (1, 2, 3, 8):
        tokens = [generator.randint(1, 100) for _ in range(29)]
        dealt = deal(tokens, ranks)
        assert sorted(index for mine in dealt for index in mine) == list(range(29))
        assert max(map(len, dealt)) == -(-29 // ranks)
        full_rounds = [sum(tokens[index] for index in mine[: 29 // ranks]) for mine in dealt]
        assert max(full_rounds) - min(full_rounds) <= 100

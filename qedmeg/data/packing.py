"""Packing documents into sequences of one length. Pure functions over lengths and documents."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from qedmeg.data.chat import Document


class Branch(NamedTuple):
    """What a segment goes on from: so many tokens, from the beginning of the text that an earlier segment ends."""

    segment: int
    tokens: int


NO_BRANCH = Branch(-1, 0)
"""Of a segment that begins by itself."""


@dataclass(frozen=True)
class PackedBatch:
    """Documents end to end in T = tokens_per_microbatch tokens, each attending to itself and to what it `follows`.

    `cu_seqlens` [segments + 1] int32 is where each segment begins, from 0 to T: first the documents, each padded to a
    multiple of what context parallelism needs, then, where room is left, one segment of padding.
    """

    tokens_T: torch.Tensor
    """int64."""
    labels_T: torch.Tensor
    """int64: the next token of the same document; the pad token where there is none."""
    mask_T: torch.Tensor
    """float32: 1 where `labels_T` is trained on, else 0."""
    positions_T: torch.Tensor
    """int64: 0, 1, 2, ... from the start of each segment, or on from the tokens that it follows."""
    cu_seqlens: torch.Tensor
    documents: int
    """Segments that are documents; the one after them, if there is one, is padding."""
    follows: tuple[Branch, ...]
    """Of each segment what it goes on from: it attends to those tokens, then to its own, as the answers to one prompt
    do."""

    @property
    def longest(self) -> int:
        """Tokens of the longest document, with those that it goes on from."""
        return int(self.positions_T.max()) + 1


def padded_length(length: int, multiple: int) -> int:
    """`length` rounded up to a multiple."""
    return -(-length // multiple) * multiple


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Bins of indices into `lengths`, each bin's lengths summing to at most `budget`.

    First-fit decreasing: the longest first, each into the first bin with room; equal lengths in the order given, so
    that the result is a function of the arguments. It uses at most 11/9 OPT + 6/9 bins (D. S. Johnson, Near-optimal bin
    packing algorithms, 1973; the bound is G. Dósa's, 2007). Raises ValueError for a length above the budget.
    """
    room: list[int] = []
    bins: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        if length > budget:
            raise ValueError(f"document {index} has {length} tokens, more than the budget of {budget}")
        fits = next((number for number, left in enumerate(room) if left >= length), None)
        if fits is None:
            fits = len(bins)
            bins.append([])
            room.append(budget)
        bins[fits].append(index)
        room[fits] -= length
    return bins


def deal(bin_tokens: Sequence[int], ranks: int) -> list[list[int]]:
    """Deal bins to data-parallel ranks: for each rank, its bins by index, all in all each bin once.

    The fullest bin first, each to the rank with the fewest tokens among those with the fewest bins, so that the number
    of bins of two ranks differs by at most one. `microbatches_per_rank` says how many microbatches every rank then
    computes, empty ones making up the difference.
    """
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    tokens = [0] * ranks
    for index in sorted(range(len(bin_tokens)), key=lambda index: (-bin_tokens[index], index)):
        rank = min(range(ranks), key=lambda rank: (len(dealt[rank]), tokens[rank], rank))
        dealt[rank].append(index)
        tokens[rank] += bin_tokens[index]
    return dealt


def microbatches_per_rank(bins: int, ranks: int, multiple_of: int = 1) -> int:
    """Microbatches that every rank computes for a step of `bins` bins: a multiple of `multiple_of` (what an interleaved
    pipeline schedule asks for), at least one of them."""
    return max(1, -(-bins // (ranks * multiple_of))) * multiple_of


def make_batch(
    documents: Sequence[Document],
    tokens_per_microbatch: int,
    document_multiple: int = 1,
    pad_id: int = 0,
    follows: Sequence[Branch] = (),
) -> PackedBatch:
    """Lay `documents` end to end, each padded inside its own segment to a multiple of `document_multiple` (2 × CP for
    context parallelism, 1 without), and fill up to `tokens_per_microbatch`, a multiple of it too. No padding is trained
    on. Without documents the batch is one segment of padding. `follows` is as in `PackedBatch`, without the padding's;
    empty: each begins by itself. Raises ValueError where they do not fit."""
    T = tokens_per_microbatch
    if T % document_multiple:
        raise ValueError(f"tokens_per_microbatch {T} is not a multiple of {document_multiple}")
    tokens_T = np.full(T, pad_id, dtype=np.int64)
    labels_T = np.full(T, pad_id, dtype=np.int64)
    mask_T = np.zeros(T, dtype=np.float32)
    positions_T = np.zeros(T, dtype=np.int64)
    bounds = [0]
    follows = [*follows] or [NO_BRANCH] * len(documents)
    for document, before in zip(documents, follows, strict=True):
        start, length = bounds[-1], len(document.tokens_T)
        stop = start + padded_length(length, document_multiple)
        if stop > T:
            raise ValueError(f"{len(documents)} documents do not fit into {T} tokens")
        tokens_T[start : start + length] = document.tokens_T
        labels_T[start : start + length - 1] = document.tokens_T[1:]
        mask_T[start : start + length - 1] = document.mask_T[1:]
        positions_T[start:stop] = np.arange(before.tokens, before.tokens + stop - start)
        bounds.append(stop)
    if bounds[-1] < T:
        positions_T[bounds[-1] :] = np.arange(T - bounds[-1])
        bounds.append(T)
        follows.append(NO_BRANCH)
    return PackedBatch(
        tokens_T=torch.from_numpy(tokens_T),
        labels_T=torch.from_numpy(labels_T),
        mask_T=torch.from_numpy(mask_T),
        positions_T=torch.from_numpy(positions_T),
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32),
        documents=len(documents),
        follows=tuple(follows),
    )


def segment_rows(bounds: Sequence[int], follows: Sequence[Branch] = ()) -> list[np.ndarray]:
    """Where in a batch the tokens stand that each segment attends to: those that it goes on from, then its own."""
    rows: list[np.ndarray] = []
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        before = follows[number] if follows else NO_BRANCH
        own_L = np.arange(start, end)
        rows.append(np.concatenate([rows[before.segment][: before.tokens], own_L]) if before.tokens else own_L)
    return rows

"""Answers to one prompt that begin alike share tokens: what they have in common is computed once, for all of them.

The answers of a group are a tree of tokens, the prompt its stem. Each branch is a segment of a packed micro-batch that
goes on from an earlier one, and each answer reads its log-probabilities along its way through the tree. Loss and
gradient are those of answers that stand alone.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from qedmeg.config_rl import LossConfig
from qedmeg.data.chat import Document
from qedmeg.data.loader import Placement, cut_step
from qedmeg.data.packing import NO_BRANCH, Branch, PackedBatch, make_batch, segment_rows
from qedmeg.rollout.sample import Sample
from qedmeg.training.losses import loss_weights
from qedmeg.training.rollout_batch import TrainedGroups, TrainedSample, document_of


@dataclass(frozen=True)
class SharedRollouts(PackedBatch):
    """Trees of answers, one after the other, and the A trained tokens of all answers, end to end."""

    places_A: torch.Tensor
    """int64: where in the batch each is predicted; several answers may have the same place."""
    engine_logprobs_A: torch.Tensor
    """float32: of the engine, as it sampled."""
    advantages_A: torch.Tensor
    """float32."""
    weights_A: torch.Tensor
    """float32: from `loss_weights`."""
    cu_answers: torch.Tensor
    """[answers + 1] int32: where each answer begins among the A tokens."""

    def of_answers(self, numbers_T: torch.Tensor) -> torch.Tensor:
        """Numbers of the batch's tokens, for each answer's tokens [A]."""
        return numbers_T[self.places_A]

    def loss_terms(self) -> dict[str, torch.Tensor]:
        """What `policy_loss` is told beside log-probabilities; its T tokens are these A."""
        return {
            "engine_logprobs_T": self.engine_logprobs_A,
            "advantages_T": self.advantages_A,
            "mask_T": torch.ones_like(self.weights_A),
            "weights_T": self.weights_A,
            "cu_seqlens": self.cu_answers,
        }


def pack_shared(
    trained: TrainedGroups, tokens_per_microbatch: int, pad_id: int, loss: LossConfig, placement: Placement
) -> tuple[SharedRollouts, ...]:
    """This rank's micro-batches; every rank has the same number, at least one.

    Raises:
        ValueError: a sample with its prompt is longer than `tokens_per_microbatch`.
    """
    trees = _trees(trained.samples, tokens_per_microbatch)
    cut = cut_step([_tokens(tree) for tree in trees] or [1], tokens_per_microbatch, placement)
    packed = []
    for members, width in zip(cut.microbatches, cut.widths, strict=True):
        inside = [trees[index] for index in members if trees]
        documents, follows, ends = _segments(inside)
        batch = make_batch(documents, width, placement.document_multiple, pad_id, follows)
        rows = segment_rows(batch.cu_seqlens.tolist(), batch.follows)
        answers = [leaf.one for leaf in itertools.chain(*inside)]
        # labels stand one before their tokens
        places = [
            rows[end][len(one.sample.prompt_P) - 1 :][: len(one.sample.tokens_T)]
            for one, end in zip(answers, ends, strict=True)
        ]
        lengths = [len(one.sample.tokens_T) for one in answers]
        cu_answers = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
        counted_A = torch.ones(sum(lengths))
        packed.append(
            SharedRollouts(
                **{field.name: getattr(batch, field.name) for field in fields(batch)},
                places_A=torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *places])),
                engine_logprobs_A=torch.from_numpy(
                    np.concatenate([np.zeros(0, np.float32), *(one.sample.logprobs_T for one in answers)])
                ),
                advantages_A=torch.repeat_interleave(
                    torch.tensor([one.advantage for one in answers], dtype=torch.float32), torch.tensor(lengths).int()
                ),
                weights_A=loss_weights(loss, counted_A, cu_answers, trained.sequences, trained.tokens),
                cu_answers=cu_answers,
            )
        )
    return tuple(packed)


@dataclass(frozen=True)
class _Leaf:
    """An answer in a tree."""

    one: TrainedSample
    shared: int
    """Tokens, of the prompt's first on, that it has from the answer before it: all of them where both are the same."""

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.one.sample.prompt_P) + len(self.one.sample.tokens_T)


_Tree = list[_Leaf]


def _tokens(tree: _Tree) -> int:
    """Tokens that are computed."""
    return sum(leaf.length - leaf.shared for leaf in tree)


def _trees(samples: Sequence[TrainedSample], budget: int) -> list[_Tree]:
    """Of neighbours with the same prompt a tree, or several, each of at most `budget` tokens where one answer is."""
    trees: list[_Tree] = []
    for _, group in itertools.groupby(samples, lambda one: one.sample.prompt_P.tobytes()):
        tree: _Tree = []
        # in their tokens' order each answer has with none before it more in common than with the last
        for one in sorted(group, key=lambda one: one.sample.tokens_T.tolist()):
            leaf = _Leaf(one, _shared(tree[-1].one.sample, one.sample) if tree else 0)
            if tree and _tokens(tree) + leaf.length - leaf.shared > budget:
                trees.append(tree)
                tree, leaf = [], _Leaf(one, 0)
            tree.append(leaf)
        trees.append(tree)
    return trees


def _shared(before: Sample, sample: Sample) -> int:
    """Tokens that an answer need not be computed for after another: of what both begin with the last one is computed
    again, to predict another token. Of the same answer, none is."""
    most = min(len(before.tokens_T), len(sample.tokens_T))
    other = (before.tokens_T[:most] != sample.tokens_T[:most]).nonzero()[0]
    if not len(other) and len(before.tokens_T) == len(sample.tokens_T):
        return len(sample.prompt_P) + most
    return len(sample.prompt_P) + (int(other[0]) if len(other) else most) - 1


def _segments(trees: Sequence[_Tree]) -> tuple[list[Document], list[Branch], list[int]]:
    """The segments of trees, what each of them goes on from, and of each answer the segment that it ends with."""
    documents: list[Document] = []
    follows: list[Branch] = []
    ends: list[int] = []
    for leaf in itertools.chain(*trees):
        if leaf.shared < leaf.length:
            whole = document_of(leaf.one.sample)
            follows.append(Branch(len(documents) - 1, leaf.shared) if leaf.shared else NO_BRANCH)
            documents.append(Document(whole.tokens_T[leaf.shared :], whole.mask_T[leaf.shared :]))
        ends.append(len(documents) - 1)
    return documents, follows, ends

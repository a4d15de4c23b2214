"""From a batch of graded groups to the packed micro-batches that the policy loss is computed of.

Pure functions of lengths, rewards and token ids; every rank computes the same and keeps its part.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from qedmeg.config_rl import AdvantageConfig, LossConfig
from qedmeg.data.chat import Document
from qedmeg.data.loader import Placement, cut_step
from qedmeg.data.packing import PackedBatch, make_batch
from qedmeg.rollout.sample import Group, Sample
from qedmeg.training.advantages import group_advantages
from qedmeg.training.losses import loss_weights


@dataclass(frozen=True)
class TrainedSample:
    """A rollout that is trained on, and its advantage."""

    sample: Sample
    advantage: float


@dataclass(frozen=True)
class TrainedGroups:
    """What groups come to: the samples that are trained on, and counts for the log."""

    samples: tuple[TrainedSample, ...]
    sequences: int
    """Samples that the loss is normalised by: those with an advantage of 0 too."""
    tokens: int
    """Their generated tokens."""
    zero_variance: int
    """Groups that train nothing, since all their rewards are the same."""


@dataclass(frozen=True)
class PackedRollouts(PackedBatch):
    """Prompts with their answers end to end. At each position stands what belongs to its label, the next token."""

    engine_logprobs_T: torch.Tensor
    """float32: of the engine, as it sampled."""
    advantages_T: torch.Tensor
    """float32."""
    weights_T: torch.Tensor
    """float32: from `loss_weights`."""


def train_on(groups: Sequence[Group], max_tokens: int, config: AdvantageConfig, *, keep_zero: bool) -> TrainedGroups:
    """The advantages of each group's graded rollouts; failed grades are in no baseline and train nothing.

    Args:
        groups: of the batch.
        max_tokens: the limit at which answers were cut off.
        config: how rewards become advantages.
        keep_zero: keep samples whose advantage is 0, for losses that have other terms (KL, entropy).
    """
    kept: list[TrainedSample] = []
    sequences = tokens = zero_variance = 0
    for group in groups:
        graded = [(rollout, rollout.reward) for rollout in group.rollouts if rollout.reward is not None]
        lengths_G = torch.tensor([len(rollout.sample.tokens_T) for rollout, _ in graded])
        advantages = group_advantages(
            torch.tensor([reward for _, reward in graded], dtype=torch.float32),
            lengths_G,
            torch.tensor([rollout.sample.finish_reason == "length" for rollout, _ in graded], dtype=torch.bool),
            max_tokens,
            config,
        )
        if advantages is None:
            continue
        zero_variance += advantages.zero_variance
        sequences += int(advantages.trained_G.sum())
        tokens += int(lengths_G[advantages.trained_G].sum())
        kept += [
            TrainedSample(rollout.sample, advantage)
            for (rollout, _), advantage, trained in zip(
                graded, advantages.advantages_G.tolist(), advantages.trained_G.tolist(), strict=True
            )
            if trained and (keep_zero or advantage != 0.0)
        ]
    return TrainedGroups(tuple(kept), sequences, tokens, zero_variance)


def pack_rollouts(
    trained: TrainedGroups, tokens_per_microbatch: int, pad_id: int, loss: LossConfig, placement: Placement
) -> tuple[PackedRollouts, ...]:
    """This rank's micro-batches; every rank has the same number, at least one.

    Raises:
        ValueError: a sample with its prompt is longer than `tokens_per_microbatch`.
    """
    lengths = [len(one.sample.prompt_P) + len(one.sample.tokens_T) for one in trained.samples]
    cut = cut_step(lengths or [1], tokens_per_microbatch, placement)  # of one token and no sample: a batch of padding
    packed = []
    for members, width in zip(cut.microbatches, cut.widths, strict=True):
        samples = [trained.samples[index] for index in members if trained.samples]
        documents = [_document(one.sample) for one in samples]
        batch = make_batch(documents, width, placement.document_multiple, pad_id)
        engine_T, advantages_T = torch.zeros(width), torch.zeros(width)
        for start, one in zip(batch.cu_seqlens.tolist(), samples, strict=False):
            first = start + len(one.sample.prompt_P) - 1  # where the first generated token is the label
            answer = slice(first, first + len(one.sample.tokens_T))
            engine_T[answer] = torch.from_numpy(one.sample.logprobs_T)
            advantages_T[answer] = one.advantage
        packed.append(
            PackedRollouts(
                **{field.name: getattr(batch, field.name) for field in fields(batch)},
                engine_logprobs_T=engine_T,
                advantages_T=advantages_T,
                weights_T=loss_weights(loss, batch.mask_T, batch.cu_seqlens, trained.sequences, trained.tokens),
            )
        )
    return tuple(packed)


def _document(sample: Sample) -> Document:
    tokens_L = np.concatenate([sample.prompt_P, sample.tokens_T])
    return Document(tokens_L, np.arange(len(tokens_L)) >= len(sample.prompt_P))


def minibatches(groups: Sequence[Group], count: int) -> list[Sequence[Group]]:
    """The groups in `count` parts, in order, whose sizes differ by at most one."""
    bounds = np.linspace(0, len(groups), count + 1).round().astype(int).tolist()
    return [groups[start:stop] for start, stop in itertools.pairwise(bounds)]

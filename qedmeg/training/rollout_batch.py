"""From a batch of graded groups to the packed micro-batches that the policy loss is computed of.

Pure functions of lengths, rewards and token ids; every rank computes the same and keeps its part.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol, TypeVar

import numpy as np
import torch

from qedmeg.config_rl import AdvantageConfig, LossConfig
from qedmeg.data.chat import Document
from qedmeg.data.loader import Placement, cut_step
from qedmeg.data.packing import PackedBatch, make_batch
from qedmeg.rollout.sample import Batch, Credited, Sample, SummaryGroup
from qedmeg.rollout.schedule import is_too_old
from qedmeg.training.advantages import group_advantages
from qedmeg.training.losses import loss_weights

T = TypeVar("T")


class Rewarded(Protocol):
    """A sample, and what it earned; None where its grade failed."""

    @property
    def sample(self) -> Sample: ...
    @property
    def reward(self) -> float | None: ...


class Compared(Protocol):
    """Samples of one prompt, which are compared with each other: a group of rollouts, or of summaries."""

    @property
    def rollouts(self) -> Sequence[Rewarded]: ...


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

    def __add__(self, other: "TrainedGroups") -> "TrainedGroups":
        return TrainedGroups(
            self.samples + other.samples,
            self.sequences + other.sequences,
            self.tokens + other.tokens,
            self.zero_variance + other.zero_variance,
        )


@dataclass(frozen=True)
class PackedRollouts(PackedBatch):
    """Prompts and answers end to end. At each position stands what belongs to its label, the next token."""

    engine_logprobs_T: torch.Tensor
    """float32: of the engine, as it sampled."""
    advantages_T: torch.Tensor
    """float32."""
    weights_T: torch.Tensor
    """float32: from `loss_weights`."""

    def of_answers(self, numbers_T: torch.Tensor) -> torch.Tensor:
        """Numbers of the batch's tokens as the loss takes them: as they are."""
        return numbers_T

    def loss_terms(self) -> dict[str, torch.Tensor]:
        """What `policy_loss` is told beside log-probabilities."""
        return {
            "engine_logprobs_T": self.engine_logprobs_T,
            "advantages_T": self.advantages_T,
            "mask_T": self.mask_T,
            "weights_T": self.weights_T,
            "cu_seqlens": self.cu_seqlens,
        }


def train_on(groups: Sequence[Compared], max_tokens: int, config: AdvantageConfig, *, keep_zero: bool) -> TrainedGroups:
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
    """This rank's micro-batches, each rollout a document of its own; every rank has the same number, at least one.

    Raises:
        ValueError: a sample with its prompt is longer than `tokens_per_microbatch`.
    """
    samples = [one.sample for one in trained.samples]
    lengths = [len(sample.prompt_P) + len(sample.tokens_T) for sample in samples]
    cut = cut_step(lengths or [1], tokens_per_microbatch, placement)  # of one token and no sample: a batch of padding
    packed = []
    for members, width in zip(cut.microbatches, cut.widths, strict=True):
        inside = [trained.samples[index] for index in members if samples]
        documents = [document_of(one.sample) for one in inside]
        batch = make_batch(documents, width, placement.document_multiple, pad_id)
        engine_T, advantages_T = torch.zeros(width), torch.zeros(width)
        for one, document, start in zip(inside, documents, batch.cu_seqlens.tolist(), strict=False):
            # labels stand one before their tokens: the last token has none
            last = start + len(document.tokens_T) - 1
            answer = slice(last - len(one.sample.tokens_T), last)
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


def document_of(sample: Sample) -> Document:
    """Prompt and answer, of which the answer is trained on."""
    tokens_L = np.concatenate([sample.prompt_P, sample.tokens_T])
    return Document(tokens_L, np.arange(len(tokens_L)) >= len(sample.prompt_P))


def trained_summaries(batch: Batch, max_lag: int) -> list[SummaryGroup]:
    """The summaries of a batch, without those whose weights lag more than `max_lag` versions behind its step."""
    return [
        SummaryGroup(group.state, group.before, tuple(one for one in group.rollouts if _is_young(one, batch, max_lag)))
        for group in batch.summaries
    ]


def _is_young(one: Credited, batch: Batch, max_lag: int) -> bool:
    return not is_too_old(one.sample.oldest_version, batch.step, max_lag)


def minibatches(groups: Sequence[T], count: int) -> list[Sequence[T]]:
    """The groups in `count` parts, in order, whose sizes differ by at most one."""
    bounds = np.linspace(0, len(groups), count + 1).round().astype(int).tolist()
    return [groups[start:stop] for start, stop in itertools.pairwise(bounds)]

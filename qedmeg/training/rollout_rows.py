"""Between a batch of graded rollouts, the padded rows that NeMo-Aligner's trainers hold, and packed micro-batches.

B are rows, S the tokens of the longest, prompt included, and L = S − 1: at each position stands what belongs to its
label, the next token. A row without tokens is in no mask, and so in no baseline, mean or loss: rows are of a fixed
number, and such a one stands where a grade failed or a group is missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from qedmeg import device
from qedmeg.data.chat import Document
from qedmeg.data.loader import Placement, cut_step
from qedmeg.data.packing import PackedBatch, make_batch
from qedmeg.rollout.sample import Group, Rollout

NO_TOKEN = -1
"""What rows are padded with: no token of any vocabulary, so that rows show how long they are."""


def rollout_rows(groups: Sequence[Group], count: int, rollouts_per_group: int) -> dict[str, torch.Tensor]:
    """Rows of `count` groups one after the other: of each its graded rollouts, then rows without tokens.

    Returns:
        What NeMo-Aligner asks of a dataloader (`text` [B, P], `length` [B]: the prompts) and of a model's `infer`
        (`response_tokens` [B, S], `response_lengths` [B], both with the prompt, `prompt_lengths` [B], `is_end` [B]:
        there the rows that count, here those that hold a rollout), and `rewards` [B] and `engine_logprobs` [B, L].

    Raises:
        ValueError: more groups, or more graded rollouts in one, than there is room for.
    """
    rollouts: list[Rollout | None] = []
    for group in groups:
        graded = [rollout for rollout in group.rollouts if rollout.reward is not None]
        if len(graded) > rollouts_per_group:
            raise ValueError(f"group {group.id} has {len(graded)} graded rollouts, more than {rollouts_per_group}")
        rollouts += [*graded, *[None] * (rollouts_per_group - len(graded))]
    if len(groups) > count:
        raise ValueError(f"{len(groups)} groups are more than {count}")
    rollouts += [None] * ((count - len(groups)) * rollouts_per_group)

    samples = [None if rollout is None else rollout.sample for rollout in rollouts]
    prompts_B = torch.tensor([0 if sample is None else len(sample.prompt_P) for sample in samples])
    lengths_B = prompts_B + torch.tensor([0 if sample is None else len(sample.tokens_T) for sample in samples])
    text_BP = torch.full((len(samples), max(int(prompts_B.max()), 1)), NO_TOKEN)
    tokens_BS = torch.full((len(samples), max(int(lengths_B.max()), 2)), NO_TOKEN)
    engine_BL = torch.zeros(len(samples), tokens_BS.shape[1] - 1)
    for row, sample in enumerate(samples):
        if sample is not None:
            prompt, end = int(prompts_B[row]), int(lengths_B[row])
            text_BP[row, :prompt] = tokens_BS[row, :prompt] = torch.from_numpy(sample.prompt_P)
            tokens_BS[row, prompt:end] = torch.from_numpy(sample.tokens_T)
            engine_BL[row, prompt - 1 : end - 1] = torch.from_numpy(sample.logprobs_T)
    return {
        "text": text_BP,
        "length": prompts_B,
        "response_tokens": tokens_BS,
        "response_lengths": lengths_B,
        "prompt_lengths": prompts_B,
        "is_end": lengths_B > 0,
        "rewards": torch.tensor([0.0 if rollout is None else rollout.reward for rollout in rollouts]),
        "engine_logprobs": engine_BL,
    }


@dataclass(frozen=True)
class PackedRows:
    """A rank's rows as documents in packed micro-batches."""

    batches: tuple[PackedBatch, ...]
    members: tuple[tuple[int, ...], ...]
    """Which rows are in each micro-batch, in the order of its segments."""
    lengths_B: tuple[int, ...]
    """Tokens of each row."""

    def lay_out(self, numbers_BL: torch.Tensor) -> list[torch.Tensor]:
        """Numbers of the rows' labels as they lie in each micro-batch [T]; 0 where no label is."""
        return [self._moved(numbers_BL, number) for number in range(len(self.batches))]

    def _moved(self, numbers_BL: torch.Tensor, number: int) -> torch.Tensor:
        numbers_T = torch.zeros(self.batches[number].tokens_T.numel())
        for row, place in self._places(number):
            numbers_T[place] = numbers_BL[row, : self.lengths_B[row] - 1].float().cpu()
        return numbers_T

    def take_back(self, found: Sequence[torch.Tensor], width: int) -> torch.Tensor:
        """The rows [B, width] of numbers that stand in the micro-batches; 0 beyond a row's labels."""
        numbers_BL = torch.zeros(len(self.lengths_B), width, device=device.current())
        for number, numbers_T in enumerate(found):
            for row, place in self._places(number):
                numbers_BL[row, : self.lengths_B[row] - 1] = numbers_T[place]
        return numbers_BL

    def _places(self, number: int) -> list[tuple[int, slice]]:
        """Each row of a micro-batch, and where its labels are."""
        starts = self.batches[number].cu_seqlens.tolist()
        return [
            (row, slice(start, start + self.lengths_B[row] - 1))
            for row, start in zip(self.members[number], starts, strict=False)
        ]


def pack_rows(
    tokens_BS: torch.Tensor, mask_BL: torch.Tensor, tokens_per_microbatch: int, pad_id: int, placement: Placement
) -> PackedRows:
    """Pack a rank's own rows; `mask_BL` says which labels count. Data-parallel ranks have other rows, and come to an
    agreement on the number of micro-batches, at least one, and where they must be equally long on their length. All of
    them call it.

    Raises:
        ValueError: a row is longer than `tokens_per_microbatch`.
    """
    lengths_B = (tokens_BS != NO_TOKEN).sum(1).tolist()
    rows = [row for row, length in enumerate(lengths_B) if length]
    own = replace(placement, dp_rank=0, dp_size=1)
    cut = cut_step([lengths_B[row] for row in rows] or [1], tokens_per_microbatch, own)
    most = torch.tensor([len(cut.microbatches), max(cut.widths)], device=device.current())
    dist.all_reduce(most, dist.ReduceOp.MAX, group=parallel_state.get_data_parallel_group())
    count, longest = most.tolist()
    members = tuple(tuple(rows[index] for index in indices if rows) for indices in cut.microbatches)
    members += ((),) * (count - len(members))
    widths = (longest,) * count
    if not placement.equal_widths:
        widths = cut.widths + (min(cut.widths),) * (count - len(cut.widths))
    tokens_BS, mask_BL = tokens_BS.cpu(), mask_BL.cpu()

    def document(row: int) -> Document:
        length = lengths_B[row]
        mask_T = np.concatenate([[False], mask_BL[row, : length - 1].numpy() != 0])
        return Document(tokens_BS[row, :length].numpy().astype(np.int32), mask_T)

    return PackedRows(
        batches=tuple(
            make_batch([document(row) for row in inside], width, placement.document_multiple, pad_id)
            for inside, width in zip(members, widths, strict=True)
        ),
        members=members,
        lengths_B=tuple(lengths_B),
    )


def sum_over_data_ranks(*numbers: float) -> list[float]:
    """Each number's sum over the data-parallel ranks, which all call it."""
    sums = torch.tensor(numbers, dtype=torch.float64, device=device.current())
    dist.all_reduce(sums, group=parallel_state.get_data_parallel_group())
    found: list[float] = sums.tolist()
    return found

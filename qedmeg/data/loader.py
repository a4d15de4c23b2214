"""Steps for the trainer: the next documents packed and dealt to the data-parallel ranks, one step ahead of it."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from qedmeg.config import DataConfig
from qedmeg.data.documents import DocumentStore
from qedmeg.data.packing import (
    PackedBatch,
    deal,
    make_batch,
    microbatches_per_rank,
    pack,
    padded_length,
)
from qedmeg.data.sampler import DataPosition, documents_at
from qedmeg.errors import UserError

_GRAIN = 64
"""Microbatches are a multiple of so many tokens: matrix products in FP8 ask for 16, GPUs like more."""


@dataclass(frozen=True)
class Placement:
    """How steps are cut for the ranks: everything about topology that the data has to know."""

    dp_rank: int = 0
    dp_size: int = 1
    document_multiple: int = 1
    """Every document is padded to a multiple of it: 2 × context-parallel size, 1 without context parallelism."""
    batch_multiple: int = 1
    """Microbatches are a multiple of it long, as context and sequence parallelism cut them."""
    microbatch_multiple: int = 1
    """Microbatches of a rank are a multiple of it: the pipeline size under an interleaved schedule, else 1."""
    equal_widths: bool = False
    """All microbatches of a step are equally long, on every rank: where pipeline stages or the ranks that share experts
    exchange tensors of one size. Else each is as long as its documents."""


@dataclass(frozen=True)
class Step:
    """One optimizer step (or validation batch) on one data-parallel rank. All but `microbatches` is the same on every
    rank, at every topology."""

    microbatches: tuple[PackedBatch, ...]
    """This rank's; every rank has the same number."""
    documents: tuple[int, ...]
    """Indices in the store of the step's documents, over all ranks."""
    tokens: int
    """Tokens of those documents, without padding."""
    trained_tokens: int
    """Those of them that are a label with mask 1."""
    loss_divisor: float
    """What the loss summed over all microbatches of all ranks is divided by: `trained_tokens` in training."""
    epoch: float
    """Epochs trained on once the step is done, such as 1.25; 0 in validation."""
    fill: float
    """Share of the bins' positions that hold a token of a document; empty microbatches are not counted."""


@dataclass(frozen=True)
class BatchSizes:
    """What NeMo-Aligner's SupervisedTrainer reads off `dataloader.batch_sampler` to plan a run."""

    total_samples: int
    global_batch_size: int
    micro_batch_size: int = 1
    drop_last: bool = True


@dataclass(frozen=True)
class Cut:
    """How a step's documents are spread over micro-batches."""

    microbatches: tuple[tuple[int, ...], ...]
    """Which documents are in each micro-batch of this rank; every rank has the same number, empty ones among them."""
    widths: tuple[int, ...]
    """Tokens of each of them, padding included."""
    fill: float
    """Share of the positions of all ranks' micro-batches that hold a token of a document; empty ones not counted."""


def cut_step(lengths: Sequence[int], tokens_per_microbatch: int, placement: Placement) -> Cut:
    """Pack documents of these lengths into bins and deal the bins to the data-parallel ranks.

    It looks at lengths only and is the same on every rank, so the bins of all ranks together are the same for any
    number of ranks; empty micro-batches make the ranks equal.
    """
    padded = [padded_length(length, placement.document_multiple) for length in lengths]
    bins = pack(padded, tokens_per_microbatch)
    grain = math.lcm(_GRAIN, placement.batch_multiple)
    filled = [sum(padded[i] for i in members) for members in bins]
    # the last is an empty micro-batch's
    widths = [min(padded_length(tokens, grain), tokens_per_microbatch) for tokens in [*filled, 1]]
    if placement.equal_widths:
        widths = [max(widths)] * len(widths)
    mine = deal([sum(lengths[i] for i in members) for members in bins], placement.dp_size)[placement.dp_rank]
    count = microbatches_per_rank(len(bins), placement.dp_size, placement.microbatch_multiple)
    empty = count - len(mine)
    return Cut(
        microbatches=tuple(tuple(bins[index]) for index in mine) + ((),) * empty,
        widths=tuple(widths[index] for index in mine) + (widths[-1],) * empty,
        fill=sum(lengths) / sum(widths[:-1]),
    )


def build_step(
    store: DocumentStore, documents: Sequence[int], tokens_per_microbatch: int, pad_id: int, placement: Placement
) -> Step:
    """Pack the documents into bins and build this rank's microbatches of them; see `cut_step`."""
    lengths = store.lengths_D[list(documents)].tolist()
    cut = cut_step(lengths, tokens_per_microbatch, placement)
    trained = int(store.trained_D[list(documents)].sum())
    return Step(
        microbatches=tuple(
            make_batch([store[documents[i]] for i in members], width, placement.document_multiple, pad_id)
            for members, width in zip(cut.microbatches, cut.widths, strict=True)
        ),
        documents=tuple(documents),
        tokens=sum(lengths),
        trained_tokens=trained,
        loss_divisor=float(trained),
        epoch=0.0,
        fill=cut.fill,
    )


class TrainLoader:
    """The training steps, without end, from wherever the position is.

    Iterating moves `position` when a step is handed out, not when it is prepared: what `state_dict` gives while the
    trainer works on a step counts this step and nothing beyond it, although the next is already being built in a
    background thread. Iterate again and it goes on from there.

    `total_steps` is the length of the run. NeMo-Aligner is told of it as one epoch of `total_steps` steps (its own
    epochs drop the last documents of each, and it takes more than one of them with its own sampler class only), so its
    `max_epochs` is 1; the true epoch is in each `Step`.

    Raises UserError where `tokens_per_microbatch` does not suit context parallelism.
    """

    def __init__(
        self,
        store: DocumentStore,
        config: DataConfig,
        pad_id: int,
        total_steps: int,
        placement: Placement | None = None,
    ) -> None:
        self.store, self.config, self.pad_id = store, config, pad_id
        self.placement = placement or Placement()
        _check_multiple(config, self.placement)
        self.position = DataPosition(config.seed, len(store), store.summary.fingerprint)
        self.total_steps = total_steps
        self.batch_sampler = BatchSizes(total_steps * config.prompts_per_step, config.prompts_per_step)

    def __len__(self) -> int:
        return self.total_steps

    def __iter__(self) -> Iterator[Step]:
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="next-step") as pool:
            position = self.position
            prepared = pool.submit(self._step, position)
            while True:
                step = prepared.result()
                position = replace(position, consumed=position.consumed + self.config.prompts_per_step)
                prepared = pool.submit(self._step, position)
                self.position = position
                yield step

    def _step(self, position: DataPosition) -> Step:
        count = self.config.prompts_per_step
        documents = documents_at(position.seed, position.size, position.consumed, count)
        step = build_step(self.store, documents, self.config.tokens_per_microbatch, self.pad_id, self.placement)
        return replace(step, epoch=(position.consumed + count) / position.size)

    def state_dict(self) -> dict[str, Any]:
        """Where the next step begins: seed, epoch, position within it, size and fingerprint of the data set."""
        return self.position.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, at this or another topology and `prompts_per_step`. Raises UserError for the state
        of another data set or seed."""
        self.position = self.position.resumed(state)


class ValidationLoader:
    """All validation documents once, in the order of the store, `prompts_per_step` at a time; the same on every pass.

    NeMo-Aligner averages the loss over batches, however full they are. `loss_divisor` is therefore the same in all of
    them, the mean number of trained tokens, which makes its average that over the tokens of the whole set.
    """

    def __init__(
        self, store: DocumentStore, config: DataConfig, pad_id: int, placement: Placement | None = None
    ) -> None:
        self.store, self.config, self.pad_id = store, config, pad_id
        self.placement = placement or Placement()
        _check_multiple(config, self.placement)

    def __len__(self) -> int:
        return -(-len(self.store) // self.config.prompts_per_step)

    def __iter__(self) -> Iterator[Step]:
        size, divisor = self.config.prompts_per_step, self.store.summary.trained_tokens / len(self)
        for start in range(0, len(self.store), size):
            documents = range(start, min(start + size, len(self.store)))
            step = build_step(self.store, documents, self.config.tokens_per_microbatch, self.pad_id, self.placement)
            yield replace(step, loss_divisor=divisor)


def steps_of_epochs(documents: int, prompts_per_step: int, epochs: float) -> int:
    """The number of steps that go through all documents `epochs` times, the last step rounded up."""
    return max(1, -int(-documents * epochs // prompts_per_step))


def _check_multiple(config: DataConfig, placement: Placement) -> None:
    if config.tokens_per_microbatch % placement.document_multiple:
        raise UserError(
            f"data.tokens_per_microbatch: {config.tokens_per_microbatch}: must be a multiple of "
            f"{placement.document_multiple}, twice the context-parallel size"
        )

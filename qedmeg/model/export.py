"""The Hugging Face tensors of a model that is spread over ranks, collected on global rank 0 bucket by bucket.

The ranks tell each other once who holds what. Then, for each bucket, each chunk of a tensor is sent to rank 0 by the
first rank that holds it, straight from the parameter's memory; replicas stay silent. While rank 0 puts a bucket's
chunks into their places, those of the next one are on their way. Ranks that share memory put them there themselves.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from qedmeg import device
from qedmeg.model import weights
from qedmeg.model.families import Architecture
from qedmeg.model.weights import GlobalTensor

BUCKET_BYTES = 128 << 20


@dataclass(frozen=True)
class ExportedTensor:
    """A Hugging Face tensor as it will be exported: in the parameters' dtype, without padding of the vocabulary."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Bucket:
    """Some of the tensors, one after the other in a flat buffer [bytes] of uint8."""

    buffer: torch.Tensor
    tensors: tuple[tuple[str, torch.Tensor], ...]
    """Name and view of the buffer."""


@dataclass(frozen=True)
class _Chunk:
    """A part of a Megatron tensor, and the rank that sends it."""

    tensor: GlobalTensor
    start: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    rank: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def key(self) -> tuple[str, tuple[int, ...]]:
        return self.tensor.key, self.start


@dataclass(frozen=True)
class _Plan:
    """What one bucket is made of."""

    tensors: tuple[ExportedTensor, ...]
    chunks: tuple[_Chunk, ...]

    @property
    def bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)


class Export:
    """The Hugging Face tensors of a model, in the order of its layers. All ranks make it and go through it in step.

    It reads the parameters where they are when it is made: make it after the optimizer, which may move them.
    """

    def __init__(self, chunks: list[Any], model: Architecture, bucket_bytes: int = BUCKET_BYTES) -> None:
        """`chunks` are this rank's model chunks. A bucket is filled up to `bucket_bytes`, or holds one larger tensor
        (q, k and v together count as one)."""
        held = weights.sharded_tensors(chunks)
        self._data = {(shard.key, tuple(shard.global_offset)): shard.data.detach() for shard in held}
        self._rank = dist.get_rank()
        mine = [(key, start, tuple(data.shape), data.dtype) for (key, start), data in self._data.items()]
        placements: list[list[tuple[str, tuple[int, ...], tuple[int, ...], torch.dtype]]] = [
            [] for _ in range(dist.get_world_size())
        ]
        dist.all_gather_object(placements, mine)
        tensors = weights.global_tensors(model)
        parts: dict[str, dict[tuple[int, ...], _Chunk]] = {key: {} for key in tensors}
        for rank, placement in enumerate(placements):
            for key, start, shape, dtype in placement:
                parts[key].setdefault(start, _Chunk(tensors[key], start, shape, dtype, rank))
        self._plans = list(_plans([tuple(parts[key].values()) for key in tensors], bucket_bytes))
        self.tensors = tuple(tensor for plan in self._plans for tensor in plan.tensors)
        """All of them, in the order in which they come."""
        self.buckets = tuple((len(plan.tensors), plan.bytes) for plan in self._plans)
        """Number of tensors and bytes of each bucket."""

    def stream(
        self, allocate: Callable[[int], torch.Tensor] | None = None, *, shared: bool = False
    ) -> Iterator[Bucket | None]:
        """The buckets on rank 0, None in the place of each on the others. Every rank must go on to the end.

        `allocate(bytes)` gives the flat uint8 buffer of a bucket, by default new memory each time. Nothing is written
        to a bucket after it was handed out; the memory belongs to whoever allocated it. With `shared` it gives all
        ranks the same memory: each puts its chunks into their places there, and nothing is sent.
        """
        allocate = allocate or (lambda size: torch.empty(size, dtype=torch.uint8, device=device.current()))
        if shared:
            yield from self._fill_together(allocate)
            return
        staging: list[torch.Tensor | None] = [None, None]
        under_way = self._exchange(0, staging)
        for number, plan in enumerate(self._plans):
            received, works = under_way
            under_way = self._exchange(number + 1, staging)
            if self._rank != 0:
                for work in works:
                    work.wait()
                yield None
                continue
            buffer = allocate(plan.bytes)
            bucket = Bucket(buffer, tuple(lay_out(plan.tensors, buffer)))
            views = dict(bucket.tensors)
            for chunk in plan.chunks:
                if chunk.rank == 0:
                    weights.place_chunk(self._data[chunk.key], chunk.tensor, chunk.start, views)
            for work in works:
                work.wait()
            for chunk, data in received:
                weights.place_chunk(data, chunk.tensor, chunk.start, views)
            yield bucket

    def _fill_together(self, allocate: Callable[[int], torch.Tensor]) -> Iterator[Bucket | None]:
        for plan in self._plans:
            dist.barrier()  # rank 0 has come back for this one: its memory is free
            buffer = allocate(plan.bytes)
            bucket = Bucket(buffer, tuple(lay_out(plan.tensors, buffer)))
            views = dict(bucket.tensors)
            for chunk in plan.chunks:
                if chunk.rank == self._rank:
                    weights.place_chunk(self._data[chunk.key], chunk.tensor, chunk.start, views)
            dist.barrier()
            yield bucket if self._rank == 0 else None

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and tensor of each on rank 0, nothing on the others. Every rank must go on to the end."""
        for bucket in self.stream():
            if bucket is not None:
                yield from bucket.tensors

    def _exchange(
        self, number: int, staging: list[torch.Tensor | None]
    ) -> tuple[list[tuple[_Chunk, torch.Tensor]], list[Any]]:
        """Begin to send or to receive a bucket's chunks: where rank 0 will find them, and what to wait for."""
        if number >= len(self._plans):
            return [], []
        chunks = [chunk for chunk in self._plans[number].chunks if chunk.rank != 0]
        received: list[tuple[_Chunk, torch.Tensor]] = []
        operations = []
        if self._rank == 0 and chunks:
            size = sum(chunk.bytes for chunk in chunks)
            memory = staging[number % 2]
            if memory is None or len(memory) < size:
                memory = staging[number % 2] = torch.empty(size, dtype=torch.uint8, device=device.current())
            parts = memory[:size].split([chunk.bytes for chunk in chunks])
            for chunk, part in zip(chunks, parts, strict=True):
                received.append((chunk, part.view(chunk.dtype).view(chunk.shape)))
                operations.append(dist.P2POp(dist.irecv, part, chunk.rank))
        elif self._rank != 0:
            for chunk in chunks:
                if chunk.rank == self._rank:
                    data = self._data[chunk.key].contiguous().view(-1).view(torch.uint8)
                    operations.append(dist.P2POp(dist.isend, data, 0))
        return received, dist.batch_isend_irecv(operations) if operations else []


def _plans(parts: list[tuple[_Chunk, ...]], bucket_bytes: int) -> Iterator[_Plan]:
    """Cut the Megatron tensors, each given by its chunks, into buckets."""
    exported: list[ExportedTensor] = []
    chunks: list[_Chunk] = []
    for part in parts:
        first = part[0]
        sources = [ExportedTensor(source.name, first.dtype, source.shape) for source in first.tensor.sources]
        if exported and sum(tensor.bytes for tensor in (*exported, *sources)) > bucket_bytes:
            yield _Plan(tuple(exported), tuple(chunks))
            exported, chunks = [], []
        exported += sources
        chunks += part
    yield _Plan(tuple(exported), tuple(chunks))


def lay_out(tensors: Sequence[ExportedTensor], buffer: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Names and views of tensors that lie one after the other in a flat uint8 buffer."""
    parts = buffer.split([tensor.bytes for tensor in tensors])
    return [
        (tensor.name, part.view(tensor.dtype).view(tensor.shape)) for tensor, part in zip(tensors, parts, strict=True)
    ]

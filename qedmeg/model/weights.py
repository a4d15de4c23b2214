"""The one description of how each parameter is named and split: Hugging Face tensors, Megatron tensors, rank shards.

A Megatron checkpoint tensor (`GlobalTensor`) is its Hugging Face sources laid one after the other along dimension 0;
q, k and v take turns, one query group at a time. Tensor parallelism cuts it into equal chunks along one dimension.
`pieces` says which source rows make up any chunk. Conversion, starting from a Hugging Face folder, verifying and, for
a model in memory, Megatron's own `sharded_state_dict` all meet in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qedmeg.errors import UserError
from qedmeg.model import families, tensor_bytes
from qedmeg.model.families import Architecture, Rule
from qedmeg.model.safetensors_file import Reader, TensorInfo
from qedmeg.monitor.progress import track

TIED_OUTPUT = "lm_head.weight"


@dataclass(frozen=True)
class Source:
    """A Hugging Face tensor."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class GlobalTensor:
    """A tensor of Megatron's checkpoint, all TP ranks together."""

    key: str
    sources: tuple[Source, ...]
    split: int | None
    layer: int | None
    """The layer that it belongs to, counted over all pipeline stages; None for embedding, final norm and output."""
    expert: int | None
    groups: int
    """Query groups by which several sources are interleaved; 1 for a single source."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Without the padding of the vocabulary."""
        return (sum(source.shape[0] for source in self.sources), *self.sources[0].shape[1:])


@dataclass(frozen=True)
class Piece:
    """Rows `start:start+count` of a source, which are rows `target:target+count` of a Megatron tensor."""

    source: Source
    start: int
    target: int
    count: int


def global_tensors(model: Architecture) -> dict[str, GlobalTensor]:
    """All tensors of a model's Megatron checkpoint by key, in the order of the layers."""

    def tensor(rule: Rule, layer: int | None = None, expert: int | None = None) -> GlobalTensor:
        prefix, source_prefix = ("", "") if layer is None else (f"decoder.layers.{layer}.", f"model.layers.{layer}.")
        sources = tuple(Source(source_prefix + name.format(e=expert), model.size(size)) for name, size in rule.sources)
        groups = model.kv_heads if len(sources) > 1 else 1
        return GlobalTensor(prefix + rule.key.format(e=expert), sources, rule.split, layer, expert, groups)

    found = [tensor(families.EMBEDDING)]
    for layer in range(model.layers):
        for rule in model.family.layer:
            experts = range(model.experts.count) if model.experts and "{e}" in rule.key else [None]
            found += [tensor(rule, layer, expert) for expert in experts]
    found.append(tensor(families.FINAL_NORM))
    if not model.tied:
        found.append(tensor(families.OUTPUT))
    return {tensor.key: tensor for tensor in found}


def _runs(tensor: GlobalTensor) -> Iterator[Piece]:
    """The whole tensor as runs of source rows, in order."""
    target = 0
    for group in range(tensor.groups):
        for source in tensor.sources:
            count = source.shape[0] // tensor.groups
            yield Piece(source, group * count, target, count)
            target += count


def pieces(tensor: GlobalTensor, start: int, stop: int) -> Iterator[Piece]:
    """What rows `start:stop` of a Megatron tensor are made of; `target` counts from `start`.

    Rows beyond the tensor's own (padding of the vocabulary) belong to no piece.
    """
    for run in _runs(tensor):
        first, last = max(run.target, start), min(run.target + run.count, stop)
        if first < last:
            yield Piece(run.source, run.start + first - run.target, first - start, last - first)


def stored_shape(model: Architecture, tensor: GlobalTensor, tp: int) -> tuple[int, ...]:
    """A tensor's shape in a checkpoint written at `tp`: embedding and output layer have a padded vocabulary."""
    if tensor.key in (families.EMBEDDING.key, families.OUTPUT.key):
        return (model.padded_vocabulary(tp), *tensor.shape[1:])
    return tensor.shape


def cut(shape: tuple[int, ...], dimension: int | None, tp: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Start and shape of each TP rank's chunk of a tensor; one chunk, the whole, where the ranks do not share it."""
    count = 1 if dimension is None else tp
    for rank in range(count):
        sizes = tuple(size // count if axis == dimension else size for axis, size in enumerate(shape))
        yield tuple(rank * size if axis == dimension else 0 for axis, size in enumerate(sizes)), sizes


def read_rows(reader: Reader, tensor: GlobalTensor, start: int, stop: int) -> torch.Tensor:
    """Rows `start:stop` of a Megatron tensor in the dtype of the Hugging Face files; padding, rows beyond, is zero."""
    rows = torch.empty((stop - start, *tensor.shape[1:]), dtype=reader.tensors[tensor.sources[0].name].dtype)
    rows[max(tensor.shape[0] - start, 0) :] = 0
    for piece in pieces(tensor, start, stop):
        reader.read_rows(piece.source.name, piece.start, rows[piece.target : piece.target + piece.count])
    return rows


def checked_cast(rows: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    """Weights in another dtype, or as they are.

    Raises:
        UserError: beginning with `name`: they hold NaN or infinity, or do not fit into `dtype`.
    """
    cast = rows.to(dtype)
    if torch.isfinite(torch.stack(cast.aminmax())).all():  # a NaN is its tensor's minimum and maximum
        return cast
    if torch.isfinite(rows).all():
        raise UserError(f"{name} is too large for {dtype}; convert to bfloat16 or float32")
    raise UserError(f"{name} holds NaN or infinity; train or fetch the checkpoint again")


def read_chunk(
    reader: Reader, tensor: GlobalTensor, start: tuple[int, ...], shape: tuple[int, ...], dtype: torch.dtype
) -> torch.Tensor:
    """The chunk `[start : start + shape]` of a Megatron tensor, read from Hugging Face files; padding is zero.

    Raises:
        UserError: what was read holds NaN or infinity, or does not fit into `dtype`.
    """
    if len(shape) > 1 and shape[1] < tensor.shape[1]:
        (source,) = tensor.sources  # what TP cuts by columns is made of one tensor
        rows = torch.empty(shape, dtype=reader.tensors[source.name].dtype)
        reader.read_columns(source.name, start[0], start[1], rows)
    else:
        rows = read_rows(reader, tensor, start[0], start[0] + shape[0])
    names = ", ".join(source.name for source in tensor.sources)
    return checked_cast(rows, dtype, f"{reader.tensors[tensor.sources[0].name].path}: tensor {names}")


def place_chunk(
    chunk: torch.Tensor, tensor: GlobalTensor, start: tuple[int, ...], sources: dict[str, torch.Tensor]
) -> None:
    """Copy the chunk `[start : start + chunk.shape]` of a Megatron tensor to where it belongs in its Hugging Face
    tensors, given by name: the inverse of `read_chunk`. Padding of the vocabulary goes nowhere."""
    if chunk.ndim > 1 and chunk.shape[1] < tensor.shape[1]:
        (source,) = tensor.sources  # what TP cuts by columns is made of one tensor
        (row, column), (rows, columns) = start, chunk.shape
        sources[source.name][row : row + rows, column : column + columns].copy_(chunk)
        return
    for piece in pieces(tensor, start[0], start[0] + chunk.shape[0]):
        part = chunk[piece.target : piece.target + piece.count]
        sources[piece.source.name][piece.start : piece.start + piece.count].copy_(part)


def check_sources(model: Architecture, tensors: dict[str, TensorInfo], folder: Path) -> None:
    """Refuse a folder whose tensors are not the architecture's.

    Raises:
        UserError: naming the first tensor that is missing, has another shape or is not known.
    """
    expected = {source.name: source for tensor in global_tensors(model).values() for source in tensor.sources}
    for name, source in expected.items():
        if name not in tensors:
            raise UserError(f"{folder}: lacks tensor {name}, which a {model.name} of {model.layers} layers has")
        found = tensors[name]
        if found.shape != source.shape:
            raise UserError(
                f"{found.path}: tensor {name} has shape {list(found.shape)}; its config.json makes it "
                f"{list(source.shape)}"
            )
        if found.dtype not in families.DTYPES.values():
            raise UserError(
                f"{found.path}: tensor {name} has dtype {found.dtype}; supported are {', '.join(families.DTYPES)}"
            )
    for tensor in global_tensors(model).values():
        dtypes = {source.name: tensors[source.name].dtype for source in tensor.sources}
        if len(set(dtypes.values())) > 1:
            raise UserError(f"{folder}: {tensor.key} is made of tensors of several dtypes, {dtypes}; store them in one")
    for name in tensors:
        tied = model.tied and name == TIED_OUTPUT
        if name not in expected and not tied and not name.endswith("rotary_emb.inv_freq"):
            raise UserError(
                f"{tensors[name].path}: tensor {name} is not part of a {model.name}; its config does not fit"
            )


def stores_tied_output(reader: Reader, model: Architecture, folder: Path) -> bool:
    """Whether a tied model's folder holds an output layer all the same, equal to the embedding.

    Raises:
        UserError: it holds one that is not equal.
    """
    tensors, name, embedding = reader.tensors, TIED_OUTPUT, families.EMBEDDING.sources[0][0]
    if not model.tied or name not in tensors:
        return False
    shape, dtype = tensors[embedding].shape, tensors[embedding].dtype
    equal = (tensors[name].dtype, tensors[name].shape) == (dtype, shape)
    for start, stop in tensor_bytes.blocks(shape, dtype) if equal else ():
        output, embedded = (torch.empty((stop - start, *shape[1:]), dtype=dtype) for _ in range(2))
        reader.read_rows(name, start, output)
        reader.read_rows(embedding, start, embedded)
        equal = equal and torch.equal(output, embedded)
    if not equal:
        raise UserError(
            f"{folder / 'config.json'}: tie_word_embeddings: true, but {name} is not equal to {embedding}; set it to "
            f"false, or remove {name}"
        )
    return True


def sharded_tensors(chunks: list[Any]) -> list[Any]:
    """Megatron's own account of this rank's parameters: a `ShardedTensor` each (two for the SwiGLU pair).

    Each has its checkpoint key, its place in the global tensor and, as `.data`, a view of the parameter's memory.
    """
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

    found: dict[int, Any] = {}
    for chunk in chunks:
        state = chunk.sharded_state_dict(metadata=checkpoint_metadata())
        apply_factories(state)
        for value in nested_values(state):
            if isinstance(value, ShardedTensor):
                found[id(value)] = value
    return list(found.values())


CONTENT_METADATA = {
    "singleton_local_shards": True,
    "distrib_optim_sharding_type": "fully_reshardable",
    "chained_optim_avoid_prefix": True,
}
"""How Megatron is to lay out a checkpoint: a key for each layer, expert and half of the SwiGLU pair."""


def checkpoint_metadata() -> dict[str, Any]:
    """`CONTENT_METADATA` for `sharded_state_dict` on this rank."""
    from megatron.core import parallel_state

    return CONTENT_METADATA | {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}


@torch.no_grad()
def load_hf(chunks: list[Any], model: Architecture, folder: Path) -> None:
    """Fill this rank's model chunks from a Hugging Face folder, reading only what the rank holds.

    Raises:
        UserError: the folder's tensors are not the model's, or hold NaN.
    """
    tensors = global_tensors(model)
    with Reader(folder) as reader:
        check_sources(model, reader.tensors, folder)
        stores_tied_output(reader, model, folder)
        shards = sharded_tensors(chunks)
        for shard in track(shards, "read weights", len(shards), show=torch.distributed.get_rank() == 0):
            chunk = read_chunk(
                reader, tensors[shard.key], shard.global_offset, shard.local_shape, dtype=shard.data.dtype
            )
            shard.data.copy_(chunk)


def load_megatron(chunks: list[Any], folder: Path) -> None:
    """Fill this rank's model chunks from a torch_dist checkpoint, by Megatron's own load and in place.

    The checkpoint may be of another TP, PP and dtype. All ranks must call it.
    """
    from megatron.core import dist_checkpointing

    # one of Megatron's state dicts would do as well, but it also asks for what only a TE model has, and loads
    # the SwiGLU pair into a copy
    dist_checkpointing.load({str(index): shard for index, shard in enumerate(sharded_tensors(chunks))}, str(folder))

"""Hugging Face to Megatron-core and back: a block of rows at a time, then the proof, then the name.

Memory is that of a few blocks, whatever the model's size. What is written stands beside its place as `OUT.partial`
until every check has passed; then it is renamed and marked complete.
"""

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from qedmeg import device
from qedmeg.conversion import report
from qedmeg.conversion.report import Report
from qedmeg.conversion.stored import HuggingFaceModel, MegatronModel, StoredModel, nbytes
from qedmeg.conversion.verify import CHECKS, verify
from qedmeg.errors import DISK_FULL, UserError
from qedmeg.lineage import stages as lineage
from qedmeg.model import checkpoint_folder, families, weights
from qedmeg.model.checkpoint_folder import CheckpointInfo
from qedmeg.model.families import Architecture
from qedmeg.model.safetensors_file import Writer as SafetensorsWriter
from qedmeg.model.tensor_bytes import blocks
from qedmeg.model.torch_dist import NewTensor
from qedmeg.model.torch_dist import Writer as TorchDistWriter
from qedmeg.model.weights import GlobalTensor
from qedmeg.monitor.progress import bar

_MEGABYTE = 10**6

T = TypeVar("T")


def hf_to_megatron(
    hf: Path,
    out: Path,
    *,
    tp: int = 1,
    pp: int = 1,
    ep: int = 1,
    dtype: torch.dtype | None = None,
    checks: Collection[str] = CHECKS,
    overwrite: bool = False,
) -> Report:
    """Write the checkpoint folder `out` from a Hugging Face folder, laid out as `tp` × `pp` × `ep` ranks would save it.

    `dtype` None keeps each tensor's. Where a check finds a difference the folder stays `OUT.partial`, with its report.

    Raises:
        UserError: the folder is not a whole model, the sizes do not divide it, or `out` cannot be written.
    """
    with HuggingFaceModel(hf) as source:
        tensors = weights.global_tensors(source.model)
        plan = plan_checkpoint(source.model, lambda tensor: dtype or source.dtype(tensor), tp, pp, ep)

        def write(folder: Path) -> None:
            info = CheckpointInfo(
                architecture=source.model.name,
                dtype=_name(dtype or _main_dtype(source)),
                vocabulary=source.model.vocabulary,
                tp=tp,
                pp=pp,
                ep=ep,
            )
            checkpoint_folder.write_description(folder, info, hf)
            rounded = dtype is not None and any(source.dtype(tensor) != dtype for tensor in tensors.values())
            lineage.carry(hf, folder, rounded_to=_name(dtype) if dtype and rounded else None)
            with TorchDistWriter(folder, plan) as writer:
                for new, start, stop in _progress("write Megatron", [(new, new.shape, new.dtype) for new in plan]):
                    tensor = tensors[new.key]
                    rows = weights.checked_cast(source.read(tensor, start, stop), new.dtype, source.place(tensor))
                    writer.write_rows(new.key, start, rows)
                writer.finish(weights.CONTENT_METADATA)

        def read(folder: Path) -> MegatronModel:
            return MegatronModel(checkpoint_folder.read_unmarked(folder))

        return _convert("hf_to_megatron", source, out, write, read, nbytes(source, dtype), checks, overwrite)


def megatron_to_hf(megatron: Path, out: Path, *, checks: Collection[str] = CHECKS, overwrite: bool = False) -> Report:
    """Write the Hugging Face folder `out` from a checkpoint folder, each tensor in the dtype that it has there.

    Where a check finds a difference the folder stays `OUT.partial`, with its report.

    Raises:
        UserError: the checkpoint is not whole, or `out` cannot be written.
    """
    with MegatronModel(checkpoint_folder.read_checkpoint_folder(megatron)) as source:
        tensors = list(weights.global_tensors(source.model).values())

        def write(folder: Path) -> None:
            new = [(part.name, source.dtype(tensor), part.shape) for tensor in tensors for part in tensor.sources]
            writer = SafetensorsWriter(folder, new)
            steps = [(tensor, tensor.shape, source.dtype(tensor)) for tensor in tensors]
            for tensor, start, stop in _progress("write Hugging Face", steps):
                rows = weights.checked_cast(
                    source.read(tensor, start, stop), source.dtype(tensor), source.place(tensor)
                )
                for piece in weights.pieces(tensor, start, stop):
                    part = rows[piece.target : piece.target + piece.count]
                    writer.write_rows(piece.source.name, piece.start, part)
            writer.close()
            lineage.carry(megatron, folder)
            # last: without its config no program takes a folder for a model, whose files have their full length early
            checkpoint_folder.copy_hf_files(source.hf, folder)
            _write_dtype(folder / "config.json", _main_dtype(source))

        return _convert("megatron_to_hf", source, out, write, HuggingFaceModel, nbytes(source), checks, overwrite)


def plan_checkpoint(
    model: Architecture, dtype: Callable[[GlobalTensor], torch.dtype], tp: int, pp: int, ep: int
) -> list[NewTensor]:
    """Every tensor of a checkpoint, and which of the TP × EP × PP ranks (TP counting fastest) writes which part.

    Raises:
        UserError: the sizes do not divide the model.
    """
    device.prepare()
    from qedmeg import parallel  # needs Megatron-core, which is imported only after the device is prepared

    # sequence parallelism changes nothing on disk, but experts over both TP and EP are refused without it
    parallel.check(parallel.Parallelism(tp=tp, pp=pp, ep=ep, sp=tp > 1), model)
    stages = parallel.stage_layers(model.layers, pp)
    stage_of = {layer: stage for stage, layers in enumerate(stages) for layer in layers}
    plan = []
    for tensor in weights.global_tensors(model).values():
        first = tensor.key == families.EMBEDDING.key
        stage = (0 if first else pp - 1) if tensor.layer is None else stage_of[tensor.layer]
        expert_rank = tensor.expert * ep // model.experts.count if model.experts and tensor.expert is not None else 0
        shape = weights.stored_shape(model, tensor, tp)
        chunks = tuple(
            ((stage * ep + expert_rank) * tp + rank, *chunk)
            for rank, chunk in enumerate(weights.cut(shape, tensor.split, tp))
        )
        plan.append(NewTensor(tensor.key, dtype(tensor), shape, chunks))
    return plan


def _convert(
    kind: str,
    source: StoredModel,
    out: Path,
    write: Callable[[Path], None],
    read: Callable[[Path], StoredModel],
    size: int,
    checks: Collection[str],
    overwrite: bool,
) -> Report:
    if out.resolve() == source.path.resolve() or out.resolve() in source.path.resolve().parents:
        raise UserError(f"{out}: holds what is to be converted; give another folder to write")
    partial = checkpoint_folder.partial_folder(out, overwrite, size)
    try:
        started = time.monotonic()
        write(partial)
        checkpoint_folder.sync_folder(partial)
        seconds = {"write": time.monotonic() - started}
        with read(partial) as result:
            found = verify(source, result, checks)
        found = dataclasses.replace(found, kind=kind, second=str(out), seconds=seconds | found.seconds)
        report.write(found, partial, "report")
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise UserError(f"{out.parent}: no room was left while writing; make room and convert again") from None
        raise
    if found.equal:
        checkpoint_folder.publish(partial, out)
    return found


def _progress(label: str, steps: Sequence[tuple[T, tuple[int, ...], torch.dtype]]) -> Iterator[tuple[T, int, int]]:
    """Every block of rows of every (item, shape, dtype), with a bar in megabytes."""
    total = sum(math.prod(shape) * dtype.itemsize for _, shape, dtype in steps)
    with bar(label, total // _MEGABYTE) as progress:
        done = 0
        for item, shape, dtype in steps:
            for start, stop in blocks(shape, dtype):
                yield item, start, stop
                done += (stop - start) * math.prod(shape[1:]) * dtype.itemsize
                if done // _MEGABYTE > progress.done:
                    progress.advance(done // _MEGABYTE - progress.done, note="MB")


def _main_dtype(stored: StoredModel) -> torch.dtype:
    """The dtype of the embedding, by which a model is known; norms may be kept in another."""
    return stored.dtype(weights.global_tensors(stored.model)[families.EMBEDDING.key])


def _write_dtype(path: Path, dtype: torch.dtype) -> None:
    """Let a config.json say `dtype`; it is left as it is where it does already."""
    config, name = json.loads(path.read_text()), _name(dtype)
    fields = [field for field in ("dtype", "torch_dtype") if field in config] or ["dtype"]
    if any(config.get(field) != name for field in fields):
        path.write_text(json.dumps(config | dict.fromkeys(fields, name), indent=2) + "\n")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

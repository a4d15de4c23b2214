"""vLLM's side of weight transfer over the host's memory, as an engine for vLLM's weight-transfer API.

It also mends what vLLM 0.32 leaves stale on CPUs, where layers keep their weights in packed copies.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import layerwise
from vllm.model_executor.model_loader.reload.layerwise import (
    finalize_layerwise_reload,
    get_layerwise_info,
    initialize_layerwise_reload,
)

from qedmeg import device
from qedmeg.model.export import ExportedTensor, lay_out
from qedmeg.rollout.gloo_link import EngineLink, SharedMemory


@dataclass
class GlooInit(WeightTransferInitInfo):
    """Where the trainer waits for the workers, and how long either waits for the other."""

    master_address: str
    master_port: int
    world_size: int
    seconds: float
    memory: dict[str, Any]
    """The fields of `SharedMemory`."""


@dataclass
class GlooUpdate(WeightTransferUpdateInfo):
    """The tensors of an update, in the order in which they come, and how many come together."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    buckets: list[int]


class GlooWeightTransferEngine(WeightTransferEngine[GlooInit, GlooUpdate]):
    """Receives weights in a worker and loads them, layer by layer, as vLLM's own nccl engine does."""

    init_info_cls = GlooInit
    update_info_cls = GlooUpdate

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._link: EngineLink | None = None
        self._on_gpu = self.device.type == "cuda"
        if not self._on_gpu:
            device.keep_freed_memory()
            _share_tied_output(self.model)
            _take_views()

    def init_transfer_engine(self, init_info: GlooInit) -> None:
        self.shutdown()
        info = init_info
        config = self.parallel_config
        rank = 1 + config.data_parallel_index * config.world_size + config.rank
        where = info.master_address, info.master_port
        self._link = EngineLink(*where, rank, info.world_size, info.seconds, SharedMemory(**info.memory))
        if self._on_gpu:
            self._link.pin()

    def start_weight_update(self) -> None:
        if self._link is None:
            raise RuntimeError("no trainer has connected to this engine since it was started")
        if not self._on_gpu:
            _forget_moe_kernels(self.model)
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        if self._on_gpu:
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: GlooUpdate) -> None:
        assert self._link is not None
        tensors = [
            ExportedTensor(name, getattr(torch, dtype), tuple(shape))
            for name, dtype, shape in zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True)
        ]
        try:
            self._link.restart()
            self.model.load_weights(self._stream(tensors, update_info.buckets))
        except BaseException:
            # leaves a model that the next update can begin with, and tells the trainer at once
            finalize_layerwise_reload(self.model, self.model_config)
            self.shutdown()
            raise

    def _stream(self, tensors: Sequence[ExportedTensor], counts: Sequence[int]) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors, `counts` of them to a buffer. A buffer is received when the first of its tensors is asked
        for: those before it have then been loaded, or are kept for the rest of their layer."""
        assert self._link is not None
        layers = [get_layerwise_info(layer) for layer in self.model.modules()]
        first = 0
        for count in counts:
            bucket = tensors[first : first + count]
            first += count
            buffer = self._link.receive(sum(tensor.bytes for tensor in bucket))
            if self._on_gpu:
                buffer = buffer.to(self.device)
                self._link.release()
            yield from lay_out(bucket, buffer)
            if not self._on_gpu:
                _copy_what_is_kept(layers, buffer)
                self._link.release()

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        if self._link is not None:
            self._link.close()
        self._link = None


def _share_tied_output(model: torch.nn.Module) -> None:
    """Let the output layer of tied embeddings multiply by the embedding's packed copy: an update packs that anew, and
    not the output layer's own, which no tensor is loaded into."""
    output, embedding = getattr(model, "lm_head", None), getattr(getattr(model, "model", None), "embed_tokens", None)
    if output is None or embedding is None or output is embedding or output.weight is not embedding.weight:
        return
    output.cpu_linear = lambda x, weight, bias: embedding.cpu_linear(x, weight, bias)


def _forget_moe_kernels(model: torch.nn.Module) -> None:
    """Let the experts' weights be packed again: vLLM skips it where a kernel is already there."""
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None


def _copy_what_is_kept(layers: Sequence[Any], buffer: torch.Tensor) -> None:
    """Copy the tensors of a buffer that vLLM keeps until the rest of their layer has come: the buffer is used again."""
    memory = buffer.untyped_storage().data_ptr()
    for layer in layers:
        for _, kept in layer.loaded_weights:
            for name, value in kept.arguments.items():
                if isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() == memory:
                    kept.arguments[name] = value.clone()


def _take_views() -> None:
    """Let vLLM pack weights from where they were received: it would make a copy of each first, to throw it away."""
    materialize = layerwise.materialize_layer

    def materialize_layer(layer: Any, info: Any) -> None:
        if hasattr(layer, "cpu_linear"):
            layer.cpu_linear = None  # its packed weight, in whose memory the new one goes
        for name, parameter in list(layer._parameters.items()):
            view = _as_received(parameter, [kept.arguments for of, kept in info.loaded_weights if of == name])
            if view is not None:
                setattr(layer, name, view)
        materialize(layer, info)

    if materialize.__module__ != __name__:  # not ours already
        layerwise.materialize_layer = materialize_layer


def _as_received(parameter: torch.Tensor | None, parts: Sequence[dict[str, Any]]) -> torch.Tensor | None:
    """A parameter as a view of the buffer that all of it came in, in the right order; None where it did not. Loading it
    is then a copy of memory to itself, which torch leaves out."""
    tensors = [part["loaded_weight"] for part in parts if isinstance(part.get("loaded_weight"), torch.Tensor)]
    if parameter is None or not parameter.is_meta or not tensors or len(tensors) < len(parts):
        return None
    order = [part.get("loaded_shard_id") for part in parts]
    if order not in ([None], ["q", "k", "v"], [*range(len(order))]):
        return None
    start = first = tensors[0].data_ptr()
    for tensor in tensors:
        if tensor.data_ptr() != start or tensor.dtype != parameter.dtype or not tensor.is_contiguous():
            return None
        start += tensor.nbytes
    if start - first != parameter.nbytes or not parameter.is_contiguous():
        return None
    view = tensors[0].as_strided(parameter.shape, parameter.stride())
    view.__class__ = parameter.__class__
    view.__dict__ = parameter.__dict__.copy()
    return view

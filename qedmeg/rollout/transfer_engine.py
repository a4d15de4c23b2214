"""vLLM's side of weight transfer: the engine `qedmeg` for vLLM's weight-transfer API, and what a worker tells.

vLLM's workers import this module by `worker_extension_cls`, which registers the engine in every process that needs it.
"""

from typing import Any

import torch
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from qedmeg.rollout.gloo_engine import GlooWeightTransferEngine

BACKEND = "qedmeg"


class EitherWay(WeightTransferEngine[WeightTransferInitInfo, WeightTransferUpdateInfo]):
    """Receives weights in the way that the trainer offers: by vLLM's own nccl engine, or over the host's memory, as
    between two processes without a GPU or on the same one, which NCCL refuses."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._nccl = NCCLWeightTransferEngine(*arguments)
        self._gloo = GlooWeightTransferEngine(*arguments)
        self._way: WeightTransferEngine[Any, Any] = self._gloo

    def parse_init_info(self, init_dict: dict[str, Any]) -> WeightTransferInitInfo:
        self._way.shutdown()
        self._way = self._gloo if "memory" in init_dict else self._nccl
        parsed: WeightTransferInitInfo = self._way.parse_init_info(init_dict)
        return parsed

    def init_transfer_engine(self, init_info: WeightTransferInitInfo) -> None:
        self._way.init_transfer_engine(init_info)

    def start_weight_update(self) -> None:
        self._way.start_weight_update()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._way.update_weights(update_info)

    def receive_weights(self, update_info: WeightTransferUpdateInfo) -> None:
        self._way.receive_weights(update_info)

    def finish_weight_update(self) -> None:
        self._way.finish_weight_update()

    def shutdown(self) -> None:
        self._way.shutdown()


class TransferWorker:
    """vLLM's `worker_extension_cls`."""

    device: torch.device  # the worker's own

    def gpus(self) -> list[str]:
        """The UUID of the GPU that this worker computes on, or nothing."""
        return [str(torch.cuda.get_device_properties(self.device).uuid)] if self.device.type == "cuda" else []


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, EitherWay)

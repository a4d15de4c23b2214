"""The smallest gloo engine for vLLM's weight-transfer API."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import BroadcastOptions, PrefixStore, ProcessGroupGloo, TCPStore
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload


def join(rank: int, port: int) -> Any:
    seconds = timedelta(seconds=60)
    store = TCPStore("127.0.0.1", port, 2, is_master=rank == 0, timeout=seconds, wait_for_workers=False)
    return ProcessGroupGloo(PrefixStore("weights", store), rank, 2, seconds)


def broadcast(group: Any, tensor: torch.Tensor) -> None:
    options = BroadcastOptions()
    options.rootRank = options.rootTensor = 0
    group.broadcast([tensor], options).wait()


@dataclass
class Init(WeightTransferInitInfo):
    port: int


@dataclass
class Update(WeightTransferUpdateInfo):
    names: list
    shapes: list


class SpikeEngine(WeightTransferEngine[Init, Update]):
    init_info_cls, update_info_cls = Init, Update

    def init_transfer_engine(self, info: Init) -> None:
        self.group = join(1, info.port)

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, info: dict) -> None:
        self.receive_weights(self.parse_update_info(info))

    def receive_weights(self, info: Update) -> None:
        def tensors() -> Any:
            for name, shape in zip(info.names, info.shapes, strict=True):
                tensor = torch.empty(shape)
                broadcast(self.group, tensor)
                yield name, tensor

        self.model.load_weights(tensors())

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        self.group = None


class Worker:
    pass


if "gloo" not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine("gloo", SpikeEngine)

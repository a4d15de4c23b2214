"""How a model is spread over processes: tensor, pipeline, context, expert and data parallelism."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from qedmeg import device
from qedmeg.errors import UserError
from qedmeg.model.families import Architecture


@dataclass(frozen=True)
class Parallelism:
    """Sizes of the process groups. Data parallelism takes what is left of the world."""

    tp: int = 1
    """Tensor parallel: ranks that share each matrix."""
    pp: int = 1
    """Pipeline parallel: stages that share the layers."""
    vpp: int = 1
    """Virtual pipeline: model chunks on each pipeline stage, interleaved."""
    cp: int = 1
    """Context parallel: ranks that share each sequence."""
    ep: int = 1
    """Expert parallel: ranks that share the experts of a mixture-of-experts layer."""
    sp: bool = False
    """Sequence parallel: between the matrices, TP ranks also share the sequence."""

    @property
    def model_ranks(self) -> int:
        """Ranks that hold one copy of the model between them."""
        return self.tp * self.pp * self.cp

    def document_multiple(self) -> int:
        """What each document's length must be a multiple of: context parallelism cuts it into 2 × CP chunks."""
        return 2 * self.cp if self.cp > 1 else 1

    def batch_multiple(self) -> int:
        """What a packed batch's length must be a multiple of."""
        return math.lcm(self.document_multiple(), self.cp * self.tp if self.sp else 1)


def check(parallelism: Parallelism, model: Architecture, world_size: int | None = None) -> None:
    """Refuse what does not divide.

    Raises:
        UserError: naming the setting, its value and the model's.
    """
    tp, pp, vpp, cp, ep = parallelism.tp, parallelism.pp, parallelism.vpp, parallelism.cp, parallelism.ep
    for name, value in (("tp", tp), ("pp", pp), ("vpp", vpp), ("cp", cp), ("ep", ep)):
        if value < 1:
            raise UserError(f"parallel.{name}: {value} is not a size; it must be 1 or more")
    if model.heads % tp:
        raise UserError(f"parallel.tp: {tp} does not divide the model's {model.heads} attention heads")
    if model.kv_heads % tp and tp % model.kv_heads:
        raise UserError(f"parallel.tp: {tp} neither divides nor is a multiple of the model's {model.kv_heads} KV heads")
    widths = [("intermediate_size", model.ffn_hidden)] if model.experts is None else []
    if model.experts is not None:
        widths.append(("moe_intermediate_size", model.experts.hidden))
    for field, width in widths:
        if width % tp:
            raise UserError(f"parallel.tp: {tp} does not divide the model's {field} of {width}")
    if model.layers < pp * vpp:
        raise UserError(f"parallel.pp: {pp} stages × {vpp} chunks need as many layers; the model has {model.layers}")
    if vpp > 1 and pp == 1:
        raise UserError(f"parallel.vpp: {vpp} needs pipeline stages to interleave; set parallel.pp to 2 or more")
    if model.experts is None and ep > 1:
        raise UserError(f"parallel.ep: {ep}, but {model.name} has no experts; it must be 1")
    if model.experts is not None and model.experts.count % ep:
        raise UserError(f"parallel.ep: {ep} does not divide the model's {model.experts.count} experts")
    if model.experts is not None and tp > 1 and not parallelism.sp:
        # Megatron-core refuses to train them without.
        raise UserError(f"parallel.sp: false, but {model.name} has experts, which need it for tp {tp}; set it to true")
    if parallelism.sp and tp == 1:
        raise UserError("parallel.sp: true shares the sequence over TP ranks, and parallel.tp is 1; set it to false")
    if world_size is not None and world_size % parallelism.model_ranks:
        raise UserError(
            f"parallel: tp {tp} × pp {pp} × cp {cp} = {parallelism.model_ranks} ranks a model copy do not divide the "
            f"{world_size} processes that were started; change --nproc-per-node"
        )
    if world_size is not None and (world_size // pp) % (ep * tp):
        raise UserError(f"parallel.ep: {ep} × tp {tp} does not divide the {world_size // pp} ranks of a pipeline stage")


def stage_layers(layers: int, stages: int) -> list[range]:
    """The layers of each pipeline stage (or virtual stage), in order: as even as can be, the first ones taking more.

    >>> stage_layers(5, 2)
    [range(0, 3), range(3, 5)]
    """
    small, more = divmod(layers, stages)
    bounds = [stage * small + min(stage, more) for stage in range(stages + 1)]
    return [range(start, end) for start, end in itertools.pairwise(bounds)]


def initialize(parallelism: Parallelism, seed: int) -> None:
    """Join the world and make Megatron-core's process groups; seed its random states."""
    device.init_process_group()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallelism.tp,
        pipeline_model_parallel_size=parallelism.pp,
        virtual_pipeline_model_parallel_size=parallelism.vpp if parallelism.vpp > 1 else None,
        context_parallel_size=parallelism.cp,
        expert_model_parallel_size=parallelism.ep,
        create_gloo_process_groups=True,
    )
    tensor_parallel.model_parallel_cuda_manual_seed(seed)


def destroy() -> None:
    """Undo `initialize`, so that another topology can be set up in the same processes."""
    parallel_state.destroy_model_parallel()


def data_rank() -> int:
    """This process's place among those that each train on other documents."""
    rank: int = parallel_state.get_data_parallel_rank()
    return rank


def data_size() -> int:
    """How many processes each train on other documents."""
    size: int = parallel_state.get_data_parallel_world_size()
    return size


def same_error(action: Callable[[], None]) -> None:
    """Run `action` on every rank; where it fails on some, all raise what the first of them raised.

    A rank that fails alone leaves the others waiting for it, and only the first rank of a machine prints its error.

    Raises:
        UserError: any rank's.
    """
    message = None
    try:
        action()
    except UserError as error:
        message = str(error)
    messages: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(messages, message)
    first = next((message for message in messages if message is not None), None)
    if first is not None:
        raise UserError(first)


def from_last_stage(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` as the last pipeline stage has it, on all stages; shapes must be equal."""
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        source = parallel_state.get_pipeline_model_parallel_last_rank()
        dist.broadcast(tensor, source, group=parallel_state.get_pipeline_model_parallel_group())
    return tensor

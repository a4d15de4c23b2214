"""What vLLM does on a CPU in a longer way than it need, done in a shorter one, by vLLM's own registries and options.

RMSNorm: vLLM's C++ kernels, which it builds for CPUs and calls on GPUs alone. Scheduling: a decoding step mostly puts a
token into a block that has room for it, and there is nothing to allocate (tests/benchmarks/cpu_engine.py).
"""

from typing import Any

import torch
from vllm import ir
from vllm.platforms import current_platform
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.request import Request

from qedmeg.rollout.engine import CPU_KERNELS

current_platform.import_kernels()


def _fits(x: torch.Tensor, weight: torch.Tensor | None, variance_size: int | None) -> bool:
    """Whether the kernels take it."""
    return variance_size is None and weight is not None and weight.dtype == x.dtype


@ir.ops.rms_norm.register_impl(
    CPU_KERNELS, supports_args=lambda x, weight, epsilon, variance_size=None: _fits(x, weight, variance_size)
)
def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
) -> torch.Tensor:
    """x / rms(x) · weight, over the last dimension."""
    output = torch.empty(x.shape, dtype=x.dtype)
    torch.ops._C.rms_norm(output, x.contiguous(), weight, epsilon)
    return output


@ir.ops.fused_add_rms_norm.register_impl(
    CPU_KERNELS,
    supports_args=lambda x, x_residual, weight, epsilon, variance_size=None: _fits(x, weight, variance_size),
    inplace=True,
)
def fused_add_rms_norm(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm of x + x_residual, in x, and that sum, in x_residual."""
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual


class DecodeScheduler(Scheduler):
    """vLLM's `scheduler_cls`, of engines without speculation."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        groups, manager = self.kv_cache_config.kv_cache_groups, self.kv_cache_manager
        if len(groups) != 1 or type(groups[0].kv_cache_spec) is not FullAttentionSpec:
            return  # some layers let go of keys and values that others keep
        allocate, nothing = manager.allocate_slots, manager.empty_kv_cache_blocks
        block_size = groups[0].kv_cache_spec.block_size

        def allocate_slots(
            request: Request, num_new_tokens: int, *, num_lookahead_tokens: int = 0, **more: Any
        ) -> KVCacheBlocks | None:
            place = request.num_computed_tokens % block_size
            # a block's first token needs the block; with its last one it enters the prefix cache
            if num_new_tokens == 1 and not num_lookahead_tokens and not more and 0 < place < block_size - 1:
                return nothing
            return allocate(request, num_new_tokens, num_lookahead_tokens=num_lookahead_tokens, **more)

        manager.allocate_slots = allocate_slots

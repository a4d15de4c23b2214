"""What vLLM does on a CPU in a longer way than it need, done in a shorter one, by vLLM's own registries and options.

RMSNorm: vLLM's C++ kernels, which it builds for CPUs and calls on GPUs alone. Scheduling: a decoding step mostly puts a
token into a block that has room for it, and nobody waits for that token alone (tests/benchmarks/cpu_engine.py).
"""

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from vllm import ir
from vllm.platforms import current_platform
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

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
    """vLLM's `scheduler_cls`, of engines that neither speculate nor hand keys and values on.

    What a request has generated is given out when it ends: vLLM makes half a dozen objects of each output, and looks at
    each in as many places.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._held: defaultdict[str, list[tuple[int, int, LogprobsLists | None]]] = defaultdict(list)
        """Of each request the tokens not given out: the token, and its row in the logprobs of its step."""
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

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Take a step's tokens; vLLM's own way for requests that may end with theirs."""
        places, sampled = model_runner_output.req_id_to_index, model_runner_output.sampled_token_ids
        left: dict[str, int] = {}
        for name, scheduled in scheduler_output.num_scheduled_tokens.items():
            request, place = self.requests.get(name), places[name]
            new = sampled[place] if sampled else []
            if request is None or len(new) != 1 or self._may_end(request, new[0]):
                left[name] = scheduled
                continue
            request.num_in_flight_tokens -= scheduled
            request.append_output_token_ids(new[0])
            self._held[name].append((new[0], place, model_runner_output.logprobs))
        outputs = super().update_from_output(replace(scheduler_output, num_scheduled_tokens=left), model_runner_output)
        for of_client in outputs.values():
            for output in of_client.outputs:
                self._give(output)
        return outputs

    def finish_requests(self, *arguments: Any, **options: Any) -> list[Request]:
        """As vLLM's, of requests that are given up."""
        finished: list[Request] = super().finish_requests(*arguments, **options)
        for request in finished:
            self._held.pop(request.request_id, None)
        return finished

    def release(self) -> list[EngineCoreOutput]:
        """What is not given out yet, of all requests."""
        outputs = [EngineCoreOutput(name, []) for name in self._held]
        for output in outputs:
            self._give(output)
        return outputs

    def _may_end(self, request: Request, token: int) -> bool:
        """Whether the request may end with this token, or is one that vLLM has more to do for."""
        asked = request.sampling_params
        return (
            asked is None
            or request.status != RequestStatus.RUNNING
            or request.num_stale_output_tokens > 0
            or request.use_structured_output
            or asked.prompt_logprobs is not None
            or asked.repetition_detection is not None
            or token == asked.eos_token_id
            or token in (asked.stop_token_ids or ())
            or request.num_output_tokens + 1 >= request.max_tokens
            or request.num_tokens + 1 >= self.max_model_len
        )

    def _give(self, output: EngineCoreOutput) -> None:
        """Put what is held of the output's request before it."""
        held = self._held.pop(output.request_id, [])
        if not held:
            return
        output.new_token_ids = [*(token for token, *_ in held), *output.new_token_ids]
        parts = [lists.slice_request(place, 1) for _, place, lists in held if lists is not None]
        if parts:
            parts += [output.new_logprobs] if output.new_logprobs is not None else []
            columns = zip(*(part[:3] for part in parts), strict=True)
            output.new_logprobs = LogprobsLists(*map(np.concatenate, columns))

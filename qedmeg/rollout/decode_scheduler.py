"""vLLM's scheduler for rollouts on a CPU, where its Python takes as long as the model (tests/benchmarks/cpu_engine.py).

A decoding step mostly puts a token into a block of each running request that has room for it, and nobody waits for that
token alone.
"""

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus


class DecodeScheduler(Scheduler):
    """vLLM's `scheduler_cls`, of engines of one process that neither speculate nor hand keys and values on.

    A step in which all requests decode is put together here, any other by vLLM. What a request has generated is given
    out when it ends: vLLM makes half a dozen objects of each output, and looks at each in as many places.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._held: defaultdict[str, list[tuple[int, int, LogprobsLists | None]]] = defaultdict(list)
        """Of each request the tokens not given out: the token, and its row in the logprobs of its step."""
        self._ends: dict[str, tuple[frozenset[int], int]] = {}
        """Of each request the tokens that may end it, and how many it may have in all. Of those that vLLM has more to
        do for, any token may be the last."""
        groups = self.kv_cache_config.kv_cache_groups
        # else some layers let go of keys and values that others keep
        self._has_one_cache = len(groups) == 1 and type(groups[0].kv_cache_spec) is FullAttentionSpec

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """What is computed next."""
        needing = self._only_decode()
        if needing is None:
            return super().schedule(throttle_prefills)
        self.current_step += 1
        self.kv_cache_manager.new_step_starts()
        blocks: list[tuple[list[int], ...] | None] = [None] * len(self.running)
        for place in needing:
            found = self.kv_cache_manager.allocate_slots(self.running[place], 1)
            blocks[place] = found.get_block_ids(allow_none=True)
        names = [request.request_id for request in self.running]
        computed = [request.num_computed_tokens for request in self.running]
        for request in self.running:
            request.num_computed_tokens += 1
            request.num_in_flight_tokens += 1
        self.prev_step_scheduled_req_ids.clear()
        self.prev_step_scheduled_req_ids.update(names)
        output = SchedulerOutput(
            scheduled_new_reqs=[],
            scheduled_cached_reqs=CachedRequestData(
                req_ids=names,
                resumed_req_ids=set(),
                new_token_ids=[],
                all_token_ids={},
                new_block_ids=blocks,
                num_computed_tokens=computed,
                num_output_tokens=[len(request._output_token_ids) for request in self.running],
            ),
            num_scheduled_tokens=dict.fromkeys(names, 1),
            total_num_scheduled_tokens=len(names),
            scheduled_spec_decode_tokens={},
            scheduled_encoder_inputs={},
            preempted_req_ids=self.reset_preempted_req_ids,
            finished_req_ids=self.finished_req_ids,
            free_encoder_mm_hashes=[],
            new_block_ids_to_zero=self._get_new_block_ids_to_zero(),
        )
        self.finished_req_ids: set[str] = set()  # not cleared, since the output holds it
        self.reset_preempted_req_ids: set[str] = set()
        return output

    def _only_decode(self) -> list[int] | None:
        """The places of the running requests that vLLM's block manager has something to do for, where all there is to
        compute is one token of each running request; None where there is more to it."""
        if (
            not self._has_one_cache
            or self.waiting
            or self.kv_holding_waiting
            or self._pause_state != PauseState.UNPAUSED
            or not 0 < len(self.running) <= self.max_num_scheduled_tokens
            or not self.prev_step_scheduled_req_ids.issuperset(request.request_id for request in self.running)
        ):
            return None
        needing, begun, last = [], 0, self.block_size - 1
        for place, request in enumerate(self.running):
            if len(request._all_token_ids) != request.num_computed_tokens + 1 or request.spec_token_ids:
                return None
            within = request.num_computed_tokens % self.block_size
            if within == 0 or within == last:  # a block begins, or is complete and enters the prefix cache
                needing.append(place)
                begun += within == 0
        return needing if begun <= self.kv_cache_manager.block_pool.get_num_free_blocks() else None

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Take a step's tokens; vLLM's own way for requests that may end with theirs."""
        places, sampled = model_runner_output.req_id_to_index, model_runner_output.sampled_token_ids
        logprobs = model_runner_output.logprobs
        left: dict[str, int] = {}
        for name, scheduled in scheduler_output.num_scheduled_tokens.items():
            request, place = self.requests.get(name), places[name]
            new = sampled[place] if sampled else []
            if request is None or len(new) != 1 or self._may_end(request, new[0]):
                left[name] = scheduled
                continue
            request.num_in_flight_tokens -= scheduled
            if (len(request._all_token_ids) + 1) % self.hash_block_size:
                request._output_token_ids.append(new[0])
                request._all_token_ids.append(new[0])
            else:  # which hashes the block
                request.append_output_token_ids(new[0])
            self._held[name].append((new[0], place, logprobs))
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
            self._ends.pop(request.request_id, None)
        return finished

    def release(self) -> list[EngineCoreOutput]:
        """What is not given out yet, of all requests."""
        outputs = [EngineCoreOutput(name, []) for name in self._held]
        for output in outputs:
            self._give(output)
        return outputs

    def _may_end(self, request: Request, token: int) -> bool:
        """Whether the request may end with this token, or is one that vLLM has more to do for."""
        name = request.request_id
        ending, most = self._ends.get(name) or self._ends.setdefault(name, _end(request, self.max_model_len))
        return (
            token in ending
            or len(request._all_token_ids) + 1 >= most
            or request.status is not RequestStatus.RUNNING
            or request.num_stale_output_tokens > 0
        )

    def _give(self, output: EngineCoreOutput) -> None:
        """Put what is held of the output's request before it."""
        self._ends.pop(output.request_id, None)
        held = self._held.pop(output.request_id, [])
        if not held:
            return
        output.new_token_ids = [*(token for token, *_ in held), *output.new_token_ids]
        if held[0][2] is None:
            return
        ids, values, ranks = zip(*((of[0][row], of[1][row], of[2][row]) for _, row, of in held if of), strict=True)
        columns: tuple[np.ndarray, ...] = (np.array(ids), np.array(values), np.array(ranks))
        if (last := output.new_logprobs) is not None:
            columns = tuple(np.concatenate(pair) for pair in zip(columns, last[:3], strict=True))
        output.new_logprobs = LogprobsLists(*columns)


def _end(request: Request, longest: int) -> tuple[frozenset[int], int]:
    asked = request.sampling_params
    if (
        asked is None
        or request.use_structured_output
        or asked.prompt_logprobs is not None
        or asked.repetition_detection is not None
    ):
        return frozenset(), 0
    ending = {*(asked.stop_token_ids or ()), *(() if asked.eos_token_id is None else (asked.eos_token_id,))}
    return frozenset(ending), min(request.num_prompt_tokens + request.max_tokens, longest)

"""vLLM's scheduler for rollouts on a CPU, where its Python takes as long as the model (tests/benchmarks/cpu_engine.py).

A decoding step mostly puts a token into a block of each running request that has room for it, and nobody waits for that
token alone: such steps are put together here, many tokens at a time (`decode_worker`).
"""

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from qedmeg.rollout.decode_worker import Burst, BurstOutput, is_plain, takes_bursts

BURST = 16
"""Most tokens of a request that are decoded before anything else is looked at, such as a pause."""


@dataclass
class _Held:
    """What a request has generated that is not given out yet."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """Of each token, where they were asked for."""


@dataclass(frozen=True)
class _End:
    """When a request ends."""

    tokens: frozenset[int]
    """With one of these."""
    most: int
    """With so many tokens in all. 0: vLLM has more to do for it, and any token may be its last."""
    plain: bool
    """Whether it may be part of a burst."""


class DecodeScheduler(Scheduler):
    """vLLM's `scheduler_cls`, of engines of one process that neither speculate nor hand keys and values on.

    A step in which all requests decode is put together here, any other by vLLM. What a request has generated is given
    out when it ends: vLLM makes half a dozen objects of each output, and looks at each in as many places.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._held: defaultdict[str, _Held] = defaultdict(_Held)
        self._ends: dict[str, _End] = {}
        groups = self.kv_cache_config.kv_cache_groups
        # else some layers let go of keys and values that others keep
        self._has_one_cache = len(groups) == 1 and type(groups[0].kv_cache_spec) is FullAttentionSpec
        self._takes_bursts = self._has_one_cache and takes_bursts(self.vllm_config)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """What is computed next."""
        if not self._only_decode():
            return super().schedule(throttle_prefills)
        ends = [self._end(request) for request in self.running]
        length = BURST if self._takes_bursts and all(end.plain for end in ends) else 1
        needing = self._needing(length)
        if needing is None:
            return super().schedule(throttle_prefills)
        self.current_step += 1
        self.kv_cache_manager.new_step_starts()
        blocks: list[tuple[list[int], ...] | None] = [None] * len(self.running)
        for place in needing:
            found = self.kv_cache_manager.allocate_slots(self.running[place], 1, num_lookahead_tokens=length - 1)
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
        if length > 1:
            left = [end.most - len(request._all_token_ids) for end, request in zip(ends, self.running, strict=True)]
            output = Burst(
                **vars(output),
                most=dict(zip(names, (min(length, most) for most in left), strict=True)),
                ending=dict(zip(names, (end.tokens for end in ends), strict=True)),
            )
        self.finished_req_ids: set[str] = set()  # not cleared, since the output holds it
        self.reset_preempted_req_ids: set[str] = set()
        return output

    def _only_decode(self) -> bool:
        """Whether all there is to compute are tokens of the running requests that follow their last."""
        return (
            self._has_one_cache
            and not self.waiting
            and not self.kv_holding_waiting
            and self._pause_state == PauseState.UNPAUSED
            and 0 < len(self.running) <= self.max_num_scheduled_tokens
            and self.prev_step_scheduled_req_ids.issuperset(request.request_id for request in self.running)
            and all(
                len(request._all_token_ids) == request.num_computed_tokens + 1 and not request.spec_token_ids
                for request in self.running
            )
        )

    def _needing(self, length: int) -> list[int] | None:
        """The places of the running requests that vLLM's block manager has something to do for before they decode
        `length` tokens: a block begins, or one may be complete and enter the prefix cache. None where it has too few
        blocks."""
        needing, begun, size = [], 0, self.block_size
        for place, request in enumerate(self.running):
            within = request.num_computed_tokens % size
            if within < length or within + length >= size:  # the last burst may have filled a block, or this one does
                needing.append(place)
                begun += within == 0 or within + length > size
        return needing if begun <= self.kv_cache_manager.block_pool.get_num_free_blocks() else None

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Take a step's tokens; vLLM's own way for requests that may end with theirs."""
        places, sampled = model_runner_output.req_id_to_index, model_runner_output.sampled_token_ids
        logprobs = model_runner_output.logprobs
        told = None if logprobs is None else logprobs.logprobs[:, 0].tolist()
        further = model_runner_output.more if isinstance(model_runner_output, BurstOutput) else {}
        left: dict[str, int] = {}
        for name, scheduled in scheduler_output.num_scheduled_tokens.items():
            request, place = self.requests.get(name), places[name]
            new = sampled[place] if sampled else []
            if request is None or len(new) != 1:
                left[name] = scheduled
                continue
            held, values = self._held[name], [] if told is None else [told[place]]
            if name in further:
                new, values = [*new, *further[name][0]], [*values, *further[name][1]]
                request.num_computed_tokens += len(new) - 1
            if self._may_end(request, new):  # with the last of them
                left[name] = scheduled
                sampled[place] = [new.pop()]
                if logprobs is not None:
                    logprobs.logprobs[place, 0] = values.pop()
                    logprobs.logprob_token_ids[place, 0] = sampled[place][0]
            else:
                request.num_in_flight_tokens -= scheduled
            if new:
                held.tokens += new
                held.logprobs += values
                self._append(request, new)
        outputs = super().update_from_output(replace(scheduler_output, num_scheduled_tokens=left), model_runner_output)
        for of_client in outputs.values():
            for output in of_client.outputs:
                self._give(output)
        return outputs

    def _append(self, request: Request, tokens: list[int]) -> None:
        if len(request._all_token_ids) % self.hash_block_size + len(tokens) >= self.hash_block_size:
            request.append_output_token_ids(tokens)  # which hashes the block
        else:
            request._output_token_ids += tokens
            request._all_token_ids += tokens

    def finish_requests(self, *arguments: Any, **options: Any) -> list[Request]:
        """As vLLM's, of requests that are given up."""
        finished: list[Request] = super().finish_requests(*arguments, **options)
        for request in finished:
            self._held.pop(request.request_id, None)
            self._ends.pop(request.request_id, None)
        return finished

    def release(self) -> list[EngineCoreOutput]:
        """What is not given out yet, of all requests."""
        outputs = [EngineCoreOutput(name, []) for name, held in self._held.items() if held.tokens]
        for output in outputs:
            self._give(output)
        return outputs

    def _end(self, request: Request) -> _End:
        name = request.request_id
        return self._ends.get(name) or self._ends.setdefault(name, _end(request, self.max_model_len))

    def _may_end(self, request: Request, new: list[int]) -> bool:
        """Whether the request may end with the last of these tokens, or is one that vLLM has more to do for."""
        end = self._end(request)
        return (
            new[-1] in end.tokens
            or len(request._all_token_ids) + len(new) >= end.most
            or request.status is not RequestStatus.RUNNING
            or request.num_stale_output_tokens > 0
        )

    def _give(self, output: EngineCoreOutput) -> None:
        """Put what is held of the output's request before it."""
        self._ends.pop(output.request_id, None)
        held = self._held.pop(output.request_id, _Held())
        if not held.tokens:
            return
        output.new_token_ids = [*held.tokens, *output.new_token_ids]
        if not held.logprobs:
            return
        # of their ranks nobody knows any more
        ids, values = np.array(held.tokens)[:, None], np.array(held.logprobs, dtype=np.float32)[:, None]
        columns: tuple[np.ndarray, ...] = (ids, values, np.zeros(len(ids), dtype=np.int64))
        if (last := output.new_logprobs) is not None:
            columns = tuple(np.concatenate(pair) for pair in zip(columns, last[:3], strict=True))
        output.new_logprobs = LogprobsLists(*columns)


def _end(request: Request, longest: int) -> _End:
    asked = request.sampling_params
    if (
        asked is None
        or request.use_structured_output
        or asked.prompt_logprobs is not None
        or asked.repetition_detection is not None
    ):
        return _End(frozenset(), 0, plain=False)
    ending = {*(asked.stop_token_ids or ()), *(() if asked.eos_token_id is None else (asked.eos_token_id,))}
    most = min(request.num_prompt_tokens + request.max_tokens, longest)
    return _End(frozenset(ending), most, is_plain(asked))

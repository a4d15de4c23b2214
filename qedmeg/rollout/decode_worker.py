"""vLLM's worker for rollouts on a CPU: of a burst it makes the tokens after the first by itself.

A step of vLLM's takes some 2 ms of Python and 50 µs for each request, whatever the model; a small model's arithmetic
takes less (tests/benchmarks/cpu_engine.py). A burst asks for several tokens of each request at once, and nothing of a
step is done anew for them but what the model needs: tokens, positions, places in the cache, and samples.
"""

from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import numpy as np
import torch
from vllm import SamplingParams
from vllm.forward_context import set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

from qedmeg.rollout.cpu_engine import seeds

_OF_EACH_REQUEST = {
    *("temperature", "seed", "max_tokens", "stop_token_ids", "ignore_eos"),
    *("detokenize", "output_kind", "flat_logprobs", "watermarking"),
}
_PLAIN = SamplingParams(logprobs=0)


@dataclass
class Burst(SchedulerOutput):
    """A step in which each request, all of them with seeds and none with anything else that changes its distribution
    but a temperature, decodes up to so many tokens, the first of which is vLLM's step. Their places in the cache are
    there."""

    most: dict[str, int] = field(default_factory=dict)
    """Of each request."""
    ending: dict[str, frozenset[int]] = field(default_factory=dict)
    """The tokens that end it."""


@dataclass
class BurstOutput(ModelRunnerOutput):
    """What a step gave, and of a burst the tokens after each request's first."""

    more: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    """Tokens and their logprobs."""


class DecodeWorker(CPUWorker):
    """vLLM's `worker_cls`, which takes bursts."""

    def sample_tokens(self, grammar_output: Any) -> Any:
        """What the step gave."""
        state = self.model_runner.execute_model_state
        output = super().sample_tokens(grammar_output)
        if state is None or not isinstance(state.scheduler_output, Burst):
            return output
        with torch.inference_mode():
            more = _go_on(self.model_runner, state.scheduler_output, output)
        return BurstOutput(**vars(output), more=more)


def _go_on(runner: CPUModelRunner, burst: Burst, output: ModelRunnerOutput) -> dict[str, tuple[list[int], list[float]]]:
    """Decode after the first token of each of B requests, until it ends or has as many as it may have."""
    batch, names = runner.input_batch, output.req_ids
    count, generators = len(names), batch.sampling_metadata.generators
    draws = [seeds(generators[row]) for row in range(count)]
    ends = [burst.ending[name] for name in names]
    most_B = np.array([burst.most[name] for name in names])
    made_B = np.ones(count, dtype=np.int64)
    tokens_BK = np.zeros((count, most_B.max()), dtype=np.int32)
    logprobs_BK = np.zeros(tokens_BK.shape, dtype=np.float32)
    tokens_BK[:, 0] = [first for (first,) in output.sampled_token_ids]
    # of the A that go on
    rows_A, temperatures_A1 = np.arange(count), batch.sampling_metadata.temperature[:count, None]
    table_AN = batch.block_table[0].get_cpu_tensor()[:count]
    positions_A = batch.num_computed_tokens_cpu_tensor[:count].to(torch.int64, copy=True)
    for made in range(1, tokens_BK.shape[1]):
        last_A = tokens_BK[rows_A, made - 1]
        ended = [token in ending for token, ending in zip(last_A.tolist(), ends, strict=True)]
        on_A = (most_B[rows_A] > made) & ~np.array(ended)
        if not on_A.all():
            on = torch.from_numpy(on_A)
            rows_A, last_A, positions_A = rows_A[on_A], last_A[on_A], positions_A[on]
            temperatures_A1, table_AN = temperatures_A1[on], table_AN[on]
            draws, ends = [*compress(draws, on_A)], [*compress(ends, on_A)]
            if not draws:
                break
        positions_A += 1
        hidden = _forward(runner, torch.from_numpy(last_A), positions_A, table_AN)
        logits_AV = runner.model.compute_logits(hidden).to(torch.float32).div_(temperatures_A1)
        chosen_A = torch.ops._C.fused_gumbel_argmax(logits_AV, torch.tensor([next(draw) for draw in draws]))
        told_A1 = logits_AV.log_softmax(dim=-1).gather(1, chosen_A.to(torch.int64)[:, None])
        tokens_BK[rows_A, made], logprobs_BK[rows_A, made] = chosen_A.numpy(), told_A1[:, 0].numpy()
        made_B[rows_A] += 1
    more = {}
    for row, (name, made) in enumerate(zip(names, made_B.tolist(), strict=True)):
        if made > 1:
            tokens = tokens_BK[row, 1:made].tolist()
            more[name] = (tokens, logprobs_BK[row, 1:made].tolist())
            _keep(runner, row, name, tokens)
    return more


def _forward(
    runner: CPUModelRunner, tokens_B: torch.Tensor, positions_B: torch.Tensor, table_BN: torch.Tensor
) -> torch.Tensor:
    """The hidden states of one token of each request, whose keys and values go to their places in the cache."""
    count, size = len(tokens_B), runner.kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
    blocks_B = table_BN.gather(1, (positions_B // size)[:, None])[:, 0]
    slots_B = blocks_B.to(torch.int64) * size + positions_B % size
    starts = torch.arange(count + 1, dtype=torch.int32)
    lengths_B = (positions_B + 1).to(torch.int32)
    (attention,) = runner.attn_groups[0]
    metadata = attention.get_metadata_builder().build(
        0,
        CommonAttentionMetadata(
            query_start_loc=starts,
            query_start_loc_cpu=starts,
            seq_lens=lengths_B,
            num_reqs=count,
            num_actual_tokens=count,
            max_query_len=1,
            max_seq_len=int(lengths_B.max()),
            block_table_tensor=table_BN,
            slot_mapping=slots_B,
            positions=positions_B,
        ),
    )
    layers = attention.layer_names
    with set_forward_context(
        dict.fromkeys(layers, metadata),
        runner.vllm_config,
        num_tokens=count,
        slot_mapping=dict.fromkeys(layers, slots_B),
    ):
        hidden: torch.Tensor = runner.model(input_ids=tokens_B, positions=positions_B)
    return hidden


def _keep(runner: CPUModelRunner, row: int, name: str, tokens: list[int]) -> None:
    """As vLLM does with each token."""
    batch = runner.input_batch
    start = batch.num_tokens_no_spec[row]
    end = start + len(tokens)
    batch.token_ids_cpu[row, start:end] = tokens
    batch.is_token_ids[row, start:end] = True
    batch.num_tokens_no_spec[row] = end
    runner.requests[name].output_token_ids.extend(tokens)


def takes_bursts(config: Any) -> bool:
    """Whether engines of these settings of vLLM's do no more in a decoding step than a burst does."""
    model = config.model_config
    return (
        config.parallel_config.world_size == 1
        and config.speculative_config is None
        and config.lora_config is None
        and model.logprobs_mode == "processed_logprobs"
        and not (model.is_multimodal_model or model.uses_mrope or model.is_encoder_decoder)
    )


def is_plain(asked: SamplingParams) -> bool:
    """Whether a temperature is all that changes a request's distribution, and its seed all that draws of it."""
    others = (name for name in _PLAIN.__struct_fields__ if name not in _OF_EACH_REQUEST and not name.startswith("_"))
    return (
        asked.seed is not None
        and asked.temperature > 0
        and not asked.watermarking  # for which vLLM may put False in place of None
        and all(getattr(asked, name) == getattr(_PLAIN, name) for name in others)
    )

"""What vLLM does on a CPU in a longer way than it need, done in a shorter one.

RMSNorm: vLLM's C++ kernels, which it builds for CPUs and calls on GPUs alone, by its own registry. Seeds and logprobs:
two of its methods, which go token by token, are replaced by some that take many (tests/benchmarks/cpu_engine.py).
"""

from collections.abc import Iterator
from weakref import WeakKeyDictionary

import torch
from vllm import ir
from vllm.logprobs import FlatLogprobs
from vllm.platforms import current_platform
from vllm.v1.engine.logprobs import LogprobsProcessor
from vllm.v1.outputs import LogprobsLists
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler, apply_top_k_top_p

from qedmeg.rollout.engine import CPU_KERNELS

SEEDS_AT_A_TIME = 64

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


sample_by_vllm = TopKTopPSampler.forward_cpu


def sample(
    self: TopKTopPSampler,
    logits: torch.Tensor,
    generators: dict[int, torch.Generator],
    k: torch.Tensor | None,
    p: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The tokens and logprobs of vLLM's `forward_cpu`, which draws the seed of each row by a call to torch."""
    if self.use_fp64_gumbel:
        found: tuple[torch.Tensor, torch.Tensor | None] = sample_by_vllm(self, logits, generators, k, p)
        return found
    logits, told = apply_top_k_top_p(logits, k, p), None
    if self.logprobs_mode == "processed_logits":
        told = logits
    elif self.logprobs_mode == "processed_logprobs":
        told = logits.log_softmax(dim=-1, dtype=torch.float32)
    rows = len(logits)
    drawn = torch.randint(0, 2**31, (rows,)).tolist() if len(generators) < rows else [0] * rows
    for row, generator in generators.items():
        drawn[row] = next(seeds(generator))
    return torch.ops._C.fused_gumbel_argmax(logits.float(), torch.tensor(drawn)), told


_seeds: WeakKeyDictionary[torch.Generator, Iterator[int]] = WeakKeyDictionary()


def seeds(generator: torch.Generator) -> Iterator[int]:
    """The numbers that vLLM would draw of a request's generator one by one, from where they were left."""
    drawn = _seeds.get(generator)
    if drawn is None:
        drawn = _seeds[generator] = _draw(generator)
    return drawn


def _draw(generator: torch.Generator) -> Iterator[int]:
    own = generator.clone_state()  # `_seeds` would keep alive for ever what its values refer to
    while True:
        yield from torch.randint(0, 2**31, (SEEDS_AT_A_TIME,), generator=own).tolist()


add_logprobs_by_vllm = LogprobsProcessor._update_sample_logprobs


def add_logprobs(self: LogprobsProcessor, lists: LogprobsLists) -> None:
    """Take the logprobs of a request's new tokens as vLLM's method does, but those of the tokens alone all at once."""
    kept = self.logprobs
    if self.num_logprobs != 0 or self.tokenizer is not None or not isinstance(kept, FlatLogprobs):
        add_logprobs_by_vllm(self, lists)
        return
    first, values = len(kept), lists.logprobs[:, 0].tolist()
    self.cumulative_logprob += sum(values)
    kept.start_indices.extend(range(first, first + len(values)))
    kept.end_indices.extend(range(first + 1, first + 1 + len(values)))
    kept.token_ids.extend(lists.logprob_token_ids[:, 0].tolist())
    kept.logprobs.extend(values)
    kept.ranks.extend(lists.sampled_token_ranks.tolist())
    kept.decoded_tokens.extend([None] * len(values))


TopKTopPSampler.forward_cpu = sample
LogprobsProcessor._update_sample_logprobs = add_logprobs

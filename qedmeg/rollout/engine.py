"""vLLM in this process: token ids in, token ids out."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qedmeg import device

KV_CACHE_BYTES = 256 * 2**20  # on CPU, where vLLM would otherwise take a share of all memory
_CPU_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # 'auto' leaves one core idle and binds to the first
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process: no second start-up
    "TORCHDYNAMO_DISABLE": "1",  # compiling takes longer than a small model's whole generation
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


@dataclass(frozen=True)
class Completion:
    """One generated answer: its token ids, without the prompt, and why it ended ('stop' or 'length')."""

    token_ids: list[int]
    finish_reason: str


class Engine:
    """A model folder served by vLLM in this process. `environment` must not have been read by vLLM before."""

    def __init__(self, model: Path, max_length: int, seed: int = 0, *, fp32: bool = False) -> None:
        """Start the engine; `max_length` is the longest prompt and answer together, in tokens. It computes in the
        model's precision, on CPU or where asked for in fp32."""
        options: dict[str, Any] = {"dtype": "float32"} if fp32 else {}
        if not device.has_gpu():
            for name, value in _CPU_ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            options = {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": KV_CACHE_BYTES}
        from vllm import LLM

        self._llm = LLM(
            model=str(model),
            skip_tokenizer_init=True,
            max_model_len=max_length,
            seed=seed,
            disable_log_stats=True,
            **options,
        )
        self.max_length = max_length

    def generate(
        self, prompts: Sequence[Sequence[int]], *, samples: int, temperature: float, stop_ids: Sequence[int]
    ) -> list[list[Completion]]:
        """`samples` completions of each prompt, in the prompts' order."""
        from vllm import SamplingParams

        requests: list[Any] = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        settings = [
            SamplingParams(
                n=samples,
                temperature=temperature,
                max_tokens=self.max_length - len(prompt),
                stop_token_ids=list(stop_ids),
                detokenize=False,
            )
            for prompt in prompts
        ]
        outputs = self._llm.generate(requests, settings)
        return [
            [Completion(list(choice.token_ids), str(choice.finish_reason)) for choice in output.outputs]
            for output in outputs
        ]

    def logprobs(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """For each prompt of T tokens, the logprobs [T - 1] of its tokens 1, 2, ... given those before."""
        from vllm import SamplingParams

        requests: list[Any] = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        settings = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        outputs = self._llm.generate(requests, settings, use_tqdm=False)
        return [
            [told[token].logprob for token, told in zip(prompt[1:], output.prompt_logprobs[1:], strict=True)]
            for prompt, output in zip(prompts, outputs, strict=True)
        ]

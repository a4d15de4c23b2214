"""vLLM in this process: token ids in, token ids out."""

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qedmeg import device
from qedmeg.errors import UserError
from qedmeg.rollout.sample import Sample, Sampling

PREFILL_TOKENS = 8192  # of prompts that a CPU takes at a time
KV_CACHE_BYTES = 256 * 2**20  # on CPU, where vLLM would otherwise take a share of all memory
CPU_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # 'auto' leaves one core idle and binds to the first
    "TORCHDYNAMO_DISABLE": "1",  # compiling takes longer than a small model's whole generation
    "VLLM_NO_USAGE_STATS": "1",
    # huge pages for what vLLM packs anew at each transfer: where a fresh page is dear, much of its time is theirs
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Of a process with vLLM, from its start."""
CPU_KERNELS = "qedmeg"
"""What `qedmeg.rollout.cpu_engine` calls its kernels in vLLM."""
WITHOUT_WORKERS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""What runs a model on one rank. By its short name a CPU's server would give it a process of its own all the same, for
threads that vLLM binds to cores, which ours leaves alone; to start that takes as long as the server itself."""
BURSTS = {
    "scheduler_cls": "qedmeg.rollout.decode_scheduler.DecodeScheduler",
    "worker_cls": "qedmeg.rollout.decode_worker.DecodeWorker",
}
"""What an engine for rollouts is told on a CPU, as keywords of vLLM's LLM."""
SHARE_OF_A_SHARED_GPU = 0.3  # of its memory, for an engine on a GPU that the trainer computes on
_IN_PROCESS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process: no second start-up
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True)
class Completion:
    """One generated answer: its token ids, without the prompt, and why it ended ('stop' or 'length')."""

    token_ids: list[int]
    finish_reason: str


@dataclass(frozen=True, eq=False)
class Request:
    """One sample asked for."""

    prompt_P: np.ndarray
    """int32."""
    seed: int
    max_tokens: int | None = None
    """Most tokens of this sample, where it may have fewer than the others. None: as many as they."""
    ahead: bool = False
    """It is generated before other requests that wait: somebody waits for it."""

    def limit(self, sampling: Sampling) -> int:
        """Most tokens of this sample among those that are drawn by `sampling`."""
        return sampling.max_tokens if self.max_tokens is None else min(self.max_tokens, sampling.max_tokens)


def hardware_options(
    *, tp: int = 1, fp32: bool = False, kv_cache_gib: float | None = None, shares_gpu: bool = False
) -> dict[str, Any]:
    """What vLLM is told for the sake of the device, as keywords of its LLM on `tp` ranks. It computes in the model's
    precision, on CPU or where asked for in fp32. With `shares_gpu`, something else computes on its GPU too."""
    options: dict[str, Any] = {"tensor_parallel_size": tp} | ({"dtype": "float32"} if fp32 else {})
    if not device.has_gpu():
        options |= {
            "dtype": "float32",
            "enforce_eager": True,
            "kv_cache_memory_bytes": KV_CACHE_BYTES,
            "ir_op_priority": {"rms_norm": [CPU_KERNELS], "fused_add_rms_norm": [CPU_KERNELS]},
        }
        if tp == 1:
            options["distributed_executor_backend"] = WITHOUT_WORKERS
    elif shares_gpu:
        options["gpu_memory_utilization"] = SHARE_OF_A_SHARED_GPU
    if kv_cache_gib is not None:
        options["kv_cache_memory_bytes"] = int(kv_cache_gib * 2**30)
        if device.has_gpu():
            # vLLM takes what it is told, but refuses to start where this share of the GPU is not free
            options["gpu_memory_utilization"] = 0.01
    return options


def register_kernels() -> None:
    """Make known to vLLM, in this process, the kernels that `hardware_options` names. Before vLLM is started."""
    if not device.has_gpu():
        importlib.import_module("qedmeg.rollout.cpu_engine")


def seeded_options(max_length: int) -> dict[str, Any]:
    """What an engine is told whose requests have seeds of their own and prompts of up to `max_length` tokens."""
    if device.has_gpu():
        return {}
    # of a prompt that is cut, vLLM sets the seeded generator back, which a CPU's cannot
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(max_length, PREFILL_TOKENS)}


def rollout_options(
    max_length: int, tp: int, concurrency: int, kv_cache_gib: float | None, *, shares_gpu: bool = False
) -> dict[str, Any]:
    """What an engine for rollouts is started with, as keywords of vLLM's LLM, which are its server's flags too."""
    return {
        **hardware_options(tp=tp, kv_cache_gib=kv_cache_gib, shares_gpu=shares_gpu),
        **seeded_options(max_length),
        # importing the worker's extension gives vLLM the backend that it lacks
        "weight_transfer_config": {"backend": "qedmeg"},
        "worker_extension_cls": "qedmeg.rollout.transfer_engine.TransferWorker",
        "load_format": "dummy",  # the trainer sends the weights before the first token is asked for
        "logprobs_mode": "processed_logprobs",  # of the distribution that is sampled from: after the temperature
        "generation_config": "vllm",  # the model folder's own would add stop tokens and sampling settings
        "skip_tokenizer_init": True,
        "max_model_len": max_length,
        "max_num_seqs": concurrency,
    }


def sampling_settings(sampling: Sampling, request: Request) -> dict[str, Any]:
    """vLLM's SamplingParams of one sample, as keywords and as JSON. The stop ids alone end it: vLLM's own are off."""
    return {
        "temperature": sampling.temperature,
        "max_tokens": request.limit(sampling),
        "stop_token_ids": list(sampling.stop_ids),
        "ignore_eos": True,
        "seed": request.seed,
        "logprobs": 0,  # of the sampled token alone
        "detokenize": False,
    }


def require_fit(requests: Sequence[Request], sampling: Sampling, max_length: int) -> None:
    """Raises `UserError` where a prompt and its answer may be longer than an engine's context, `max_length` tokens."""
    for request in requests:
        if len(request.prompt_P) + request.limit(sampling) > max_length:
            raise UserError(
                f"a prompt of {len(request.prompt_P)} tokens and rollout.max_tokens {sampling.max_tokens} do not fit "
                f"the engine's context of {max_length} tokens; lower rollout.max_tokens, or leave that problem out"
            )


def make_sample(
    prompt_P: np.ndarray,
    token_ids: Sequence[int],
    logprobs: Sequence[float],
    spans: Sequence[tuple[str, int]],
    finish_reason: str | None,
) -> Sample:
    """A sample of what an engine answered; `spans` holds (weight version, index of its first token).

    Raises:
        ValueError: it is no sample: cut off by the engine, without weights, or with a logprob that is no number.
    """
    if finish_reason not in ("stop", "length"):
        raise ValueError(f"an answer ended with '{finish_reason}'")
    if not token_ids or len(logprobs) != len(token_ids):
        raise ValueError(f"an answer of {len(token_ids)} tokens has {len(logprobs)} logprobs")
    logprobs_T = np.array(logprobs, dtype=np.float32)
    if not np.isfinite(logprobs_T).all() or logprobs_T.max() > 1e-3 or logprobs_T.min() <= -9999:
        # -9999 is what vLLM's server sends in place of NaN and -inf
        raise ValueError("a sampled token's logprob is no number; are the weights broken?")
    if not spans or spans[0][1] != 0 or not all(version.isdecimal() for version, _ in spans):
        raise ValueError(f"an answer with weight versions {spans}: the engine has not been sent weights")
    return Sample(
        prompt_P=prompt_P,
        tokens_T=np.array(token_ids, dtype=np.int32),
        logprobs_T=logprobs_T,
        versions=tuple((int(version), first) for version, first in spans),
        finish_reason="stop" if finish_reason == "stop" else "length",
    )


class Engine:
    """A model folder served by vLLM in this process. `environment` must not have been read by vLLM before."""

    def __init__(self, model: Path, max_length: int, seed: int = 0, *, fp32: bool = False) -> None:
        """Start the engine; `max_length` is the longest prompt and answer together, in tokens. It computes in the
        model's precision, on CPU or where asked for in fp32."""
        self._llm = _start(
            model,
            skip_tokenizer_init=True,
            max_model_len=max_length,
            seed=seed,
            **hardware_options(fp32=fp32),
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
        return _prompt_logprobs(self._llm, prompts)


class RolloutEngine:
    """vLLM in this process for rollouts: a batch at a time, in steps, with weights that come by transfer.

    The same requests with the same weights give the same tokens and logprobs bit for bit, on the same machine with the
    same number of threads. All calls must come from one thread at a time.
    """

    def __init__(self, model: Path, options: dict[str, Any]) -> None:
        """Start the engine; `options` are those of `rollout_options`. It has no weights yet."""
        bursts = {} if device.has_gpu() else BURSTS
        self._llm = _start(model, **{"async_scheduling": False, "seed": 0, **bursts, **options})
        self._engine = self._llm.llm_engine
        self._batch: Sequence[Request] = ()

    def begin(self, requests: Sequence[Request], sampling: Sampling) -> None:
        """Take a batch; the one before it must be done."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        # what the batches before left in the cache would change the order of sums
        if self.busy or not self._llm.reset_prefix_cache():
            raise RuntimeError("a batch of rollouts was begun before the one before it was done")
        self._batch = requests
        for index, request in enumerate(requests):
            settings = SamplingParams(
                output_kind=RequestOutputKind.FINAL_ONLY,
                flat_logprobs=True,
                **sampling_settings(sampling, request),
            )
            self._engine.add_request(f"{index}", {"prompt_token_ids": request.prompt_P.tolist()}, settings)

    @property
    def busy(self) -> bool:
        """Whether a batch is under way."""
        return bool(self._engine.has_unfinished_requests())

    def step(self) -> list[tuple[int, Sample]]:
        """Generate some more tokens of each request: the samples that are complete, each with its request's index.

        Raises `ValueError` as `make_sample` does.
        """
        finished = []
        for output in self._engine.step():
            choice, index = output.outputs[0], int(output.request_id)
            logprobs = choice.logprobs.logprobs  # one of each token, since no more were asked for
            spans = [(span.version, span.start) for span in choice.weight_versions or ()]
            sample = make_sample(self._batch[index].prompt_P, choice.token_ids, logprobs, spans, choice.finish_reason)
            finished.append((index, sample))
        return finished

    def abort(self) -> None:
        """Give up what is under way."""
        if self.busy:
            self._engine.abort_request([f"{index}" for index in range(len(self._batch))])

    def prompt_logprobs(self, prompts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """For each prompt of P tokens, float32 logprobs [P - 1] of its tokens 1, 2, ..., always at temperature 1."""
        found = _prompt_logprobs(self._llm, [prompt.tolist() for prompt in prompts])
        return [np.array(logprobs, dtype=np.float32) for logprobs in found]

    def gpus(self) -> list[str]:
        """The UUIDs of the GPUs that it computes on; on a CPU none."""
        return [gpu for worker in self._llm.collective_rpc("gpus") for gpu in worker]

    def init_transfer(self, info: dict[str, Any]) -> None:
        """Join the group that weights are broadcast in."""
        self._llm.init_weight_transfer_engine({"init_info": info})

    def start_update(self) -> None:
        self._llm.start_weight_update()

    def update(self, info: dict[str, Any]) -> None:
        """Receive the weights that `info` names."""
        self._llm.update_weights({"update_info": info})

    def finish_update(self, version: int) -> None:
        """Put the received weights to use. Keys and values of the old ones are forgotten."""
        core = self._engine.engine_core.engine_core
        if hasattr(core.scheduler, "release"):  # what it holds back is of the old weights
            self._engine.output_processor.process_outputs(
                core.scheduler.release(), weight_version=core.get_weight_version()
            )
        self._llm.finish_weight_update(f"{version}")
        self._llm.reset_prefix_cache(reset_running_requests=True)

    def close(self) -> None:
        self._engine.engine_core.shutdown()


def _start(model: Path, **options: Any) -> Any:
    """A vLLM LLM in this process."""
    for name, value in {**_IN_PROCESS, **({} if device.has_gpu() else CPU_ENVIRONMENT)}.items():
        os.environ.setdefault(name, value)
    from vllm import LLM

    register_kernels()
    return LLM(model=str(model), disable_log_stats=True, **options)


def _prompt_logprobs(llm: Any, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
    from vllm import SamplingParams

    requests: list[Any] = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    settings = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
    outputs = llm.generate(requests, settings, use_tqdm=False)
    return [
        [told[token].logprob for token, told in zip(prompt[1:], output.prompt_logprobs[1:], strict=True)]
        for prompt, output in zip(prompts, outputs, strict=True)
    ]

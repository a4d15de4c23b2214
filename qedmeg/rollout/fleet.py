"""The engines of a run behind one interface: one in this process, or several servers."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from qedmeg import device
from qedmeg.config_rl import RolloutConfig
from qedmeg.errors import UserError
from qedmeg.rollout.engine import Request as Request
from qedmeg.rollout.engine import RolloutEngine, require_fit, rollout_options
from qedmeg.rollout.protocol import EngineLost
from qedmeg.rollout.remote import RemoteFleet
from qedmeg.rollout.sample import Sample, Sampling
from qedmeg.rollout.server import ServerProcess, Transfer

T = TypeVar("T")


class Fleet(Protocol):
    """Engines that generate rollouts with the weights that they are sent. Belongs to one event loop.

    It begins paused: nothing is generated before the first `resume`.
    """

    async def start(self) -> None:
        """Start the engines or wait for them; must be called on the main thread.

        Raises:
            UserError: none came up within rollout.start_seconds, or one cannot be used.
        """

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> AsyncIterator[tuple[int, Sample]]:
        """The index of each request and its sample, as they finish. What a dead engine had goes to another; closing
        the iterator gives up what is left.

        Raises:
            UserError: a prompt does not fit the engines' context together with `sampling.max_tokens`.
            NoEngine: none has answered for rollout.generate_seconds, or a request took that long twice.
        """

    def live(self) -> list[tuple[str, int]]:
        """Name and tensor-parallel workers of the engines that answer, with whatever weights."""

    def needs_weights(self) -> bool:
        """Whether requests cannot go on until the trainer has sent the weights again: every engine that answers was
        started anew."""

    async def pause(self) -> None:
        """Stop generating after the step under way. Keys and values are forgotten, requests are kept."""

    async def resume(self, version: int) -> None:
        """Go on, with the engines that have been sent this version."""

    async def call(self, name: str, method: Transfer, info: Mapping[str, Any]) -> None:
        """A call of the weight transfer; of `finish_update`, `info` is {"version": number}.

        Raises:
            EngineLost: the engine did not do it within rollout.transfer_seconds.
        """

    async def prompt_logprobs(self, name: str, prompts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """For each prompt of P tokens an engine's float32 logprobs [P - 1] of its tokens 1, 2, ..., at temperature 1
        whatever samples are drawn at.

        Raises:
            EngineLost: the engine does not answer.
        """

    async def close(self) -> None:
        """End what `start` started."""


def make_fleet(config: RolloutConfig, run_dir: Path, model_folder: Path, max_length: int) -> Fleet:
    """The engines that the settings ask for; `max_length` is the longest prompt and answer together, in tokens.

    Raises:
        UserError: there are too few GPUs for them.
    """
    if config.servers:
        return RemoteFleet(config, max_length, addresses=config.servers)
    if not config.start:
        if config.devices:  # before anyone counts them
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, config.devices[: config.tp]))
        return LocalFleet(model_folder, _options(config, max_length))
    options, logs = _options(config, max_length), run_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)

    def start(number: int, gpus: Sequence[str]) -> ServerProcess:
        return ServerProcess(model_folder, options, logs / f"vllm_{number}.log", gpus)

    return RemoteFleet(config, max_length, starters=[partial(start, i, gpus) for i, gpus in enumerate(_gpus(config))])


def _options(config: RolloutConfig, max_length: int) -> dict[str, Any]:
    return rollout_options(max_length, config.tp, config.concurrency, config.kv_cache_gib)


def _gpus(config: RolloutConfig) -> list[list[str]]:
    """The GPUs of each server that is started here, `tp` in turn; on a CPU none."""
    if not config.devices and not device.has_gpu():
        return [[] for _ in range(config.start)]
    seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    names = [f"{number}" for number in config.devices] or seen.split(",")
    if len(names) < config.start * config.tp:
        raise UserError(
            f"rollout: start {config.start} × tp {config.tp} GPUs are needed, and there are {len(names)}; lower one of "
            "them"
        )
    return [names[i * config.tp : (i + 1) * config.tp] for i in range(config.start)]


class LocalFleet:
    """One engine inside this process, on a thread of its own.

    It generates a batch at a time, those of later calls after it: the same calls give the same samples bit for bit.
    """

    name = "local"

    def __init__(self, model: Path, options: dict[str, Any]) -> None:
        """`options` are those of `rollout_options`."""
        self._model, self._options = model, options
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._engine: RolloutEngine | None = None
        self._turn = asyncio.Lock()
        self._going = asyncio.Event()

    async def start(self) -> None:
        self._engine = await self._do(lambda: RolloutEngine(self._model, self._options))

    async def generate(self, requests: Sequence[Request], sampling: Sampling) -> AsyncIterator[tuple[int, Sample]]:
        require_fit(requests, sampling.max_tokens, self._options["max_model_len"])
        engine = self._started()
        async with self._turn:
            await self._wait_until_going()
            await self._do(lambda: engine.begin(requests, sampling))
            try:
                while engine.busy:
                    await self._wait_until_going()
                    for index, sample in await self._do(engine.step):
                        yield index, sample
            finally:
                await self._do(engine.abort)

    async def _wait_until_going(self) -> None:
        while not self._going.is_set():  # it may be paused again before this continues
            await self._going.wait()

    def live(self) -> list[tuple[str, int]]:
        return [(self.name, self._options["tensor_parallel_size"])] if self._engine else []

    def needs_weights(self) -> bool:
        return False

    async def pause(self) -> None:
        self._going.clear()
        await self._do(lambda: None)  # when it is done, so is the step that was under way

    async def resume(self, version: int) -> None:
        self._going.set()

    async def call(self, name: str, method: Transfer, info: Mapping[str, Any]) -> None:
        engine = self._started()
        calls: dict[Transfer, Callable[[], None]] = {
            "init_transfer": lambda: engine.init_transfer(dict(info)),
            "start_update": engine.start_update,
            "update": lambda: engine.update(dict(info)),
            "finish_update": lambda: engine.finish_update(int(info["version"])),
        }
        try:
            await self._do(calls[method])
        except Exception as error:
            raise EngineLost(name, f"{method}: {error or type(error).__name__}") from error

    async def prompt_logprobs(self, name: str, prompts: Sequence[np.ndarray]) -> list[np.ndarray]:
        engine = self._started()
        async with self._turn:
            return await self._do(lambda: engine.prompt_logprobs(prompts))

    async def close(self) -> None:
        if self._engine:
            await self._do(self._engine.close)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _started(self) -> RolloutEngine:
        if self._engine is None:
            raise RuntimeError("the fleet was not started")
        return self._engine

    async def _do(self, function: Callable[[], T]) -> T:
        """The result of a function, called on the engine's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

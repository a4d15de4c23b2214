"""The engines of a run behind one interface: processes that it starts for itself, or servers."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from qedmeg import device
from qedmeg.config_rl import RolloutConfig
from qedmeg.errors import UserError
from qedmeg.rollout.engine import Request as Request
from qedmeg.rollout.engine import require_fit, rollout_options
from qedmeg.rollout.engine_process import EngineProcess, Found
from qedmeg.rollout.protocol import EngineLost
from qedmeg.rollout.remote import RemoteFleet
from qedmeg.rollout.sample import Sample, Sampling
from qedmeg.rollout.server import ServerProcess, Transfer


class Fleet(Protocol):
    """Engines that generate rollouts with the weights that they are sent. Belongs to one event loop.

    It begins paused: nothing is generated before the first `resume`.
    """

    @property
    def one_batch_at_a_time(self) -> bool:
        """Whether a call of `generate` waits until those before it are done."""

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
            NoEngine: none has answered for rollout.generate_seconds, or a request took that long twice, or failed at
                engines that are well otherwise.
        """

    def live(self) -> list[tuple[str, int]]:
        """Name and tensor-parallel workers of the engines that answer, with whatever weights."""

    def gpus(self, name: str) -> Sequence[str]:
        """UUIDs of the GPUs that an engine computes on; on CPUs none."""

    def needs_weights(self) -> bool:
        """Whether requests cannot go on until the trainer has sent the weights again: no engine that answers has those
        that it should have."""

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


@dataclass(frozen=True)
class Place:
    """Where an engine is started."""

    gpus: tuple[str, ...]
    """As CUDA_VISIBLE_DEVICES names them; on a CPU none."""
    shares_gpu: bool
    """Whether the trainer computes on one of them too."""


def places(config: RolloutConfig, seen: Sequence[str], trainer_gpus: int) -> list[Place]:
    """The GPUs of each engine, `tp` in turn: those of the settings, or all that the run sees, last the trainer's, which
    are the first `trainer_gpus` of them.

    Raises:
        UserError: there are too few.
    """
    trainers, engines = seen[:trainer_gpus], max(config.start, 1)
    names = [f"{number}" for number in config.devices] or [*seen[trainer_gpus:], *trainers]
    if len(names) < engines * config.tp:
        raise UserError(
            f"rollout: start {engines} × tp {config.tp} GPUs are needed, and there are {len(names)}; lower one of them"
        )
    groups = [tuple(names[i * config.tp : (i + 1) * config.tp]) for i in range(engines)]
    return [Place(group, not set(group).isdisjoint(trainers)) for group in groups]


def make_fleet(
    config: RolloutConfig, run_dir: Path, model_folder: Path, max_length: int, trainer_gpus: int = 0
) -> Fleet:
    """The engines that the settings ask for; `max_length` is the longest prompt and answer together, in tokens. The
    first `trainer_gpus` of the GPUs that this process sees are the trainer's.

    Raises:
        UserError: there are too few GPUs for them, or they are for a CPU.
    """
    if config.servers:
        return RemoteFleet(config, max_length, addresses=config.servers)
    if not config.start:
        if config.engines > 1 and device.has_gpu():
            raise UserError(f"rollout.engines: {config.engines} share a CPU; for several on GPUs set rollout.start")
        place = _places(config, trainer_gpus)[0]
        if place.gpus:  # before the engine's process counts them
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(place.gpus)
        return LocalFleet(model_folder, _options(config, max_length, place), config.engines)
    logs = run_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)

    def start(number: int, place: Place) -> ServerProcess:
        options = _options(config, max_length, place)
        return ServerProcess(model_folder, options, logs / f"vllm_{number}.log", place.gpus)

    places = _places(config, trainer_gpus)
    return RemoteFleet(config, max_length, starters=[partial(start, i, place) for i, place in enumerate(places)])


def _options(config: RolloutConfig, max_length: int, place: Place) -> dict[str, Any]:
    return rollout_options(max_length, config.tp, config.concurrency, config.kv_cache_gib, shares_gpu=place.shares_gpu)


def _places(config: RolloutConfig, trainer_gpus: int) -> list[Place]:
    """The GPUs of each engine that is started here; on a CPU none."""
    if not config.devices and not device.has_gpu():
        return [Place((), False)] * max(config.start, 1)
    return places(config, seen_gpus(), trainer_gpus)


def seen_gpus() -> list[str]:
    """The GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    return seen.split(",")


def gpus_in_use(config: RolloutConfig, trainer_gpus: int) -> list[str]:
    """The GPUs of the trainer and of the engines that `make_fleet` starts, before it is called; on a CPU none."""
    if not device.has_gpu():
        return []
    engines = [] if config.servers else _places(config, trainer_gpus)
    return [*seen_gpus()[:trainer_gpus], *(gpu for place in engines for gpu in place.gpus)]


class LocalFleet:
    """Engines on this machine, each in a process of its own, which this one started.

    They generate a batch at a time, those of later calls after it: the same calls give the same samples bit for bit.
    One that a transfer has failed for generates nothing until a later one has reached it.
    """

    one_batch_at_a_time = True

    def __init__(self, model: Path, options: dict[str, Any], engines: int = 1) -> None:
        """`options` are those of `rollout_options`; several engines share a CPU's cores evenly."""
        self._model, self._options = model, options
        self._names = ["local"] if engines == 1 else [f"local {number}" for number in range(engines)]
        self._engines: dict[str, EngineProcess] = {}
        self._versions: dict[str, int] = {}
        """Of the weights that engines have been sent; of one that has not all of them, none."""
        self._turn = asyncio.Lock()
        self._going = asyncio.Event()
        self._paused = True
        self._ready: list[str] = []
        """The engines that generate, unless they are paused."""
        self._gpus: dict[str, Sequence[str]] = {}

    async def start(self) -> None:
        cores = len(os.sched_getaffinity(0))
        threads = None if len(self._names) == 1 or device.has_gpu() else max(1, cores // len(self._names))
        for name in self._names:
            self._engines[name] = EngineProcess(name, self._model, self._options, threads)
        await asyncio.gather(*(engine.started for engine in self._engines.values()))
        for name, engine in self._engines.items():
            self._gpus[name] = await engine.call("gpus")

    async def generate(self, requests: Sequence[Request], sampling: Sampling) -> AsyncIterator[tuple[int, Sample]]:
        require_fit(requests, sampling, self._options["max_model_len"])
        found: asyncio.Queue[tuple[list[int], Found]] = asyncio.Queue()
        async with self._turn:
            while not self._going.is_set():  # it may be paused again before this continues
                await self._going.wait()
            try:
                # without those that have not the weights that all should have
                engines = [self._engines[name] for name in self._ready]
                for engine, part in zip(engines, deal_out(requests, len(engines)), strict=True):
                    mine = [requests[index] for index in part]
                    await engine.begin(mine, sampling, partial(lambda part, some: found.put_nowait((part, some)), part))
                left = len(requests)
                while left:
                    part, some = await found.get()
                    if isinstance(some, Exception):
                        raise some
                    for number, sample in some:
                        left -= 1
                        # the prompt that the caller has, not the copy that went to the engine and back
                        yield part[number], replace(sample, prompt_P=requests[part[number]].prompt_P)
            finally:
                await asyncio.gather(*(engine.abort() for engine in self._engines.values()))

    def live(self) -> list[tuple[str, int]]:
        return [(name, self._options["tensor_parallel_size"]) for name in self._engines]

    def gpus(self, name: str) -> Sequence[str]:
        return self._gpus[name]

    def needs_weights(self) -> bool:
        return not self._paused and not self._ready

    async def pause(self) -> None:
        self._paused = True
        self._going.clear()
        await asyncio.gather(*(engine.call("pause") for engine in self._engines.values()))

    async def resume(self, version: int) -> None:
        self._ready = [name for name in self._engines if self._versions.get(name) == version]
        for name, engine in self._engines.items():
            if name not in self._ready:
                engine.fail(f"it has not got weight version {version}, with which the others go on")
        await asyncio.gather(*(self._engines[name].call("resume") for name in self._ready))
        self._paused = False
        if self._ready:
            self._going.set()

    async def call(self, name: str, method: Transfer, info: Mapping[str, Any]) -> None:
        arguments: dict[Transfer, tuple[Any, ...]] = {
            "init_transfer": (dict(info),),
            "start_update": (),
            "update": (dict(info),),
            "finish_update": (info.get("version"),),
        }
        if method != "init_transfer":
            self._versions.pop(name, None)
        try:
            await self._engines[name].call(method, *arguments[method])
        except EngineLost:
            raise
        except Exception as error:
            raise EngineLost(name, f"{method}: {error or type(error).__name__}") from error
        if method == "finish_update":
            self._versions[name] = int(info["version"])

    async def prompt_logprobs(self, name: str, prompts: Sequence[np.ndarray]) -> list[np.ndarray]:
        async with self._turn:
            found: list[np.ndarray] = await self._engines[name].call("prompt_logprobs", prompts)
            return found

    async def close(self) -> None:
        await asyncio.gather(*(engine.close() for engine in self._engines.values()))


def deal_out(requests: Sequence[Request], engines: int) -> list[list[int]]:
    """Which requests each engine gets: neighbours with one prompt go to one of them, which computes it once, the next
    to the one with the fewest."""
    parts: list[list[int]] = [[] for _ in range(engines)]
    for _, alike in groupby(range(len(requests)), key=lambda index: requests[index].prompt_P.tobytes()):
        min(parts, key=len).extend(alike)
    return parts

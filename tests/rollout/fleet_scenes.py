"""Scenes with fleets of servers, which are stand-ins, and what a trainer and a collector do with them."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, aclosing
from typing import Any

import numpy as np
import pytest

from qedmeg.config_rl import RolloutConfig
from qedmeg.rollout import remote
from qedmeg.rollout.fleet import Request
from qedmeg.rollout.remote import RemoteFleet
from qedmeg.rollout.sample import Sample, Sampling
from tests.rollout.vllm_server import CONTEXT, VllmServer, right_tokens

SAMPLING = Sampling(temperature=1.0, max_tokens=16, stop_ids=(0,), seed=0)
PROBE = 0.3


def requests(count: int) -> list[Request]:
    return [Request(np.array([7, seed % 5], dtype=np.int32), seed) for seed in range(count)]


async def all_samples(fleet: RemoteFleet, asked: list[Request]) -> list[tuple[int, Sample]]:
    async with aclosing(fleet.generate(asked, SAMPLING)) as samples:
        return [pair async for pair in samples]


def check(asked: list[Request], got: list[tuple[int, Sample]]) -> None:
    """Each request has one answer, the right one."""
    assert sorted(index for index, _ in got) == list(range(len(asked)))
    for index, sample in got:
        assert sample.tokens_T.tolist() == right_tokens(asked[index], SAMPLING)
        assert sample.prompt_P is asked[index].prompt_P


async def send(fleet: RemoteFleet, version: int, names: list[str] | None = None) -> None:
    """What the trainer does at each step."""
    await fleet.pause()
    for name, _ in fleet.live():
        if names is None or name in names:
            await fleet.call(name, "init_transfer", {"rank": 1})
            await fleet.call(name, "start_update", {})
            await fleet.call(name, "update", {"names": []})
            await fleet.call(name, "finish_update", {"version": version})
    await fleet.resume(version)


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


class Scene:
    """Stand-ins and the fleet of them, with weights of version 1."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def open(self, servers: list[VllmServer], probe_seconds: float = 10.0, **config: Any) -> RemoteFleet:
        self.servers = [await self._stack.enter_async_context(server) for server in servers]
        settings = {
            "concurrency": 8,
            "generate_seconds": 1000.0,
            "start_seconds": 1.0,
            "transfer_seconds": 5.0,
        } | config
        addresses = tuple(server.address for server in servers)
        self.fleet = RemoteFleet(
            RolloutConfig(servers=addresses, **settings), CONTEXT, addresses=addresses, probe_seconds=probe_seconds
        )
        await self.fleet.start()
        self._stack.push_async_callback(self.fleet.close)
        await send(self.fleet, 1)
        return self.fleet


def play(scene: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
    """Run a scene within a deadline, in an event loop of its own; its servers are probed often."""

    async def run() -> None:
        async with asyncio.timeout(30), AsyncExitStack() as stack:
            await scene(Scene(stack))

    with pytest.MonkeyPatch.context() as often:
        often.setattr(remote, "SECONDS_BETWEEN_PROBES", 0.05)
        often.setattr(remote, "SECONDS_BETWEEN_LINES", 0.2)
        asyncio.run(run())

"""Several vLLM servers as one: requests go where the fewest are under way, and from a dead server to the others."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qedmeg.config_rl import RolloutConfig
from qedmeg.errors import UserError
from qedmeg.rollout.engine import Request, require_fit
from qedmeg.rollout.protocol import EngineLost
from qedmeg.rollout.sample import Sample, Sampling
from qedmeg.rollout.server import EngineRefused, Server, ServerProcess, Transfer, wait_until_up

SECONDS_BETWEEN_PROBES = 3.0
SECONDS_BETWEEN_RESTARTS = 60.0
SECONDS_BETWEEN_LINES = 10.0

logger = logging.getLogger(__name__)


class NoEngine(Exception):
    """No engine answers, or none in time; the message names them."""


class _Member:
    """A server of the fleet and what is known of it."""

    def __init__(self, server: Server, process: ServerProcess | None) -> None:
        self.server, self.process = server, process
        self.name = server.address
        self.workers = 1
        self.gpus: Sequence[str] = ()
        self.lost: str | None = "it has not answered yet"
        """Why nothing is asked of it; None while it answers."""
        self.lost_since = self.started = time.monotonic()
        self.version: int | None = None
        """Of the weights that this run has sent to it; None: not all of them arrived."""
        self.under_way = 0
        self.tasks: set[asyncio.Task[Sample]] = set()
        self.lock = asyncio.Lock()
        """Held by whoever pauses it, sends it weights or asks how it is: it answers one of them at a time."""


class RemoteFleet:
    """Servers of other nodes, by their addresses, or of this machine, which `starters` start."""

    one_batch_at_a_time = False

    def __init__(
        self,
        config: RolloutConfig,
        max_length: int,
        *,
        addresses: Sequence[str] = (),
        starters: Sequence[Callable[[], ServerProcess]] = (),
        probe_seconds: float = 30.0,
    ) -> None:
        """A server that does not answer a probe within `probe_seconds` is taken for dead."""
        self._config, self._max_length = config, max_length
        self._addresses, self._starters = addresses, starters
        self._probe_seconds = probe_seconds
        self._members: list[_Member] = []
        self._waiting: deque[asyncio.Future[_Member]] = deque()
        self._version: int | None = None
        self._paused = True
        self._watchers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        for start in self._starters:
            process = start()
            self._members.append(_Member(Server(process.address), process))
        self._members += [_Member(Server(address), None) for address in self._addresses]
        try:
            await asyncio.gather(*(self._begin(member) for member in self._members))
            if not self.live():
                raise UserError("no vLLM server answers: " + self._told())
        except BaseException:
            await self.close()
            raise
        self._watchers = [asyncio.create_task(self._watch(member)) for member in self._members]
        self._watchers.append(asyncio.create_task(self._watch_waiting()))

    async def _begin(self, member: _Member) -> None:
        try:
            await wait_until_up(member.server, member.process, self._config.start_seconds)
        except UserError as error:
            if member.process or len(self._members) == 1:
                raise
            member.lost = "it does not answer"
            logger.warning("the run begins without a server: %s", error)
            return
        try:
            await self._admit(member)
        except EngineLost as error:
            member.lost = error.reason

    async def _admit(self, member: _Member) -> None:
        """Take a server in that answers, after it was seen to be of use."""
        try:
            member.workers, context = await member.server.describe(self._probe_seconds)
            member.gpus = await member.server.gpus(self._probe_seconds)
            told = await member.server.weight_version(self._probe_seconds)
        except EngineRefused as error:
            raise UserError(f"{error}; start it with: python -m qedmeg serve") from None
        if context < self._max_length:
            raise UserError(
                f"{member.name}: its context of {context} tokens is shorter than the longest prompt and answer, "
                f"{self._max_length}; start it with --max-length {self._max_length}"
            )
        if told != f"{member.version}":
            member.version = None
        # it may have been lost before a pause, or during one
        if self._paused:
            await member.server.pause(self._probe_seconds)
        elif self._has_weights(member):
            await member.server.resume(self._probe_seconds)
        member.lost = None
        self._dispatch()

    async def generate(self, requests: Sequence[Request], sampling: Sampling) -> AsyncIterator[tuple[int, Sample]]:
        require_fit(requests, sampling, self._max_length)
        tasks = [asyncio.create_task(self._answer(i, request, sampling)) for i, request in enumerate(requests)]
        try:
            for done in asyncio.as_completed(tasks):
                yield await done
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, index: int, request: Request, sampling: Sampling) -> tuple[int, Sample]:
        """The one answer to a request, of whichever server gives it first. It is with one server at a time."""
        seconds, last, timeouts = self._config.generate_seconds, not request.ahead, 0
        while True:
            member = await self._take(last)
            last = False
            started = time.monotonic()
            task = asyncio.create_task(member.server.generate(request, sampling, seconds))
            member.tasks.add(task)
            try:
                return index, await task
            except EngineLost as error:
                self._lose(member, error.reason)
                timeouts += time.monotonic() - started >= seconds
                if timeouts == 2:
                    raise NoEngine(
                        f"a rollout took longer than rollout.generate_seconds {seconds:g} twice, the last time at "
                        f"{member.name}; raise it, or lower rollout.max_tokens or rollout.concurrency"
                    ) from None
            except asyncio.CancelledError:
                this = asyncio.current_task()
                if this is None or this.cancelling():  # and not the server's requests given up
                    raise
            finally:
                member.tasks.discard(task)
                self._free(member)

    async def _take(self, last: bool) -> _Member:
        """A server with room for one more request, which is counted already. It goes `last` of those that wait, but who
        was interrupted or is urgent first."""
        future = asyncio.get_running_loop().create_future()
        if last:
            self._waiting.append(future)
        else:
            self._waiting.appendleft(future)
        self._dispatch()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._free(future.result())
            raise

    def _free(self, member: _Member) -> None:
        member.under_way -= 1
        self._dispatch()

    def _dispatch(self) -> None:
        """Give servers that have room to the requests that wait, in their order."""
        while self._waiting and not self._paused:
            room = [m for m in self._members if self._is_ready(m) and m.under_way < self._config.concurrency]
            if not room:
                return
            future = self._waiting.popleft()
            if not future.done():
                member = min(room, key=lambda m: m.under_way)
                member.under_way += 1
                future.set_result(member)

    def _has_weights(self, member: _Member) -> bool:
        return self._version is not None and member.version == self._version

    def _is_ready(self, member: _Member) -> bool:
        return member.lost is None and self._has_weights(member)

    def live(self) -> list[tuple[str, int]]:
        return [(member.name, member.workers) for member in self._members if member.lost is None]

    def gpus(self, name: str) -> Sequence[str]:
        return self._member(name).gpus

    def needs_weights(self) -> bool:
        return not self._paused and bool(self.live()) and not any(map(self._is_ready, self._members))

    async def pause(self) -> None:
        self._paused = True

        async def pause(member: _Member) -> None:
            await member.server.pause(self._config.transfer_seconds)

        await self._each_live(pause)

    async def resume(self, version: int) -> None:
        self._version = version
        for member in self._members:
            if not self._is_ready(member):
                _give_up(member)  # what it was asked before would be answered with old weights, or never

        async def resume(member: _Member) -> None:
            if self._has_weights(member):
                await member.server.resume(self._config.transfer_seconds)

        await self._each_live(resume)
        self._paused = False
        self._dispatch()

    async def _each_live(self, do: Callable[[_Member], Any]) -> None:
        async def one(member: _Member) -> None:
            async with member.lock:
                if member.lost is None:
                    try:
                        await do(member)
                    except (EngineLost, EngineRefused) as error:
                        self._lose(member, str(error))
                        _give_up(member)

        await asyncio.gather(*map(one, self._members))

    async def call(self, name: str, method: Transfer, info: Mapping[str, Any]) -> None:
        member = self._member(name)
        async with member.lock:
            if member.lost is not None:
                raise EngineLost(name, member.lost)
            if method != "init_transfer":
                member.version = None
            try:
                await member.server.transfer(method, info, self._config.transfer_seconds)
            except (EngineLost, EngineRefused) as error:
                reason = error.reason if isinstance(error, EngineLost) else str(error)
                self._lose(member, reason)
                raise EngineLost(name, reason) from None
            if method == "finish_update":
                member.version = int(info["version"])

    async def prompt_logprobs(self, name: str, prompts: Sequence[np.ndarray]) -> list[np.ndarray]:
        member, seconds = self._member(name), self._config.generate_seconds
        try:
            return await asyncio.gather(*(member.server.prompt_logprobs(prompt, seconds) for prompt in prompts))
        except EngineLost as error:
            self._lose(member, error.reason)
            raise

    def _member(self, name: str) -> _Member:
        for member in self._members:
            if member.name == name:
                return member
        raise EngineLost(name, "there is no such engine")

    def _lose(self, member: _Member, reason: str) -> None:
        """Ask nothing more of a server until it answers a probe. What it still has may yet be answered."""
        if member.lost is None:
            member.lost_since = time.monotonic()
            others = len(self.live()) - 1
            logger.warning(
                "lost the vLLM server at %s: %s; %d others answer, it is asked again every %g s",
                member.name,
                reason,
                others,
                SECONDS_BETWEEN_PROBES,
            )
        member.lost = reason

    async def _watch(self, member: _Member) -> None:
        """Probe a server for ever."""
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_PROBES)
            async with member.lock:
                try:
                    await member.server.health(self._probe_seconds)
                    if member.lost is None:
                        told = await member.server.weight_version(self._probe_seconds)
                        if member.version is not None and told != f"{member.version}":
                            raise EngineLost(member.name, "it was started anew and has no weights")
                    else:
                        await self._admit(member)
                        waits = "" if self._has_weights(member) else "; it waits for weights"
                        seconds = time.monotonic() - member.lost_since
                        logger.warning("the vLLM server at %s is back after %.0f s%s", member.name, seconds, waits)
                except (EngineLost, EngineRefused, UserError) as error:
                    self._lose(member, error.reason if isinstance(error, EngineLost) else str(error))
                    _give_up(member)
                    _restart(member)

    async def _watch_waiting(self) -> None:
        """Say for which servers requests wait, and give them up when that lasts too long."""
        since = shown = time.monotonic()
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_PROBES / 3)
            now = time.monotonic()
            if self._paused or not self._waiting or any(map(self._is_ready, self._members)):
                since = shown = now
                continue
            if now - shown >= SECONDS_BETWEEN_LINES:
                shown = now
                logger.warning("%d rollouts wait for a vLLM server: %s", len(self._waiting), self._told())
            if now - since > self._config.generate_seconds:
                told = f"no vLLM server for rollout.generate_seconds {self._config.generate_seconds:g}: {self._told()}"
                while self._waiting:
                    future = self._waiting.popleft()
                    if not future.done():
                        future.set_exception(NoEngine(told))

    def _told(self) -> str:
        """Every server and what is wrong with it."""
        return "; ".join(f"{member.name}: {member.lost or 'waits for weights'}" for member in self._members)

    async def close(self) -> None:
        for task in self._watchers:
            task.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        await asyncio.gather(*(member.server.close() for member in self._members))
        ending = [asyncio.to_thread(member.process.close) for member in self._members if member.process]
        await asyncio.gather(*ending)


def _give_up(member: _Member) -> None:
    """Take what a server was asked from it, for others."""
    for task in member.tasks:
        task.cancel()


def _restart(member: _Member) -> None:
    """Start a server of this machine again that has ended, though not again and again."""
    ended = member.process.ended() if member.process else None
    if member.process and ended and time.monotonic() - member.started > SECONDS_BETWEEN_RESTARTS:
        logger.warning("%s\nit is started again", ended)
        member.started = time.monotonic()
        member.process.start()

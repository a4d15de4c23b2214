"""Several vLLM servers as one: requests go where the fewest are under way, and from a dead server to the others."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qedmeg.config_rl import RolloutConfig
from qedmeg.errors import RunFailed, UserError
from qedmeg.rollout.engine import Request, require_fit
from qedmeg.rollout.member import Member
from qedmeg.rollout.protocol import EngineLost
from qedmeg.rollout.sample import Sample, Sampling
from qedmeg.rollout.server import BadAnswer, EngineRefused, Server, ServerProcess, Transfer, wait_until_up

SECONDS_BETWEEN_PROBES = 3.0
SECONDS_BETWEEN_LINES = 10.0
FAILURES = 3
"""So often may a request fail at servers that are well."""
LOSSES = 10
"""So often may a server be lost while it has the same request: it might be the request that ends servers."""

logger = logging.getLogger(__name__)


class NoEngine(RunFailed):
    """No engine answers, or none in time, or none what it is asked; the message names them."""


@dataclass(frozen=True)
class _Turn:
    """A request that waits for a server."""

    server: "asyncio.Future[Member]"
    failed_at: Sequence[Member]
    """It has failed at these: it goes to another, where there is one."""


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
        self._members: list[Member] = []
        self._waiting: deque[_Turn] = deque()
        self._version: int | None = None
        self._paused = True
        self._watchers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        for start in self._starters:
            process = start()
            self._members.append(Member(Server(process.address), process))
        self._members += [Member(Server(address), None) for address in self._addresses]
        try:
            await asyncio.gather(*(self._begin(member) for member in self._members))
            if not self.live():
                raise UserError("no vLLM server answers: " + self._told())
        except BaseException:
            await self.close()
            raise
        self._watchers = [asyncio.create_task(self._watch(member)) for member in self._members]
        self._watchers.append(asyncio.create_task(self._watch_waiting()))

    async def _begin(self, member: Member) -> None:
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

    async def _admit(self, member: Member) -> None:
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
        seconds, last, timeouts, losses, told = self._config.generate_seconds, not request.ahead, 0, 0, ""
        length = len(request.prompt_P)
        named = f"the request in place {index} of those asked for together, of {length} tokens and seed {request.seed},"
        failed_at: list[Member] = []
        while True:
            if losses == LOSSES:
                raise NoEngine(f"{named} was with a server that was lost {LOSSES} times, the last time {told}")
            if last:
                await asyncio.sleep(SECONDS_BETWEEN_PROBES)  # a passing disturbance takes no more than one try
            member = await self._take(last, failed_at)
            last = False
            started = time.monotonic()
            task = asyncio.create_task(member.server.generate(request, sampling, seconds))
            member.tasks.add(task)
            try:
                return index, await task
            except BadAnswer as error:
                if not await self._is_well(member, error.reason):
                    losses, told = losses + (member.lost is not None), f"{error}"
                    continue
                last = True
                failed_at.append(member)
                if len(failed_at) == FAILURES:
                    raise NoEngine(
                        f"{named} failed {FAILURES} times at servers that are well otherwise, "
                        f"{', '.join(one.name for one in failed_at)}; the last time: {error.reason}"
                    ) from None
            except EngineLost as error:
                self._lose(member, error.reason)
                losses, told = losses + 1, f"{error}"
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

    async def _is_well(self, member: Member, failure: str) -> bool:
        """Whether a server at which a request has failed answers its probe and has the weights that it should have, so
        that the failure is the request's. If it does not answer, it is lost."""
        async with member.lock:
            if member.lost is not None:
                return False
            try:
                await self._probe(member)
            except (EngineLost, EngineRefused) as error:
                self._lose(member, f"{failure}; {_reason(error)}")
                member.give_up()
            if not self._is_ready(member):
                return False
        now = time.monotonic()
        if member.failure_told is None or now - member.failure_told > SECONDS_BETWEEN_LINES:
            member.failure_told = now
            logger.warning(
                "a request failed at the vLLM server at %s, which is well otherwise: %s", member.name, failure
            )
        return True

    async def _probe(self, member: Member) -> None:
        """Raises where a server does not answer, or has not the weights that it was sent."""
        await member.server.health(self._probe_seconds)
        told = await member.server.weight_version(self._probe_seconds)
        if member.version is not None and told != f"{member.version}":
            raise EngineLost(member.name, "it was started anew and has no weights")

    async def _take(self, last: bool, failed_at: Sequence[Member]) -> Member:
        """A server with room for one more request, which is counted already. It goes `last` of those that wait, but who
        was interrupted or is urgent first."""
        turn = _Turn(asyncio.get_running_loop().create_future(), failed_at)
        if last:
            self._waiting.append(turn)
        else:
            self._waiting.appendleft(turn)
        self._dispatch()
        try:
            return await turn.server
        except asyncio.CancelledError:
            if turn.server.done() and not turn.server.cancelled():
                self._free(turn.server.result())
            raise

    def _free(self, member: Member) -> None:
        member.under_way -= 1
        self._dispatch()

    def _dispatch(self) -> None:
        """Give servers that have room to the requests that wait, in their order."""
        passed_over: list[_Turn] = []
        while self._waiting and not self._paused:
            ready = [member for member in self._members if self._is_ready(member)]
            if all(member.under_way >= self._config.concurrency for member in ready):
                break
            turn = self._waiting.popleft()
            if turn.server.done():
                continue
            others = [member for member in ready if member not in turn.failed_at] or ready
            member = min(others, key=lambda m: m.under_way)
            if member.under_way < self._config.concurrency:
                member.under_way += 1
                turn.server.set_result(member)
            else:
                passed_over.append(turn)
        self._waiting.extendleft(reversed(passed_over))

    def _has_weights(self, member: Member) -> bool:
        return self._version is not None and member.version == self._version

    def _is_ready(self, member: Member) -> bool:
        return member.lost is None and self._has_weights(member)

    def live(self) -> list[tuple[str, int]]:
        return [(member.name, member.workers) for member in self._members if member.lost is None]

    def gpus(self, name: str) -> Sequence[str]:
        return self._member(name).gpus

    def needs_weights(self) -> bool:
        return not self._paused and bool(self.live()) and not any(map(self._is_ready, self._members))

    async def pause(self) -> None:
        self._paused = True

        async def pause(member: Member) -> None:
            await member.server.pause(self._config.transfer_seconds)

        await self._each_live(pause)

    async def resume(self, version: int) -> None:
        self._version = version
        for member in self._members:
            if not self._is_ready(member):
                member.give_up()  # what it was asked before would be answered with old weights, or never

        async def resume(member: Member) -> None:
            if self._has_weights(member):
                await member.server.resume(self._config.transfer_seconds)

        await self._each_live(resume)
        self._paused = False
        self._dispatch()

    async def _each_live(self, do: Callable[[Member], Any]) -> None:
        async def one(member: Member) -> None:
            async with member.lock:
                if member.lost is None:
                    try:
                        await do(member)
                    except (EngineLost, EngineRefused) as error:
                        self._lose(member, str(error))
                        member.give_up()

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
                self._lose(member, _reason(error))
                raise EngineLost(name, _reason(error)) from None
            if method == "finish_update":
                member.version = int(info["version"])

    async def prompt_logprobs(self, name: str, prompts: Sequence[np.ndarray]) -> list[np.ndarray]:
        member, seconds = self._member(name), self._config.generate_seconds
        try:
            return await asyncio.gather(*(member.server.prompt_logprobs(prompt, seconds) for prompt in prompts))
        except EngineLost as error:
            self._lose(member, error.reason)
            raise

    def _member(self, name: str) -> Member:
        for member in self._members:
            if member.name == name:
                return member
        raise EngineLost(name, "there is no such engine")

    def _lose(self, member: Member, reason: str) -> None:
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

    async def _watch(self, member: Member) -> None:
        """Probe a server for ever, whatever goes wrong."""
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_PROBES)
            async with member.lock:
                try:
                    await self._look_after(member)
                except Exception as error:
                    if not isinstance(error, (EngineLost, EngineRefused, UserError)):
                        logger.info("the vLLM server at %s", member.name, exc_info=True)
                    self._lose(member, _reason(error))
                    member.give_up()

    async def _look_after(self, member: Member) -> None:
        """Raises why a server is lost. One that was lost is taken back once it answers, and started again where its
        process has ended."""
        if member.lost is None:
            await self._probe(member)
            return
        try:
            member.restart()
        except OSError as error:
            logger.warning("the vLLM server at %s cannot be started again: %s", member.name, error)
            raise
        await member.server.health(self._probe_seconds)
        await self._admit(member)
        waits = "" if self._has_weights(member) else "; it waits for weights"
        seconds = time.monotonic() - member.lost_since
        logger.warning("the vLLM server at %s is back after %.0f s%s", member.name, seconds, waits)

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
                    turn = self._waiting.popleft()
                    if not turn.server.done():
                        turn.server.set_exception(NoEngine(told))

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


def _reason(error: Exception) -> str:
    if isinstance(error, EngineLost):
        return error.reason
    return str(error) if isinstance(error, (EngineRefused, UserError)) else f"{type(error).__name__}: {error}"

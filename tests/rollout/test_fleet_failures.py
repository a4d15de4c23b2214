"""Whose failure it is: a request that fails everywhere ends the run, and a server that answers nonsense is watched."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from qedmeg.rollout import member as member_module
from qedmeg.rollout.remote import FAILURES, LOSSES, NoEngine
from tests.rollout.fleet_scenes import PROBE, Scene, all_samples, check, play, requests, until
from tests.rollout.vllm_server import VllmServer


@pytest.mark.parametrize("failure", ["500", "nonsense"])
def test_a_request_that_always_fails_ends_the_run_and_takes_no_server_out(
    failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fate(seed: int) -> str:
        return failure if seed == 3 else "answer"

    async def scene(it: Scene) -> None:
        fleet = await it.open([VllmServer(fate), VllmServer(fate)], concurrency=2)
        with pytest.raises(NoEngine) as told:
            await all_samples(fleet, requests(40))
        first, second = it.servers
        reason = str(told.value)
        assert "place 3 of those asked for together, of 2 tokens and seed 3, failed 3 times" in reason
        assert first.address in reason
        assert second.address in reason
        assert ("status 500" if failure == "500" else "no sample") in reason
        assert first.asked[3] + second.asked[3] == FAILURES
        assert min(first.asked[3], second.asked[3]) == 1  # the second time it went to the other
        assert len(first.answered) + len(second.answered) >= 36  # the others went first; three were under way
        assert len(fleet.live()) == 2

    with caplog.at_level(logging.WARNING):
        play(scene)
    assert "lost the vLLM server" not in caplog.text
    assert "a request failed at the vLLM server at http://127.0.0.1:" in caplog.text


@pytest.mark.parametrize("failure", ["reset", "500"])
def test_a_request_that_ends_each_server_ends_the_run(failure: str) -> None:
    def fatal(server: VllmServer) -> None:
        """It dies of the request with seed 3, and is back a moment later."""

        def fate(seed: int) -> str:
            if seed != 3:
                return "answer"
            server.null = True
            asyncio.get_running_loop().call_later(0.1, setattr, server, "null", False)
            return failure

        server.fate = fate

    async def scene(it: Scene) -> None:
        fleet = await it.open([VllmServer(), VllmServer()])
        for server in it.servers:
            fatal(server)
        with pytest.raises(NoEngine, match=rf"seed 3, was with a server that was lost {LOSSES} times, the last time"):
            await all_samples(fleet, requests(40))
        first, second = it.servers
        assert first.asked[3] + second.asked[3] == LOSSES

    play(scene)


def test_a_server_at_which_all_fails_costs_each_request_one_attempt() -> None:
    async def scene(it: Scene) -> None:
        fleet = await it.open([VllmServer(seconds=0.01), VllmServer(lambda seed: "nonsense")], concurrency=2)
        asked = requests(40)
        check(asked, await all_samples(fleet, asked))
        assert set(it.servers[1].asked.values()) == {1}

    play(scene)


def test_an_error_of_a_server_that_does_not_answer_its_probe_is_its_own() -> None:
    async def scene(it: Scene) -> None:
        fleet = await it.open([VllmServer(), VllmServer()], probe_seconds=PROBE)
        _, second = it.servers

        def fail(_: int) -> str:
            second.engine_hangs = True
            return "500"

        second.fate = fail
        asked = requests(30)
        check(asked, await all_samples(fleet, asked))
        assert len(fleet.live()) == 1
        assert sum(second.asked.values()) <= 8  # what it had at once, and no more after its error
        assert len(second.answered) == 0

    play(scene)


def test_a_server_that_answers_a_probe_with_nothing_is_lost_and_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(it: Scene) -> None:
        fleet = await it.open([VllmServer(), VllmServer()])
        first, second = it.servers
        second.null = True
        await until(lambda: fleet.live() == [(first.address, 2)])
        second.null = False
        await until(lambda: len(fleet.live()) == 2)
        await second.kill()  # it is still probed
        await until(lambda: fleet.live() == [(first.address, 2)])

    with caplog.at_level(logging.WARNING):
        play(scene)
    assert "it does not tell the version of its weights" in caplog.text


class _Process:
    """Of a server that has ended and cannot be started at first."""

    def __init__(self, start: Callable[[], Any]) -> None:
        self.starts, self._start = 0, start
        self.running = False

    def ended(self) -> str | None:
        return None if self.running else "the vLLM server was killed"

    def start(self) -> None:
        self.starts += 1
        if self.starts < 3:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        self.running = True
        self._start()

    def close(self) -> None:
        pass


def test_whatever_goes_wrong_a_server_is_watched_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(member_module, "SECONDS_BETWEEN_RESTARTS", 0.0)

    async def scene(it: Scene) -> None:
        fleet = await it.open([VllmServer(), VllmServer()])
        first, second = it.servers
        member = fleet._members[1]
        starting: list[asyncio.Task[None]] = []
        process = _Process(lambda: starting.append(asyncio.create_task(second.start())))
        member.process = process  # type: ignore[assignment]
        await second.kill()
        await until(lambda: fleet.live() == [(first.address, 2)])
        await until(lambda: len(fleet.live()) == 2)
        assert process.starts == 3

        async def surprise(seconds: float) -> None:
            raise KeyError("what nobody foresaw")

        with monkeypatch.context() as broken:
            broken.setattr(member.server, "health", surprise)
            await until(lambda: fleet.live() == [(first.address, 2)])
        await until(lambda: len(fleet.live()) == 2)

    with caplog.at_level(logging.INFO):
        play(scene)
    assert caplog.text.count("cannot be started again: [Errno 11] Resource temporarily unavailable") == 2
    assert "KeyError: 'what nobody foresaw'" in caplog.text

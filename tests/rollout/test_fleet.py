"""Fleets of servers: nothing is lost and nothing comes twice, whatever servers do. The servers are stand-ins."""

import asyncio
import logging
import pickle
import random
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest

from qedmeg.config_rl import RolloutConfig
from qedmeg.errors import UserError
from qedmeg.rollout.fleet import Request
from qedmeg.rollout.protocol import EngineLost
from qedmeg.rollout.remote import NoEngine, RemoteFleet
from qedmeg.rollout.server import EngineRefused
from tests.rollout.fleet_scenes import PROBE, SAMPLING, Scene, all_samples, check, play, requests, send, until
from tests.rollout.vllm_server import CONTEXT, VllmServer


def test_requests_go_where_the_fewest_are_under_way() -> None:
    async def scene(it: Scene) -> None:
        fleet = await it.open([VllmServer(seconds=0.02), VllmServer(seconds=0.02), VllmServer(seconds=0.5)])
        assert fleet.live() == [(server.address, 2) for server in it.servers]
        assert fleet.gpus(it.servers[1].address) == ["GPU-1", "GPU-2"]
        await all_samples(fleet, requests(6))
        assert [server.most_at_once for server in it.servers] == [2, 2, 2]
        asked = requests(200)
        check(asked, await all_samples(fleet, asked))
        assert [server.most_at_once for server in it.servers] == [8, 8, 8]  # each is used, none beyond its share
        fast, other, slow = (len(server.answered) for server in it.servers)
        assert fast + other + slow == 206
        assert min(fast, other) > 2 * slow

    play(scene)


def test_what_is_urgent_does_not_wait_behind_what_is_not() -> None:
    async def scene(it: Scene) -> None:
        fleet = await it.open([VllmServer(seconds=0.02)], concurrency=1)
        behind = asyncio.create_task(all_samples(fleet, requests(20)))
        await until(lambda: it.servers[0].answered)
        urgent = [Request(np.array([9], dtype=np.int32), 100 + seed, ahead=True) for seed in range(3)]
        await all_samples(fleet, urgent)
        assert not behind.done()
        await behind
        assert {100, 101, 102} <= set(it.servers[0].answered[:7])

    play(scene)


def test_answers_come_as_they_finish() -> None:
    async def scene(it: Scene) -> None:
        fleet = await it.open([VllmServer(), VllmServer(lambda seed: "hang")], concurrency=1)
        async with aclosing(fleet.generate(requests(8), SAMPLING)) as samples:
            got = [await anext(samples) for _ in range(7)]
        assert {index for index, _ in got} == {0, *range(2, 8)}  # though the second hangs

    play(scene)


def test_failures_of_all_kinds_lose_nothing() -> None:
    failed: Counter[int] = Counter()

    def fates(number: int) -> Callable[[int], str]:
        draw = random.Random(number)

        def fate(seed: int) -> str:
            # of failures that are the request's it may have two
            kinds = ("500", "reset", "cut", "nonsense") if failed[seed] < 2 else ("reset", "cut")
            what = draw.choice(kinds) if draw.random() < 0.2 else "answer"
            failed[seed] += what in ("500", "nonsense")
            return what

        return fate

    async def scene(it: Scene) -> None:
        fleet = await it.open([VllmServer(fates(i), seconds=0.01) for i in range(3)])
        asked = requests(300)
        check(asked, await all_samples(fleet, asked))
        answered = Counter(seed for server in it.servers for seed in server.answered)
        assert answered == Counter(range(300))  # nor was anything generated twice
        assert sum(sum(server.asked.values()) for server in it.servers) > 330

    play(scene)


def test_a_server_that_dies_comes_back_when_it_has_weights(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(it: Scene) -> None:
        fleet = await it.open([VllmServer(seconds=0.02), VllmServer(seconds=0.02)])
        first, second = it.servers
        asked = requests(100)
        work = asyncio.create_task(all_samples(fleet, asked))
        await until(lambda: len(second.answered) >= 10)
        await second.kill()
        await until(lambda: fleet.live() == [(first.address, 2)])
        await second.start()
        await until(lambda: len(fleet.live()) == 2)
        had = sum(second.asked.values())
        check(asked, await work)
        assert sum(second.asked.values()) == had  # it answers, but has no weights
        assert not fleet.needs_weights()
        await send(fleet, 2)
        got = await all_samples(fleet, asked)
        check(asked, got)
        assert sum(second.asked.values()) > had
        assert {sample.versions for _, sample in got} == {((2, 0),)}

    with caplog.at_level(logging.WARNING):
        play(scene)
    lines = [record.getMessage() for record in caplog.records]
    lost = [line for line in lines if line.startswith("lost the vLLM server at http://127.0.0.1:")]
    back = [line for line in lines if "is back after" in line]
    assert len(lost) == len(back) == 1
    assert back[0].endswith("it waits for weights")


def test_a_server_started_anew_unseen_gets_no_requests() -> None:
    async def scene(it: Scene) -> None:
        fleet = await it.open([VllmServer(), VllmServer()])
        _, second = it.servers
        second.version = "default"  # as after a restart between two probes
        asked = requests(50)
        check(asked, await all_samples(fleet, asked))
        got = await all_samples(fleet, asked)
        assert {sample.versions for _, sample in got} == {((1, 0),)}
        await until(lambda: len(fleet.live()) == 2)  # it was seen to have no weights of ours
        second.version = "1"  # as one that another run has sent its weights to
        had = sum(second.asked.values())
        check(asked, await all_samples(fleet, asked))
        assert sum(second.asked.values()) == had

    play(scene)


@pytest.mark.parametrize("what", ["hangs", "engine_hangs"])
def test_a_hanging_server_is_dropped(what: str) -> None:
    async def scene(it: Scene) -> None:
        fleet = await it.open([VllmServer(seconds=0.02), VllmServer(seconds=0.02)], probe_seconds=PROBE)
        first, second = it.servers
        asked = requests(60)
        work = asyncio.create_task(all_samples(fleet, asked))
        await until(lambda: len(second.answered) >= 5)
        setattr(second, what, True)
        check(asked, await work)
        assert fleet.live() == [(first.address, 2)]
        await until(lambda: len(second.given_up) >= 8)  # it was told that nobody waits
        setattr(second, what, False)
        await until(lambda: len(fleet.live()) == 2)
        had = len(second.answered)
        check(asked, await all_samples(fleet, asked))
        assert len(second.answered) > had  # its weights are still those

    play(scene)


def test_one_slow_answer_goes_elsewhere_and_then_ends_the_run() -> None:
    async def scene(it: Scene) -> None:
        def once(seed: int) -> str:
            hang = seed == 3 and sum(server.asked[3] for server in it.servers) == 1
            return "hang" if hang else "answer"

        fleet = await it.open([VllmServer(once), VllmServer(once)], generate_seconds=0.5)
        asked = requests(20)
        check(asked, await all_samples(fleet, asked))
        for server in it.servers:
            server.fate = lambda seed: "hang" if seed == 5 else "answer"
        with pytest.raises(NoEngine, match=r"longer than rollout\.generate_seconds 0\.5 twice, .*http://127"):
            await all_samples(fleet, asked)
        assert sum(server.asked[5] for server in it.servers) == 1 + 2

    play(scene)


def test_without_servers_requests_wait_and_name_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scene(it: Scene) -> None:
        fleet = await it.open([VllmServer(), VllmServer()], generate_seconds=2.0)
        for server in it.servers:
            await server.kill()
        asked = requests(20)
        work = asyncio.create_task(all_samples(fleet, asked))
        await until(lambda: not fleet.live())
        await until(lambda: "rollouts wait for a vLLM server" in caplog.text)
        assert not fleet.needs_weights()  # there is none to send them to
        await it.servers[0].start()
        await until(fleet.needs_weights)
        await send(fleet, 1)
        check(asked, await work)
        await it.servers[0].kill()
        message = (
            rf"no vLLM server for rollout\.generate_seconds 2: {it.servers[0].address}: .*; {it.servers[1].address}"
        )
        with pytest.raises(NoEngine, match=message):
            await all_samples(fleet, asked)

    with caplog.at_level(logging.WARNING):
        play(scene)


def test_a_failed_transfer_takes_the_engine_and_its_requests_away() -> None:
    async def scene(it: Scene) -> None:
        fleet = await it.open([VllmServer(seconds=0.05), VllmServer(seconds=0.05)])
        _, second = it.servers
        asked = requests(40)
        work = asyncio.create_task(all_samples(fleet, asked))
        await until(lambda: len(second.answered) >= 1)
        await fleet.pause()
        had = len(second.answered)
        await fleet.call(second.address, "start_update", {})
        with pytest.raises(EngineLost, match=rf"{second.address}: /update_weights: status 500: .*trainer went away"):
            await fleet.call(second.address, "update", {"broken": True})
        with pytest.raises(EngineLost, match="went away"):  # nothing more is asked of it
            await fleet.call(second.address, "finish_update", {"version": 2})
        await fleet.resume(1)  # what the server says that it has is no longer whole
        check(asked, await work)
        assert len(second.answered) == had
        await until(lambda: len(fleet.live()) == 2)
        check(asked, await all_samples(fleet, asked))
        assert len(second.answered) == had
        await send(fleet, 2)
        check(asked, await all_samples(fleet, asked))
        assert len(second.answered) > had

    play(scene)


def test_a_pause_holds_requests_back_also_at_a_server_that_comes_back() -> None:
    async def scene(it: Scene) -> None:
        fleet = await it.open([VllmServer(), VllmServer()], probe_seconds=PROBE)
        first, second = it.servers
        second.hangs = True
        await until(lambda: len(fleet.live()) == 1)
        await fleet.pause()
        assert first.calls[-1] == "/pause"
        second.calls.clear()
        second.hangs = False
        await until(lambda: len(fleet.live()) == 2)
        assert second.calls == ["/pause"]
        asked = requests(20)
        work = asyncio.create_task(all_samples(fleet, asked))
        await asyncio.sleep(0.1)
        assert not any(server.asked for server in it.servers)
        await fleet.resume(1)
        check(asked, await work)
        assert all(server.answered for server in it.servers)

    play(scene)


def test_who_closes_the_iterator_gives_up_the_rest() -> None:
    async def scene(it: Scene) -> None:
        fleet = await it.open([VllmServer(lambda seed: "answer" if seed < 4 else "hang")])
        server = it.servers[0]
        async with aclosing(fleet.generate(requests(30), SAMPLING)) as samples:
            got = [await anext(samples) for _ in range(4)]
            await until(lambda: sum(server.asked.values()) == 12)
        assert {index for index, _ in got} == {0, 1, 2, 3}
        await until(lambda: len(server.given_up) == 8)
        assert sum(server.asked.values()) == 12  # those that waited were never sent
        server.fate = lambda seed: "answer"
        asked = requests(8)
        check(asked, await all_samples(fleet, asked))

    play(scene)


def test_what_can_never_be_answered_is_not_asked_again() -> None:
    async def scene(it: Scene) -> None:
        fleet = await it.open([VllmServer(lambda seed: "400"), VllmServer(lambda seed: "400")])
        long = [*requests(2), Request(np.zeros(49, dtype=np.int32), 9)]
        with pytest.raises(
            UserError, match=r"prompt of 49 tokens and rollout\.max_tokens 16 do not fit .* context of 64 tokens"
        ):
            await all_samples(fleet, long)
        assert not any(server.asked for server in it.servers)  # nor were the others
        with pytest.raises(EngineRefused, match="status 400"):
            await all_samples(fleet, requests(1))
        assert sum(server.asked[0] for server in it.servers) == 1
        assert len(fleet.live()) == 2
        with pytest.raises(EngineLost, match="no such engine"):
            await fleet.call("http://elsewhere:1", "start_update", {})

    play(scene)


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ({"context": 63}, r"http://.*: its context of 63 tokens is shorter than .* 64; start it with --max-length 64"),
        ({"dev_mode": False}, r"http://.*/get_world_size: status 404.*; start it with: python -m qedmeg serve"),
    ],
)
def test_a_server_of_no_use_is_told_at_the_start(server: dict[str, Any], message: str) -> None:
    async def scene(it: Scene) -> None:
        with pytest.raises(UserError, match=message):
            await it.open([VllmServer(), VllmServer(**server)])

    play(scene)


def test_the_start_goes_on_without_one_of_several_but_not_without_all(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(it: Scene) -> None:
        async with VllmServer() as absent:
            pass
        config = RolloutConfig(servers=(absent.address,), start_seconds=0.2)
        with pytest.raises(UserError, match=rf"{absent.address}: no answer within rollout\.start_seconds 0\.2 .*right"):
            await RemoteFleet(config, CONTEXT, addresses=config.servers).start()
        async with VllmServer() as present:
            config = RolloutConfig(servers=(absent.address, present.address), start_seconds=0.2)
            fleet = RemoteFleet(config, CONTEXT, addresses=config.servers, probe_seconds=PROBE)
            await fleet.start()
            assert fleet.live() == [(present.address, 2)]
            await absent.start()
            await until(lambda: len(fleet.live()) == 2)
            await fleet.close()
            await absent.kill()

    with caplog.at_level(logging.WARNING):
        play(scene)
    assert "the run begins without a server" in caplog.text


def test_a_call_that_hangs_ends_at_its_deadline() -> None:
    async def scene(it: Scene) -> None:
        fleet = await it.open([VllmServer()], transfer_seconds=0.2)
        it.servers[0].engine_hangs = True
        with pytest.raises(EngineLost, match=r"/start_weight_update: no answer within 0\.2 s"):
            await fleet.call(it.servers[0].address, "start_update", {})

    play(scene)


def test_a_lost_engine_is_told_from_rank_to_rank() -> None:
    lost = pickle.loads(pickle.dumps(EngineLost("http://node7:8000", "no answer")))
    assert (lost.name, lost.reason, str(lost)) == ("http://node7:8000", "no answer", "http://node7:8000: no answer")

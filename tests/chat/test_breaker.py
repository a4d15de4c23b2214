"""After failures in a row nothing is sent for a while, and then one probe."""

import asyncio

from qedmeg.chat.breaker import Breaker

PAUSE = 0.1


def test_it_opens_after_failures_in_a_row_only() -> None:
    async def scenario() -> None:
        breaker = Breaker("server", 3, PAUSE)
        for answered in (False, False, True, False, None, False):
            assert not await breaker.admit()
            breaker.report(probe=False, answered=answered)
        assert not breaker.is_open
        breaker.report(probe=False, answered=False)
        assert breaker.is_open

    asyncio.run(scenario())


def test_one_probe_goes_and_the_others_wait_for_it() -> None:
    async def scenario(answers: list[bool | None]) -> tuple[list[bool], list[float]]:
        """Which of five requests were let through, probes or not; and when those were, in pauses."""
        loop = asyncio.get_running_loop()
        breaker = Breaker("server", 1, PAUSE)
        start, probes, times = loop.time(), [], []
        breaker.report(probe=False, answered=False)

        async def request() -> None:
            probe = await breaker.admit()
            probes.append(probe)
            times.append((loop.time() - start) / PAUSE)
            await asyncio.sleep(PAUSE / 5)  # the others come meanwhile
            breaker.report(probe=probe, answered=answers.pop(0) if probe else True)

        async with asyncio.timeout(5):
            await asyncio.gather(*(request() for _ in range(5)))
        return probes, times

    probes, times = asyncio.run(scenario([True]))
    assert probes == [True] + [False] * 4
    assert times[0] >= 1
    assert times[1] >= 1.2  # not before the probe was answered
    # Each failed probe costs a pause, and the fifth of one that it took.
    probes, times = asyncio.run(scenario([False, False, True]))
    assert probes == [True] * 3 + [False] * 2
    assert [time >= least for time, least in zip(times, (1, 2.2, 3.4, 3.6), strict=False)] == [True] * 4
    # A probe that was given up says nothing: the next one goes at once.
    probes, times = asyncio.run(scenario([None, True]))
    assert probes == [True] * 2 + [False] * 3
    assert times[1] < 2.2


def test_an_answer_to_a_request_from_before_closes_it() -> None:
    async def scenario() -> None:
        breaker = Breaker("server", 1, 30)
        assert not await breaker.admit()
        assert not await breaker.admit()
        breaker.report(probe=False, answered=False)
        async with asyncio.timeout(1):
            waiting = asyncio.create_task(breaker.admit())
            await asyncio.sleep(0)
            breaker.report(probe=False, answered=True)
            assert not await waiting
            assert not await breaker.admit()

    asyncio.run(scenario())

"""After failures in a row nothing is sent for a while, and then one probe."""

import asyncio

from qedmeg.grading.breaker import Breaker

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
    async def scenario(answers: list[bool | None]) -> list[tuple[bool, int]]:
        """Which of five requests was let through, probe or not, and after how many pauses."""
        loop = asyncio.get_running_loop()
        breaker = Breaker("server", 1, PAUSE)
        breaker.report(probe=False, answered=False)
        start, let_through = loop.time(), []

        async def request() -> None:
            probe = await breaker.admit()
            let_through.append((probe, int((loop.time() - start) / PAUSE)))
            await asyncio.sleep(PAUSE / 5)  # the others come meanwhile
            breaker.report(probe=probe, answered=answers.pop(0) if probe else True)

        async with asyncio.timeout(5):
            await asyncio.gather(*(request() for _ in range(5)))
        return let_through

    assert asyncio.run(scenario([True])) == [(True, 1)] + [(False, 1)] * 4
    # Each failed probe costs a pause (and the fifth of one that it took).
    assert asyncio.run(scenario([False, False, True]))[:4] == [(True, 1), (True, 2), (True, 3), (False, 3)]
    # A probe that was given up says nothing: the next one goes at once.
    assert asyncio.run(scenario([None, True])) == [(True, 1), (True, 1)] + [(False, 1)] * 3


def test_an_answer_to_a_request_from_before_closes_it() -> None:
    async def scenario() -> None:
        breaker = Breaker("server", 1, 30)
        assert not await breaker.admit()
        assert not await breaker.admit()
        breaker.report(probe=False, answered=False)
        breaker.report(probe=False, answered=True)
        async with asyncio.timeout(1):
            assert not await breaker.admit()

    asyncio.run(scenario())

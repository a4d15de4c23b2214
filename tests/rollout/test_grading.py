"""A grader that is waited for while it fails, and proofs that get no grade however often it is asked."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import pytest

from qedmeg.grading.grade import Failed, Grade, Graded
from qedmeg.grading.grader import AnyProblem, ProofProblem
from qedmeg.rollout.grading import TRIES_IN_OUTAGES, WAITS_IN_OUTAGES, PatientGrader

PROBLEM = ProofProblem("p", "Show it.", "7 points for the idea.")
GRADED = Graded(7, 7, (), "scripted")
TIMEOUT = Failed("timeout", "no answer", of_grader=True)
REFUSED = Failed("refused", "not such a proof")
UNREADABLE = Failed("unreadable answer", "no verdict")
SEVEN = [f"early {i}" for i in range(7)]
"""So many failures are still taken for the proofs' own: with the eighth the grader is in trouble."""


@dataclass
class Run:
    """A scripted grader, and what came of the proofs that it was asked about."""

    script: Callable[["Run", str, int], Awaitable[Grade]]
    """The n-th answer (from 0) about a proof."""
    version: str = "scripted"
    asked: Counter[str] = field(default_factory=Counter)
    said: list[str] = field(default_factory=list)
    kept: list[Failed] = field(default_factory=list)
    grades: dict[str, Grade] = field(default_factory=dict)

    async def grade(self, problem: AnyProblem, proof: str, again: int = 0) -> Grade:
        nth = self.asked[proof]
        assert nth < 200, f"the grader is asked about {proof} without end"
        self.asked[proof] += 1
        await asyncio.sleep(0)  # until all have been asked
        return await self.script(self, proof, nth)

    async def paused(self, times: int) -> None:
        """Wait until grading has been paused so many times."""
        while len(self.said) < times:
            await asyncio.sleep(0.001)

    async def close(self) -> None:
        pass


def grade(proofs: Sequence[str], script: Callable[[Run, str, int], Awaitable[Grade]]) -> Run:
    """Have all proofs graded side by side, asked about in this order."""
    run = Run(script)

    async def work() -> None:
        patient = PatientGrader(run, 0.3, 0.02, lambda rollout, failed: run.kept.append(failed), run.said.append)
        async with asyncio.timeout(30):
            grades = await asyncio.gather(*(patient.grade(PROBLEM, proof, i) for i, proof in enumerate(proofs)))
        run.grades = dict(zip(proofs, grades, strict=True))

    asyncio.run(work())
    return run


def test_an_outage_is_waited_for_however_long_it_takes() -> None:
    async def script(run: Run, proof: str, nth: int) -> Grade:
        return TIMEOUT if nth < 10 else GRADED

    late = [f"late {i}" for i in range(20)]
    run = grade([*SEVEN, *late], script)
    assert [run.grades[proof] for proof in SEVEN] == [TIMEOUT] * 7
    assert [run.grades[proof] for proof in late] == [GRADED] * 20
    assert (len(run.said), run.kept) == (10, [TIMEOUT] * 200)


def test_what_was_asked_before_an_outage_does_not_end_it() -> None:
    async def script(run: Run, proof: str, nth: int) -> Grade:
        if proof == "slow":
            await run.paused(1)
            return GRADED
        return TIMEOUT if nth < 2 else GRADED

    run = grade(["slow", *SEVEN, "late"], script)
    assert (run.grades["slow"], run.grades["late"]) == (GRADED, GRADED)
    assert len(run.said) == 2


@pytest.mark.parametrize("failure", [REFUSED, UNREADABLE])
def test_proofs_that_never_get_a_grade_are_given_up(failure: Failed) -> None:
    async def script(run: Run, proof: str, nth: int) -> Grade:
        return GRADED if proof.startswith("good") else failure

    good, bad = [f"good {i}" for i in range(8)], [f"bad {i}" for i in range(6)]
    run = grade([*good, *bad], script)
    assert [run.grades[proof] for proof in good] == [GRADED] * 8
    assert [run.grades[proof] for proof in bad] == [failure] * 6
    assert max(run.asked.values()) == TRIES_IN_OUTAGES
    assert len(run.said) == TRIES_IN_OUTAGES - 1


def test_proofs_for_which_the_judge_always_takes_too_long_are_given_up_at_last() -> None:
    async def script(run: Run, proof: str, nth: int) -> Grade:
        return GRADED if proof.startswith("good") else TIMEOUT

    run = grade(["good 0", "good 1", *(f"long {i}" for i in range(9))], script)
    assert run.grades["long 8"] == TIMEOUT
    assert max(run.asked.values()) == WAITS_IN_OUTAGES + 1


def test_a_judge_of_which_nothing_can_be_read_is_in_trouble_too() -> None:
    async def script(run: Run, proof: str, nth: int) -> Grade:
        return UNREADABLE if len(run.said) < 2 else GRADED

    run = grade([*SEVEN, "late"], script)
    assert run.grades["late"] == GRADED
    assert "(8 unreadable answer of the last 8 grades)" in run.said[0]
    assert run.said[0].endswith("the last failure: no verdict")


def test_failures_of_the_grader_are_no_tries_of_the_proof() -> None:
    async def script(run: Run, proof: str, nth: int) -> Grade:
        return UNREADABLE if nth % 5 == 4 else TIMEOUT

    run = grade([*SEVEN, "late"], script)
    assert run.grades["late"] == UNREADABLE
    assert run.asked["late"] == 5 * TRIES_IN_OUTAGES


def test_a_proof_that_fails_alone_is_not_waited_for() -> None:
    """The other was asked about on trial too, and is graded while the first one's failure is waited for."""

    async def script(run: Run, proof: str, nth: int) -> Grade:
        if nth == 0:
            return TIMEOUT
        if proof == "good":
            await run.paused(2)
            return GRADED
        return REFUSED

    run = grade([*SEVEN, "bad", "good"], script)
    assert (run.grades["bad"], run.grades["good"]) == (REFUSED, GRADED)
    assert (len(run.said), run.asked["bad"]) == (2, 3)  # of which two failures were its own

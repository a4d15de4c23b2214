"""From a rollout's tokens to its grade: the proof in an answer, and a grader that is waited for while it fails."""

import asyncio
import re
from collections import Counter
from collections.abc import Callable

from qedmeg.data.problems import Problem
from qedmeg.data.tokenizer import Tokenizer
from qedmeg.grading.grade import Failed, Grade, Graded, ItemGrade
from qedmeg.grading.grader import Grader, ProofProblem
from qedmeg.grading.prompt import WHOLE_PROOF
from qedmeg.grading.rubric import RUBRIC_POINTS, Rubric
from qedmeg.rollout.sample import Sample
from qedmeg.rollout.schedule import GRADES_WATCHED, too_many_failures
from qedmeg.thinking import END_OF_THINK

WAITS_IN_OUTAGES = 120
"""Pauses after which a proof is given up in an outage, an hour or more: where only proofs are left for which the
judge always takes too long, it looks like one that lasts."""
TRIES_IN_OUTAGES = 3
"""Failures of its own after which a proof is given up, though the grader as a whole is failing."""
NO_PROOF = "no proof"
"""In place of the grader's version where none was asked."""


def proof_of(tokenizer: Tokenizer, sample: Sample, *, thinking: bool) -> str | None:
    """The text of an answer without control tokens; with `thinking` what follows the last </think>, and None where
    there is none."""
    text = tokenizer.decode(sample.tokens_T.tolist())
    if thinking:
        _, end, text = text.rpartition(END_OF_THINK)
        if not end:
            return None
    return without_control_tokens(tokenizer, text).strip()


def without_control_tokens(tokenizer: Tokenizer, text: str) -> str:
    """The text without the control tokens in it; what is left may spell one that they stood in."""
    if not tokenizer.special_texts:
        return text
    longest_first = sorted(tokenizer.special_texts, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest_first)), "", text)


def no_proof(problem: Problem | ProofProblem) -> Graded:
    """The grade of an answer in which there is none: nothing, without asking a grader."""
    reason = f"the answer holds no {END_OF_THINK}: it never came to a proof"
    items = [(item.name, item.points) for item in problem.rubric.items] if isinstance(problem.rubric, Rubric) else []
    items = items or [(WHOLE_PROOF, RUBRIC_POINTS)]
    return Graded(0, RUBRIC_POINTS, tuple(ItemGrade(name, 0, of, reason) for name, of in items), NO_PROOF)


class PatientGrader:
    """A grader that is not asked for a while when too many of its last grades failed, and then asked again.

    What failed in such an outage says little about a proof: it is graded again, `WAITS_IN_OUTAGES` times at
    most, and where it is the proof that gets no grade `TRIES_IN_OUTAGES` times. `keep` is told of these failures, with
    the id of their rollout, and `say` what a person should see.
    """

    def __init__(
        self,
        grader: Grader,
        max_failure_rate: float,
        pause_seconds: float,
        keep: Callable[[int, Failed], None],
        say: Callable[[str], None],
    ) -> None:
        self._grader, self._max_failure_rate, self._pause_seconds = grader, max_failure_rate, pause_seconds
        self._keep, self._say = keep, say
        self._open = asyncio.Event()
        self._open.set()
        self._on_trial = False
        """It had failed, and has graded nothing since it was asked again."""
        self._last: list[Grade] = []

    @property
    def version(self) -> str:
        """Of the grader that is asked."""
        return self._grader.version

    @property
    def is_paused(self) -> bool:
        """Whether it is not asked at present."""
        return not self._open.is_set()

    async def grade(self, problem: Problem | ProofProblem, proof: str, rollout: int) -> Grade:
        """The grade; `Failed` where this proof's failed and not the grader as a whole."""
        tries = waits = 0
        while True:
            await self._open.wait()
            asked_on_trial = self._on_trial
            grade = await self._grader.grade(problem, proof)
            self._last = [*self._last, grade][-GRADES_WATCHED:]
            if isinstance(grade, Graded):
                if asked_on_trial:
                    self._on_trial, self._last = False, []
                return grade
            tries += not grade.of_grader
            failed = [isinstance(one, Failed) for one in self._last]
            in_trouble = self._on_trial or self.is_paused or too_many_failures(failed, self._max_failure_rate)
            if not in_trouble or tries >= TRIES_IN_OUTAGES or waits >= WAITS_IN_OUTAGES:
                return grade
            waits += 1
            self._keep(rollout, grade)
            if not self.is_paused:
                await self._pause(grade)

    async def _pause(self, last: Failed) -> None:
        self._open.clear()
        self._on_trial = True  # until something that is asked from here on is graded
        kinds = Counter(grade.kind for grade in self._last if isinstance(grade, Failed))
        told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        self._say(
            f"graders are failing ({told} of the last {len(self._last)} grades): no proof is graded for "
            f"{self._pause_seconds:g} s, then they are asked again; the last failure: {last.reason}"
        )
        await asyncio.sleep(self._pause_seconds)
        self._open.set()

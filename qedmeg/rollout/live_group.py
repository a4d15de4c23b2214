"""A group that no step has used yet, as the rollout process holds it in memory."""

from dataclasses import dataclass, field, replace

import numpy as np

from qedmeg.data.problems import Problem
from qedmeg.grading.grade import Failed, Grade
from qedmeg.grading.grader import ProofProblem
from qedmeg.rollout.sample import Sample
from qedmeg.rollout.schedule import Slot


@dataclass(eq=False)
class LiveGroup:
    """A group that no step has used."""

    id: int
    problem: Problem | ProofProblem
    prompt_P: np.ndarray
    """int32."""
    size: int
    ready: bool = False
    slots: dict[int, Slot] = field(default_factory=dict)
    generating: set[int] = field(default_factory=set)
    """Places of which a rollout is being generated."""


def slot_of(rollout: int, attempt: int, sample: Sample) -> Slot:
    """The place of a rollout that is yet to be graded."""
    truncated = sample.finish_reason == "length"
    return Slot(rollout, attempt, sample.oldest_version, len(sample.tokens_T), truncated)


def graded(slot: Slot, grade: Grade) -> Slot:
    """The place with its grade."""
    if isinstance(grade, Failed):
        return replace(slot, status="failed")
    return replace(slot, status="graded", reward=grade.points / grade.of)

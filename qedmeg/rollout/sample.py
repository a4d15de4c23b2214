"""What a model wrote for one prompt, as the engine gave it: token ids and log-probabilities, never text."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from qedmeg.grading.grade import Failed, Graded


@dataclass(frozen=True, eq=False)
class Sample:
    """One generated answer of T tokens to a prompt of P tokens. Its text is for graders and people alone: training
    takes the ids, since text that is tokenised again need not give the same ones."""

    prompt_P: np.ndarray
    """int32."""
    tokens_T: np.ndarray
    """int32, with the end token where it was generated."""
    logprobs_T: np.ndarray
    """float32: the engine's own, of each token as it was sampled."""
    versions: tuple[tuple[int, int], ...]
    """(weight version, index of the first token that it generated), in order; the first index is 0."""
    finish_reason: Literal["stop", "length"]
    """`stop`: the model ended it. `length`: it was cut off at the token limit."""

    @property
    def oldest_version(self) -> int:
        """The weight version of the first token, which no other is older than."""
        return self.versions[0][0]

    @property
    def newest_version(self) -> int:
        """The weight version of the last token."""
        return self.versions[-1][0]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Nothing is cut off (top_p 1, no top_k): the log-probabilities that the trainer computes
    are of the whole distribution."""

    temperature: float
    max_tokens: int
    stop_ids: tuple[int, ...]
    seed: int
    """Of the first of several samples; the others' are counted on from it."""


@dataclass(frozen=True)
class Rollout:
    """A sample with its grade, as the store holds it."""

    id: int
    """Of the store."""
    sample: Sample
    grade: Graded | Failed
    attempt: int = 0
    """How many rollouts in its place were generated before it, whose grades failed."""

    @property
    def reward(self) -> float | None:
        """The share of the points that it earned; None where there is no grade."""
        return self.grade.points / self.grade.of if isinstance(self.grade, Graded) else None


@dataclass(frozen=True)
class GroupState:
    """Of what state of the reasoning cache a group is."""

    round: int
    """From 1; the round after the last begins with the last summary."""
    age: int
    """Weight versions between the state and the beginning of its group."""
    summary_tokens: int | None
    """Of the summary that led to it; None in round 1, and where there was nothing to summarise."""


@dataclass(frozen=True)
class Group:
    """The rollouts of one prompt that were graded, at least two."""

    id: int
    """Its number in the order of prompts, from 0: which problem it is of follows from it and the seed."""
    problem: str
    """Id of the problem."""
    rollouts: tuple[Rollout, ...]
    state: GroupState | None = None
    """With the reasoning cache: of what state it is."""


@dataclass(frozen=True)
class Credited:
    """A summary with what it brought."""

    sample: Sample
    reward: float
    """Mean reward of its state's group, less that of the state before: between −1 and 1."""


@dataclass(frozen=True)
class SummaryGroup:
    """The summaries of one reasoning, which are compared with each other."""

    state: int
    """Id of the state that the reasoning began with."""
    before: float
    """Mean reward of that state's group."""
    rollouts: tuple[Credited, ...]


@dataclass(frozen=True)
class Batch:
    """What a step trains on: its groups, and what it took to get them."""

    step: int
    groups: tuple[Group, ...]
    stats: dict[str, float]
    """Seconds and counts, for the log: see `qedmeg.rollout.schedule`."""
    summaries: tuple[SummaryGroup, ...] = ()
    """With the reasoning cache, where summaries are trained: those of which this step has the last group."""

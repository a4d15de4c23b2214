"""Which groups of rollouts are begun, used and dropped, and when. Pure functions.

Groups are numbered 0, 1, 2, ... in the order of prompts. Step k trains weight version k into version k + 1; the lag of
a rollout in step k is k minus the version of its first token. `max_lag` 0: when a step asks, its groups are generated
in rounds, each as one batch, and nothing runs in between. Above it, generation goes on while training runs.

The numbers of a `Batch`, all but the seconds since the step before was given its groups:

    seconds_generate, seconds_grade      the trainer's wait: rollouts were being generated, or only graded
    seconds_paused                       it waited because graders were failing
    rollouts_generated, tokens_generated, rollouts_truncated
    rollouts_too_old                     left out, since their lag had become too great
    groups_dropped/REASON                zero variance, too old, too few grades
    groups_refilled                      all of these: others were begun in their place
    grades_failed, grades_failed/KIND
    grader_requests, grader_prompt_tokens, grader_completion_tokens, grader_money
    lag_mean, lag_max                    over the rollouts of the batch
    queue_length                         groups that are ready for the next step
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from qedmeg.config_rl import AdvantageConfig
from qedmeg.data.sampler import documents_at

DropReason = Literal["zero variance", "too old", "too few grades"]

GRADES_WATCHED = 64
"""The share of failures is over so many of the last grades."""
GRADES_NEEDED = 8
"""With fewer, nothing is said of graders."""


@dataclass(frozen=True)
class Slot:
    """The newest rollout in one place of a group."""

    rollout: int
    """Id in the store."""
    attempt: int
    oldest_version: int
    tokens: int
    truncated: bool
    status: Literal["ungraded", "graded", "failed", "too old"] = "ungraded"
    reward: float = 0.0
    """Where graded."""


@dataclass(frozen=True)
class Queue:
    """The groups that are begun and not used, as those stand that are begun next."""

    step: int
    """The next that is given groups."""
    waiting: int
    """Groups that are used before."""
    prompts_per_step: int

    def step_of(self, place: int) -> int:
        """The step that uses, in its turn, the group that is begun after `place` others."""
        return self.step + (self.waiting + place) // self.prompts_per_step


def prompt_of(group: int, seed: int, size: int) -> int:
    """Which of `size` prompts a group is of."""
    return documents_at(seed, size, group, 1)[0]


def rollout_seed(run_seed: int, group: int, place: int, attempt: int) -> int:
    """The seed that a rollout is sampled with: 63 bits that depend on these numbers alone."""
    digest = hashlib.sha256(f"{run_seed} {group} {place} {attempt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def to_generate(slots: Mapping[int, Slot], size: int, regrades: int) -> list[tuple[int, int]]:
    """(place, attempt) of each rollout that a group still lacks: those never generated, and those whose grade failed,
    `regrades` times at most. One that is too old is not generated again: the group goes on without it."""
    lacking = []
    for place in range(size):
        slot = slots.get(place)
        if slot is None:
            lacking.append((place, 0))
        elif slot.status == "failed" and slot.attempt < regrades:
            lacking.append((place, slot.attempt + 1))
    return lacking


def is_too_old(oldest_version: int, step: int, max_lag: int) -> bool:
    """Whether a rollout would lag too far behind in `step`, and so in every later one."""
    return step - oldest_version > max_lag


def fate(
    slots: Mapping[int, Slot],
    size: int,
    regrades: int,
    min_graded: float,
    advantage: AdvantageConfig | None,
    max_tokens: int,
) -> Literal["open", "ready"] | DropReason:
    """What becomes of a group. `min_graded` is the least share of its rollouts, but for those that are too old, with
    which it is used; `advantage` is given where groups that would train nothing are dropped."""
    if to_generate(slots, size, regrades) or any(slot.status == "ungraded" for slot in slots.values()):
        return "open"
    graded = [slots[place] for place in sorted(slots) if slots[place].status == "graded"]
    too_old = sum(slot.status == "too old" for slot in slots.values())
    if len(graded) < 2:
        return "too old" if too_old else "too few grades"
    if len(graded) / (size - too_old) < min_graded:
        return "too few grades"
    if advantage is not None and _trains_nothing(graded, advantage, max_tokens):
        return "zero variance"
    return "ready"


def _trains_nothing(graded: Sequence[Slot], advantage: AdvantageConfig, max_tokens: int) -> bool:
    import torch  # seconds to import, and needed for this alone

    from qedmeg.training.advantages import group_advantages

    advantages = group_advantages(
        torch.tensor([slot.reward for slot in graded]),
        torch.tensor([slot.tokens for slot in graded]),
        torch.tensor([slot.truncated for slot in graded]),
        max_tokens,
        advantage,
    )
    return advantages is None or advantages.zero_variance


def groups_wanted(prompts_per_step: int, max_refills: int, zero_variance: int) -> int:
    """How many groups a step waits for, when `zero_variance` were dropped while it was being filled.

    That is prompts_per_step until max_refills × prompts_per_step have been replaced, and from there one fewer for each
    that is dropped. 0: the step takes what there is.
    """
    return max(0, prompts_per_step - max(0, zero_variance - max_refills * prompts_per_step))


def groups_to_begin(
    *, prompts_per_step: int, max_lag: int, version: int, next_step: int, alive: int, wanted: int, asked: bool
) -> int:
    """How many groups to begin now.

    With lag, groups are begun as long as the steps that the weights of `version` may serve are not provided for, those
    up to version + max_lag (AReaL's capacity rule, arXiv 2505.24298, section 5.1): a group that is used in its turn is
    then never too old.

    Args:
        version: of the engines' weights.
        next_step: the first step that has been given no groups.
        alive: groups that are open or ready.
        wanted: `groups_wanted` of the next step.
        asked: whether the trainer waits for the next step's batch.
    """
    if max_lag == 0:
        return max(0, wanted - alive) if asked else 0
    return max(0, (version + max_lag + 1 - next_step) * prompts_per_step - alive)


def too_many_failures(failed: Sequence[bool], max_failure_rate: float) -> bool:
    """Whether graders are in trouble, from the last grades: which of them failed."""
    watched = failed[-GRADES_WATCHED:]
    return len(watched) >= GRADES_NEEDED and sum(watched) > max_failure_rate * len(watched)

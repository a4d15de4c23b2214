"""The buffer of the reasoning cache's states: which of them get groups, and what their summaries earn. Pure functions.

A chain of T rounds has T + 1 states: round 1 begins with the problem alone, round r + 1 with the summary of rounds 1 to
r. Where summaries are trained, each round has m of them, and as many states after it: *siblings*, at places 0 to m − 1,
of which the chain goes on from the first. With the state before them, their parent, they are a *fork*.

The age of a state is the weight version that its group is begun with, less the oldest that wrote any of it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from qedmeg.config_rc import CacheConfig
from qedmeg.rollout.schedule import Queue

Kind = Literal["reason", "summarise"]


@dataclass(frozen=True)
class BufferedState:
    """A state that may get a group."""

    id: int
    """Of the store, which follows the order of arrival: nothing is decided by it."""
    chain: int
    round: int
    """From 1; T + 1 is after the last summary."""
    place: int
    parent: int | None
    """The state that the round before began with."""
    version: int
    """The oldest weights that wrote any of it; of a round 1, those that its chain was begun with."""
    wrote: int | None = None
    """The oldest weights that wrote its last summary; None where none of the policy's was written."""
    alive: bool = False
    """It has a group that no step has used."""
    drawn: int | None = None
    """The weight version that its last group was begun with."""
    earned: float | None = None
    """Mean reward of its graded rollouts."""


@dataclass(frozen=True)
class BufferedChain:
    """A chain that is rolled out, with those of its states that are in the buffer."""

    id: int
    states: tuple[BufferedState, ...]


@dataclass(frozen=True)
class Drawn:
    """A state that gets a group."""

    state: int
    fork: int | None = None
    """The parent of the fork that it is drawn with, whose summaries are trained. None: it is drawn by itself."""


@dataclass(frozen=True)
class Credit:
    """What a fork came to."""

    before: float
    """Mean reward of the parent's group."""
    after: Mapping[int, float]
    """Mean reward of the groups of its siblings, by state."""

    @property
    def improvements(self) -> dict[int, float]:
        """What each summary earns: how much better its state's group is than the one before."""
        return {state: mean - self.before for state, mean in self.after.items()}


def is_over_aged(state_version: int, version: int, max_age: int) -> bool:
    """Whether a state is too old for a group that weights of `version` begin, and so for every later one."""
    return version - state_version > max_age


def draw(
    chains: Sequence[BufferedChain],
    count: int,
    config: CacheConfig,
    *,
    version: int,
    queue: Queue,
    max_lag: int,
    seed: int,
) -> tuple[Drawn, ...]:
    """At most `count` states that get groups now; the same for the same arguments.

    First come the chains that no step has used, in their order, then the others in an order drawn for this version;
    none has more than `states_per_problem` groups at a time, and no state two groups of one version.

    With `both`, forks of new chains come first, as long as their summaries will be at most `max_lag` versions old when
    the last of their groups is used in its turn, and so may be trained. What is left of `count` is filled with single
    states: of the other chains, then of new chains.
    """
    new = sorted((chain for chain in chains if all(one.drawn is None for one in chain.states)), key=lambda one: one.id)
    used = [chain for chain in chains if any(one.drawn is not None for one in chain.states)]
    order = [*new, *sorted(used, key=lambda chain: _shuffled(seed, version, chain.id))]
    drawn: list[Drawn] = []
    if config.train == "both":
        size, forked = config.states_per_problem, []
        for chain in new:
            oldest = queue.step_of(len(drawn) + size - 1) - max_lag
            fork = _fork(_eligible(chain, version, config), oldest, config, version, seed)
            if not fork:
                continue
            if len(drawn) + size <= count:
                drawn += fork
            else:
                forked.append(chain)
            order.remove(chain)
        order += forked
    for chain in order:
        room = min(config.states_per_problem - sum(state.alive for state in chain.states), count - len(drawn))
        preferred = sorted(
            _eligible(chain, version, config), key=lambda state: _preference(state, config.sampling, version, seed)
        )
        chosen = preferred[: max(0, room)]
        drawn += [Drawn(state.id) for state in sorted(chosen, key=lambda state: (state.round, state.place))]
    return tuple(drawn)


def chains_to_begin(config: CacheConfig, prompts_per_step: int, *, begun: int, rolling: int, lacking: int) -> int:
    """How many chains to begin now.

    Args:
        config: of the cache.
        prompts_per_step: groups of a step.
        begun: chains begun with the weights that the engines have.
        rolling: chains that are being rolled out.
        lacking: states that are asked for, beyond those in the buffer.
    """
    due = chains_of_a_version(config, prompts_per_step) - begun
    return max(due, -(-lacking // config.states_per_problem) - rolling, 0)


def chains_of_a_version(config: CacheConfig, prompts_per_step: int) -> int:
    """How many chains are begun with each weight version, whatever older states there are."""
    return config.chains_per_step or -(-prompts_per_step // config.states_per_problem)


def turn_seed(run_seed: int, chain: int, round: int, kind: Kind, place: int) -> int:
    """The seed that a turn is sampled with: 63 bits that depend on these alone, and are no rollout's."""
    digest = hashlib.sha256(f"{run_seed} chain {chain} {round} {kind} {place}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def credit(parent: int, rewards: Mapping[int, Sequence[float]], siblings: int) -> Credit | None:
    """What the summaries of a fork brought. `rewards`: of each of its states the rewards of its group, those of failed
    grades left out. None where one of its groups is missing or has no grade: nothing is guessed."""
    after = {state: fmean(earned) for state, earned in rewards.items() if state != parent and earned}
    if len(after) < siblings or not rewards.get(parent):
        return None
    return Credit(fmean(rewards[parent]), after)


def _eligible(chain: BufferedChain, version: int, config: CacheConfig) -> list[BufferedState]:
    return [
        state
        for state in chain.states
        if not state.alive and state.drawn != version and not is_over_aged(state.version, version, config.max_age)
    ]


def _fork(eligible: Sequence[BufferedState], oldest: int, config: CacheConfig, version: int, seed: int) -> list[Drawn]:
    """A fork of a new chain: the parent, then its siblings, whose summaries are not older than version `oldest`. None
    where there is none."""
    for parent in sorted(eligible, key=lambda state: _preference(state, config.sampling, version, seed)):
        siblings = sorted((other for other in eligible if other.parent == parent.id), key=lambda other: other.place)
        young = all(other.wrote is None or other.wrote >= oldest for other in siblings)
        if young and len(siblings) == config.summaries_per_state:
            return [Drawn(state.id, fork=parent.id) for state in (parent, *siblings)]
    return []


def _preference(state: BufferedState, sampling: str, version: int, seed: int) -> tuple[float, ...]:
    """Lower comes first."""
    chance = _shuffled(seed, version, state.chain, state.round, state.place)
    match sampling:
        case "latest":
            return -state.round, chance
        case "hardest":
            return -1.0 if state.earned is None else state.earned, chance
    return (chance,)


def _shuffled(*numbers: int) -> int:
    digest = hashlib.sha256(" ".join(map(str, ("draw", *numbers))).encode()).digest()
    return int.from_bytes(digest[:8], "big")

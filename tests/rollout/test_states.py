"""Which states get groups, and what their summaries earn, against cases worked out by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qedmeg.config_rc import CacheConfig, RCConfig
from qedmeg.rollout.schedule import Queue, rollout_seed
from qedmeg.rollout.states import (
    BufferedChain,
    BufferedState,
    Drawn,
    chains_to_begin,
    credit,
    draw,
    is_over_aged,
    turn_seed,
)
from qedmeg.settings import load_config


def chain(id: int, *, version: int = 5, rounds: int = 3, **others: object) -> BufferedChain:
    """A chain whose states are 10 × id + round."""
    states = [
        BufferedState(10 * id + round, id, round, 0, 10 * id + round - 1 if round > 1 else None, version, **others)  # type: ignore[arg-type]
        for round in range(1, rounds + 2)
    ]
    return BufferedChain(id, tuple(states))


def having(chain: BufferedChain, **by_state: dict[str, object]) -> BufferedChain:
    """The chain with these fields of its states, by `s` and round."""
    return BufferedChain(
        chain.id,
        tuple(replace(state, **by_state.get(f"s{state.round}", {})) for state in chain.states),  # type: ignore[arg-type]
    )


def drawn(chains: list[BufferedChain], count: int, *, version: int = 5, seed: int = 0, **config: object) -> list[int]:
    return [one.state for one in draw_at(chains, count, CacheConfig(**config), version=version, seed=seed)]  # type: ignore[arg-type]


def draw_at(
    chains: list[BufferedChain], count: int, config: CacheConfig, *, version: int = 5, seed: int = 0, **more: int
) -> tuple[Drawn, ...]:
    """Without lag, where `more` does not say otherwise; a step has six groups."""
    queue = Queue(version, more.get("waiting", 0), 6)
    return draw(chains, count, config, version=version, queue=queue, max_lag=more.get("max_lag", 0), seed=seed)


def test_each_chain_gives_so_many_states_in_its_turn() -> None:
    found = drawn([chain(0), chain(1), chain(2)], 5)
    assert [state // 10 for state in found] == [0, 0, 1, 1, 2]
    assert len(set(found)) == 5
    assert found == drawn([chain(0), chain(1), chain(2)], 5)
    others = {tuple(drawn([chain(0)], 2, seed=seed)) for seed in range(60)}
    assert others == {(a, b) for a in range(1, 5) for b in range(a + 1, 5)}, "every pair of states may be drawn"


def test_the_latest_states_are_the_last_rounds() -> None:
    assert drawn([chain(0), chain(1)], 4, sampling="latest") == [3, 4, 13, 14]
    old = having(chain(0), s4={"alive": True, "drawn": 4})
    assert drawn([old], 4, sampling="latest") == [3], "one of the two that it may have is in use"


def test_the_hardest_states_are_those_without_a_grade_then_those_that_earned_least() -> None:
    one = having(
        chain(0),
        s1={"drawn": 3, "earned": 0.2},
        s2={"drawn": 3, "earned": 0.9},
        s3={"drawn": 2, "earned": 0.1},
        s4={"drawn": 3, "earned": None},
    )
    assert drawn([one], 9, sampling="hardest", states_per_problem=1) == [4]
    assert drawn([one], 9, sampling="hardest", states_per_problem=2) == [3, 4]
    assert drawn([one], 9, sampling="hardest", states_per_problem=3) == [1, 3, 4]


def test_states_that_are_too_old_or_in_use_or_drawn_for_these_weights_are_left_out() -> None:
    assert [is_over_aged(5, version, 2) for version in (5, 7, 8)] == [False, False, True]
    assert drawn([chain(0, version=5)], 9, version=9, states_per_problem=4) == [1, 2, 3, 4]
    assert drawn([chain(0, version=4)], 9, version=9, states_per_problem=4) == []
    assert drawn([having(chain(0), s2={"version": 0})], 9, states_per_problem=4) == [1, 3, 4]
    # groups of these weights that were dropped: their states are not tried again
    mixed = having(chain(0), s1={"drawn": 5}, s3={"drawn": 5})
    assert drawn([mixed], 9, states_per_problem=4) == [2, 4]
    full = having(chain(0), s1={"alive": True, "drawn": 4}, s2={"alive": True, "drawn": 4})
    assert drawn([full], 9) == []


def test_new_chains_come_before_used_ones_which_are_shuffled_anew_for_each_version() -> None:
    used = [having(chain(id), s1={"drawn": 4}) for id in range(6)]
    orders = set()
    for version in range(5, 9):
        found = [state // 10 for state in drawn([*used, chain(7), chain(6)], 16, version=version)]
        assert found[:4] == [6, 6, 7, 7]
        assert sorted(found[4:]) == [id for id in range(6) for _ in range(2)]
        orders.add(tuple(found))
    assert len(orders) > 1


def fork_chain(id: int, **others: object) -> BufferedChain:
    """Two rounds with two summaries each: states 10 × id + 1, then 2 and 3 of round 2, 4 and 5 of round 3."""
    rows = [(1, 1, 0, None), (2, 2, 0, 1), (3, 2, 1, 1), (4, 3, 0, 2), (5, 3, 1, 2)]
    states = [
        BufferedState(10 * id + n, id, round, place, None if parent is None else 10 * id + parent, 5, 5, **others)  # type: ignore[arg-type]
        for n, round, place, parent in rows
    ]
    return BufferedChain(id, tuple(states))


BOTH: dict[str, Any] = {"train": "both", "states_per_problem": 3, "rounds": 2}


def test_with_both_a_new_chain_gives_a_fork() -> None:
    forks = {tuple(drawn([fork_chain(0)], 3, seed=seed, **BOTH)) for seed in range(20)}
    assert forks == {(1, 2, 3), (2, 4, 5)}
    config = CacheConfig(sampling="latest", **BOTH)
    found = draw_at([fork_chain(0)], 3, config)
    assert found == (Drawn(2, fork=2), Drawn(4, fork=2), Drawn(5, fork=2))


def test_with_both_what_no_fork_fits_is_filled_with_single_states() -> None:
    config = CacheConfig(**BOTH)
    used = having(fork_chain(1), s1={"drawn": 4})
    found = draw_at([fork_chain(0), used], 5, config)
    assert [one.fork for one in found[:3]] == [found[0].state] * 3
    assert [(one.state // 10, one.fork) for one in found[3:]] == [(1, None)] * 2
    # less than a fork is wanted: rather of a chain that was used than of one that may give a fork
    assert [one.state // 10 for one in draw_at([fork_chain(0), used], 2, config)] == [1, 1]
    assert [one.fork for one in draw_at([fork_chain(0)], 2, config)] == [None] * 2
    # the summaries of a new chain that is too old for them to be trained
    assert [one.fork for one in draw_at([fork_chain(0)], 3, config, version=6)] == [None] * 3
    assert draw_at([fork_chain(0)], 3, config, version=6, max_lag=1)[0].fork is not None


def test_with_both_a_fork_must_be_young_when_its_last_group_is_used() -> None:
    config = CacheConfig(**BOTH)
    # groups 3, 4 and 5 of this step, then 4, 5 and 6, of which the last is for the next
    assert draw_at([fork_chain(0)], 3, config, waiting=3)[0].fork is not None
    assert draw_at([fork_chain(0)], 3, config, waiting=4)[0].fork is None
    assert draw_at([fork_chain(0)], 3, config, waiting=4, max_lag=1)[0].fork is not None
    # two forks are of this step, the third of the next
    found = draw_at([fork_chain(0), fork_chain(1), fork_chain(2)], 9, config)
    assert [one.fork is not None for one in found] == [True] * 6 + [False] * 3
    # of the last round the summaries are younger
    late = having(fork_chain(0), s2={"wrote": 4}, s3={"wrote": 5})
    assert [one.state for one in draw_at([late], 3, config)] == [2, 4, 5]
    # where nothing was summarised, nothing is trained that could be too old
    assert draw_at([having(fork_chain(0), s2={"wrote": None}, s3={"wrote": 0})], 3, config)[0].fork == 1


def test_chains_are_begun_for_each_version_and_for_what_lacks() -> None:
    def to_begin(begun: int, rolling: int, lacking: int, **config: object) -> int:
        return chains_to_begin(CacheConfig(**config), 7, begun=begun, rolling=rolling, lacking=lacking)  # type: ignore[arg-type]

    assert to_begin(0, 0, 0) == 4  # 7 prompts, two of each chain
    assert to_begin(3, 3, 0) == 1
    assert to_begin(4, 0, 0) == 0
    assert to_begin(4, 0, 3) == 2
    assert to_begin(4, 1, 3) == 1
    assert to_begin(0, 0, 7, chains_per_step=1) == 4
    assert to_begin(0, 0, 1, chains_per_step=1) == 1
    assert to_begin(1, 0, 0, chains_per_step=1) == 0


def test_a_summary_earns_what_it_improved() -> None:
    earned = credit(1, {1: [0.0, 1.0], 2: [1.0, 0.5], 3: [0.25]}, siblings=2)
    assert earned is not None
    assert earned.before == 0.5
    assert earned.improvements == {2: 0.25, 3: -0.25}
    assert credit(1, {1: [0.5], 2: [1.0]}, siblings=2) is None, "a sibling's group is missing"
    assert credit(1, {1: [], 2: [1.0], 3: [0.0]}, siblings=2) is None, "no grade in the parent's group"
    assert credit(1, {1: [0.5], 2: [1.0], 3: []}, siblings=2) is None


def test_seeds_of_turns_differ_in_everything() -> None:
    seeds = {
        turn_seed(run, chain, round, kind, place)
        for run in (0, 1)
        for chain in (1, 11)
        for round in (1, 11)
        for kind in ("reason", "summarise")
        for place in (0, 1)
    }
    seeds |= {rollout_seed(run, chain, 1, 0) for run in (0, 1) for chain in (1, 11)}
    assert len(seeds) == 36
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert turn_seed(0, 0, 1, "reason", 0) == PINNED, "a run goes on with the seeds that it began with"


PINNED = 5195378228686687490


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": "both", "summaries_per_state": 1, "states_per_problem": 2}, "leaves a summary none to be compared"),
        ({"train": "both", "states_per_problem": 2}, "set it to 3"),
        ({"train": "both", "states_per_problem": 3, "sampling": "hardest"}, "set it to uniform or latest"),
        (
            {"train": "both", "states_per_problem": 3, "summariser": {"base_url": "http://a:1/v1", "model": "m"}},
            "a frozen one cannot be trained",
        ),
        ({"rounds": 1, "states_per_problem": 3}, "greater than the 2 states of 1 rounds"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CacheConfig.model_validate(settings)


@pytest.mark.parametrize("name", ["rc_demo", "qed_nano_rc"])
def test_the_ready_settings_are_settings(name: str) -> None:
    config = load_config(RCConfig, Path(__file__).parents[2] / "recipes" / "configs" / f"{name}.yaml")
    assert config.cache.rounds == {"rc_demo": 1, "qed_nano_rc": 3}[name]

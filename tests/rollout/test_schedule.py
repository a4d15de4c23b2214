"""When groups are begun, used and dropped, against cases worked out by hand and a long run at random."""

import random
from dataclasses import replace

import pytest

from qedmeg.config_rl import AdvantageConfig
from qedmeg.data.sampler import permutation
from qedmeg.rollout.schedule import (
    Slot,
    fate,
    groups_to_begin,
    groups_wanted,
    is_too_old,
    prompt_of,
    rollout_seed,
    to_generate,
    too_many_failures,
)

NEW = Slot(rollout=1, attempt=0, oldest_version=3, tokens=10, truncated=False)


def graded(reward: float, **others: object) -> Slot:
    return replace(NEW, status="graded", reward=reward, **others)


def decided(
    slots: list[Slot],
    *,
    size: int | None = None,
    regrades: int = 0,
    min_graded: float = 0.5,
    drop: bool = False,
    **advantage: object,
) -> str:
    config = AdvantageConfig(**advantage) if drop else None  # type: ignore[arg-type]
    return fate(dict(enumerate(slots)), size or len(slots), regrades, min_graded, config, 100)


def test_every_prompt_comes_once_an_epoch() -> None:
    assert [prompt_of(group, 7, 5) for group in range(10)] == [*permutation(7, 0, 5), *permutation(7, 1, 5)]


def test_seeds_differ_in_everything_and_are_what_vllm_takes() -> None:
    seeds = {
        rollout_seed(run, group, place, attempt)
        for run in (0, 1)
        for group in (1, 11, 111)
        for place in (0, 1, 11)
        for attempt in (0, 1)
    }
    assert len(seeds) == 36
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert rollout_seed(0, 0, 0, 0) == 8922581404363492767  # a run goes on with the seeds that it began with


def test_what_a_group_lacks() -> None:
    failed = replace(NEW, status="failed")
    assert to_generate({}, 3, 2) == [(0, 0), (1, 0), (2, 0)]
    assert to_generate({0: NEW, 1: failed, 2: replace(failed, attempt=2)}, 4, 2) == [(1, 1), (3, 0)]
    assert to_generate({0: failed, 1: replace(NEW, status="too old")}, 2, 0) == []


def test_what_becomes_of_a_group() -> None:
    failed, old = replace(NEW, status="failed"), replace(NEW, status="too old")
    assert decided([graded(1.0), graded(0.0)], size=3) == "open"
    assert decided([graded(1.0), NEW, graded(0.0)]) == "open"
    assert decided([graded(1.0), failed, graded(0.0)], regrades=1) == "open"
    assert decided([graded(1.0), failed, graded(0.0)]) == "ready"
    assert decided([graded(1.0), failed, failed]) == "too few grades"
    assert decided([graded(1.0), failed, old]) == "too old"
    assert decided([graded(1.0), old, graded(1.0)]) == "ready"


def test_a_share_of_a_group_must_be_graded() -> None:
    failed, old = replace(NEW, status="failed"), replace(NEW, status="too old")
    assert decided([graded(1.0)] * 2 + [failed] * 14) == "too few grades"
    assert decided([graded(1.0)] * 2 + [failed] * 14, min_graded=0.0) == "ready"
    assert decided([graded(1.0)] * 7 + [failed] * 9) == "too few grades"
    assert decided([graded(1.0)] * 8 + [failed] * 8) == "ready"
    assert decided([graded(1.0)] * 7 + [failed] * 93, min_graded=0.07) == "ready"  # 0.07 × 100 is more than 7
    assert decided([graded(1.0)] * 3 + [failed], min_graded=1.0) == "too few grades"
    # what is too old was not refused a grade
    assert decided([graded(1.0)] * 2 + [old] * 14, min_graded=1.0) == "ready"
    assert decided([graded(1.0)] * 4 + [failed] * 4 + [old] * 8) == "ready"
    assert decided([graded(1.0)] * 3 + [failed] * 5 + [old] * 8) == "too few grades"
    assert decided([graded(1.0)] + [old] * 15) == "too old"


def test_groups_that_would_train_nothing_are_dropped_where_asked_for() -> None:
    assert decided([graded(0.5), graded(0.5)]) == "ready"
    assert decided([graded(0.5), graded(0.5)], drop=True) == "zero variance"
    assert decided([graded(0.5), graded(0.6)], drop=True) == "ready"
    assert decided([graded(0.5), graded(0.5), replace(NEW, status="failed")], drop=True) == "zero variance"
    # what differs is masked, and what is the same gets different penalties
    cut = graded(0.0, truncated=True, tokens=100)
    assert decided([graded(0.5), graded(0.5), cut], drop=True) == "ready"
    assert decided([graded(0.5), graded(0.5), cut], drop=True, mask_truncated=True) == "zero variance"
    longer = graded(0.5, tokens=90)
    assert decided([graded(0.5), longer], drop=True, overlong_penalty=1.0, overlong_buffer=20) == "ready"


def test_refills_are_bounded() -> None:
    assert [groups_wanted(4, 2, dropped) for dropped in (0, 7, 8, 9, 11, 12, 20)] == [4, 4, 4, 3, 1, 0, 0]
    assert [groups_wanted(4, 0, dropped) for dropped in (0, 1, 4)] == [4, 3, 0]


def to_begin(**numbers: object) -> int:
    usual = {"prompts_per_step": 4, "max_lag": 0, "version": 5, "next_step": 5, "alive": 0, "wanted": 4, "asked": True}
    return groups_to_begin(**(usual | numbers))  # type: ignore[arg-type]


def test_without_lag_a_step_gets_what_it_lacks_when_it_asks() -> None:
    assert to_begin() == 4
    assert to_begin(asked=False) == 0
    assert to_begin(alive=3) == 1
    assert to_begin(alive=3, wanted=2) == 0


def test_with_lag_the_steps_that_these_weights_may_serve_are_provided_for() -> None:
    assert to_begin(max_lag=1) == 8  # steps 5 and 6
    assert to_begin(max_lag=1, asked=False, next_step=6) == 4  # step 5 is being trained on
    assert to_begin(max_lag=3, next_step=6, alive=10) == 2
    # a trainer that does steps 3 to 7 again, which have their groups: step 8 is beyond version 3 + 3
    assert to_begin(max_lag=3, version=3, next_step=8) == 0
    assert to_begin(max_lag=3, version=5, next_step=8) == 4


def test_old_is_more_than_the_bound() -> None:
    assert [is_too_old(3, step, 2) for step in (3, 5, 6)] == [False, False, True]
    assert [is_too_old(3, step, 0) for step in (3, 4)] == [False, True]


@pytest.mark.parametrize(("max_lag", "seed"), [(1, 0), (3, 1), (8, 2)])
def test_groups_that_are_used_in_their_turn_are_never_too_old(max_lag: int, seed: int) -> None:
    """At random: groups take one tick or very many, and some are dropped at their end."""
    draw, size = random.Random(seed), 4
    alive: dict[int, tuple[int, int]] = {}  # version that it was begun with, ticks left
    begun, version, lags, dropped = 0, 0, [], 0
    for step in range(200):
        for _ in range(1000):
            asked = draw.random() < 0.5
            for _ in range(
                groups_to_begin(
                    prompts_per_step=size,
                    max_lag=max_lag,
                    version=version,
                    next_step=step,
                    alive=len(alive),
                    wanted=size,
                    asked=asked,
                )
            ):
                alive[begun] = (version, draw.choice([1, 1, 2, 3, 200]))
                begun += 1
            for group, (born, ticks) in list(alive.items()):
                alive[group] = (born, ticks - 1)
                if is_too_old(born, step, max_lag) or (ticks == 1 and draw.random() < 0.1):
                    dropped += is_too_old(born, step, max_lag)
                    del alive[group]
            ready = sorted(group for group, (_, ticks) in alive.items() if ticks <= 0)
            if asked and len(ready) >= size:
                break
        else:
            raise AssertionError("a step waits for ever")
        lags += [step - alive.pop(group)[0] for group in ready[:size]]
        version = step + 1
    assert max_lag - 1 <= max(lags) <= max_lag
    assert dropped < 0.4 * begun


def test_graders_are_in_trouble_when_too_many_of_the_last_grades_failed() -> None:
    assert not too_many_failures([True] * 7, 0.3)
    assert too_many_failures([True] * 8, 0.3)
    assert not too_many_failures([True] * 3 + [False] * 7, 0.3)
    assert too_many_failures([True] * 4 + [False] * 7, 0.3)
    assert not too_many_failures([True] * 50 + [False] * 64, 0.3)  # long ago
    assert not too_many_failures([True] * 64, 1.0)

"""The time budget of a step adds up to its wall time."""

import contextlib

import pytest

from qedmeg.monitor import budget
from qedmeg.monitor.budget import TimeBudget


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(budget.time, "perf_counter", lambda: now[0])
    return now


def test_what_no_name_took_is_idle(clock: list[float]) -> None:
    times = TimeBudget()
    clock[0] += 0.5
    for seconds in (1.0, 2.0):
        with times("train"):
            clock[0] += seconds
        clock[0] += 0.25
    assert times.restart() == {"idle": 1.0, "train": 3.0}
    clock[0] += 4.0
    assert times.restart() == {"idle": 4.0}


def test_names_inside_each_other_are_counted_once(clock: list[float]) -> None:
    times = TimeBudget()
    with times("train"):
        clock[0] += 1.0
        with times("logprobs"):
            clock[0] += 2.0
        clock[0] += 4.0
    assert times.restart() == {"idle": 0.0, "train": 5.0, "logprobs": 2.0}


def test_time_is_counted_when_an_error_ends_it(clock: list[float]) -> None:
    times = TimeBudget()
    with contextlib.suppress(RuntimeError), times("train"):
        clock[0] += 1.0
        raise RuntimeError
    clock[0] += 2.0
    assert times.restart() == {"idle": 2.0, "train": 1.0}


def test_a_restart_inside_a_name_leaves_the_rest_to_the_next_step(clock: list[float]) -> None:
    times = TimeBudget()
    with times("train"):
        clock[0] += 1.0
        assert times.restart() == {"idle": 0.0, "train": 1.0}
        clock[0] += 2.0
    assert times.restart() == {"idle": 0.0, "train": 2.0}


@pytest.mark.parametrize(
    ("waited", "parts", "expected"),
    [
        (3.0, {"generate": 1.5, "grade": 0.5}, {"idle": 1.0, "generate": 1.5, "grade": 0.5}),
        (3.0, {"generate": 4.0, "grade": 2.0}, {"idle": 0.0, "generate": 2.0, "grade": 1.0}),
        (3.0, {"generate": 0.0}, {"idle": 3.0, "generate": 0.0}),
        (0.0, {"generate": 1.0}, {"idle": 0.0, "generate": 0.0}),
    ],
)
def test_a_wait_is_divided(clock: list[float], waited: float, parts: dict, expected: dict) -> None:
    times = TimeBudget()
    with times("wait"):
        clock[0] += waited
    times.divide("wait", parts)
    assert times.restart() == expected

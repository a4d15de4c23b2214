"""Solve, mark, keep, consolidate, tournament: 16 + 16 + 1 + 11 calls at most."""

import pytest

from qedmeg.reasoning.call import Call
from qedmeg.reasoning.nomos import Marked, kept
from tests.reasoning.scripted_model import Script, by_path, cut, echo, run, shown, verdict


def marks(*values: int) -> Script:
    """Marks of the solutions in their order; all else as `echo`."""

    def script(call: Call) -> str:
        if not call.path.endswith("/mark"):
            return echo(call)
        return verdict(call, values[int(call.path.removeprefix("solution ").removesuffix("/mark")) - 1])

    return by_path({}, script)


def test_the_calls_and_what_they_are_shown() -> None:
    # Seven perfect ones are too few: the 12 best are kept, of equals the earlier.
    solution, model = run("nomos", marks(1, 7, 7, 0, 7, 3, 7, 7, 5, 7, 7, 2, 1, 3, 0, 1))
    assert model.paths == [
        *(f"solution {n}" for n in range(1, 17)),
        *(f"solution {n}/mark" for n in range(1, 17)),
        "consolidate",
        *(f"tournament/round 1/match {m}" for m in range(1, 7)),
        *(f"tournament/round 2/match {m}" for m in range(1, 4)),
        "tournament/round 3/match 1",  # of three the first is through
        "tournament/round 4/match 1",
    ]
    assert len(model.paths) == 44
    assert shown(model.call("solution 4/mark")) == {"proof": "by solution 4"}
    assert {call.role for call in model.calls if "/mark" in call.path} == {"verifier"}
    assert {call.role for call in model.calls[32:]} == {"selector"}
    order = [2, 3, 5, 7, 8, 10, 11, 9, 6, 14, 12, 1]
    assert list(shown(model.call("consolidate")).values()) == [f"by solution {n}" for n in order]
    matches = [list(shown(model.call(f"tournament/round 1/match {m}")).values()) for m in range(1, 7)]
    assert matches == [
        [f"by solution {a}", f"by solution {b}"] for a, b in [(2, 1), (3, 12), (5, 14), (7, 6), (8, 9), (10, 11)]
    ]
    assert list(shown(model.call("tournament/round 3/match 1")).values()) == ["by solution 3", "by solution 5"]
    assert solution.text == "by solution 2"


def test_with_enough_perfect_ones_only_these_are_kept() -> None:
    _, model = run("nomos", marks(7, 7, 6, 7, 7, 7, 6, 7, 7, 7, 0, 0, 0, 0, 0, 0))
    assert list(shown(model.call("consolidate")).values()) == [f"by solution {n}" for n in (1, 2, 4, 5, 6, 8, 9, 10)]


@pytest.mark.parametrize(("group", "left"), [("5, 2,9", [2, 5, 9]), ("3", [3])])
def test_the_tournament_is_among_those_of_one_conclusion(group: str, left: list[int]) -> None:
    # All marks are 1, so that the numbers are those of the solutions.
    script = by_path({"consolidate": lambda call: verdict(call, group)}, echo)
    solution, model = run("nomos", script)
    assert len(model.paths) == 16 + 16 + 1 + len(left) - 1
    assert solution.text == f"by solution {left[0]}"


@pytest.mark.parametrize("group", ["", "0", "13", "1, 1", "1 and 2", "1,2,", "1, two", "-1", "1.0"])
def test_a_group_that_cannot_be_read_twice_is_all(group: str) -> None:
    answers = {path: lambda call: verdict(call, group) for path in ("consolidate", "consolidate/again")}
    _, model = run("nomos", by_path(answers, echo))
    assert model.paths[32:34] == ["consolidate", "consolidate/again"]
    assert len(model.paths) == 45


@pytest.mark.parametrize("mark", ["8", "-1", "6.5", "", "seven", "7/7", "٧"])
def test_a_mark_that_cannot_be_read_twice_is_none(mark: str) -> None:
    answers = {
        "solution 1/mark": lambda call: verdict(call, mark),
        "solution 1/mark/again": lambda call: verdict(call, mark),
        "solution 2/mark": lambda call: verdict(call, mark),
        "solution 2/mark/again": lambda call: verdict(call, 7),
        "solution 3/mark": lambda call: verdict(call, 0),
    }
    _, model = run("nomos", by_path(answers, echo), solutions=3)
    assert model.paths[6:8] == ["solution 1/mark/again", "solution 2/mark/again"]
    assert list(shown(model.call("consolidate")).values()) == [f"by solution {n}" for n in (2, 3, 1)]


def test_keeping() -> None:
    marked = [Marked(name, mark) for name, mark in zip("abcdef", [0, None, 7, 3, 7, 3], strict=True)]

    def names(keep: int, perfect: int) -> str:
        return "".join(one.text for one in kept(marked, keep, perfect))

    assert names(6, 3) == "cedfab"
    assert names(3, 3) == "ced"
    assert names(6, 2) == "ce"
    assert names(1, 2) == "c"


def test_proofs_that_were_cut_off() -> None:
    answers = {f"solution {n}": cut(thinking="hm") for n in (1, 2, 4)}
    solution, model = run("nomos", by_path(answers, echo), solutions=4)
    assert model.paths[4:] == ["solution 3/mark"]
    assert solution.text == "by solution 3"
    solution, model = run("nomos", lambda call: cut())
    assert (solution.text, len(model.paths)) == ("", 16)


def test_the_best_when_the_budget_ends() -> None:
    script = marks(1, 7, 7, *[0] * 13)
    assert run("nomos", script, budget=160)[0].text == "by solution 1"
    assert run("nomos", script, budget=320)[0].text == "by solution 2"
    only = by_path({"consolidate": lambda call: verdict(call, "2,3")}, script)
    assert run("nomos", only, budget=330)[0].text == "by solution 3"

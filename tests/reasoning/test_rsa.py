"""Recursive self-aggregation: 8 + 3 × 8 + 7 calls, and who is merged with whom."""

import pytest

from qedmeg.reasoning.call import Call
from qedmeg.reasoning.rsa import blocks
from tests.reasoning.scripted_model import by_path, cut, echo, form, run, shown, verdict


def test_the_calls_and_what_they_are_shown() -> None:
    solution, model = run("rsa", echo)
    assert model.paths == [
        *(f"solution {n}" for n in range(1, 9)),
        *(f"round {r}/merge {n}" for r in (1, 2, 3) for n in range(1, 9)),
        *(f"final/round 1/match {m}" for m in (1, 2, 3, 4)),
        *(f"final/round 2/match {m}" for m in (1, 2)),
        "final/round 3/match 1",
    ]
    assert len(model.paths) == 39
    assert {call.role for call in model.calls if "match" in call.path} == {"selector"}
    assert {call.role for call in model.calls if "match" not in call.path} == {"prover"}

    def merged(path: str) -> list[str]:
        return list(shown(model.call(path)).values())

    # Round 1: neighbours; round 2: at distance 3; round 3: at distance 9, which is 1.
    assert merged("round 1/merge 1") == ["by solution 1", "by solution 2", "by solution 3"]
    assert merged("round 1/merge 8") == ["by solution 8", "by solution 1", "by solution 2"]
    assert merged("round 2/merge 1") == [f"by round 1/merge {n}" for n in (1, 4, 7)]
    assert merged("round 2/merge 5") == [f"by round 1/merge {n}" for n in (5, 8, 3)]
    assert merged("round 3/merge 8") == [f"by round 2/merge {n}" for n in (8, 1, 2)]
    # The first meets the last; the first of two is chosen.
    assert merged("final/round 1/match 1") == ["by round 3/merge 1", "by round 3/merge 8"]
    assert merged("final/round 1/match 3") == ["by round 3/merge 3", "by round 3/merge 6"]
    assert merged("final/round 2/match 2") == ["by round 3/merge 2", "by round 3/merge 3"]
    assert merged("final/round 3/match 1") == ["by round 3/merge 1", "by round 3/merge 2"]
    assert solution.text == "by round 3/merge 1"


def test_the_winners_go_on() -> None:
    def second(call: Call) -> str:
        return verdict(call, 2) if form(call) == "N" else echo(call)

    # 8 7 6 5 beat 1 2 3 4; then 5 beats 8 and 6 beats 7; then 6 beats 5.
    solution, model = run("rsa", second)
    assert list(shown(model.call("final/round 2/match 1")).values()) == ["by round 3/merge 8", "by round 3/merge 5"]
    assert list(shown(model.call("final/round 3/match 1")).values()) == ["by round 3/merge 5", "by round 3/merge 6"]
    assert solution.text == "by round 3/merge 6"


@pytest.mark.parametrize(("count", "size"), [(8, 3), (7, 3), (9, 3), (2, 3), (3, 3), (6, 2), (16, 4), (5, 5)])
def test_blocks_are_circles_and_soon_hold_all(count: int, size: int) -> None:
    reached = [{n} for n in range(count)]
    for round in range(1, 7):
        made = blocks(count, size, round)
        assert [block[0] for block in made] == list(range(count))
        assert all(len(set(block)) == min(size, count) for block in made)
        assert sorted(member for block in made for member in block) == sorted([*range(count)] * min(size, count))
        reached = [set().union(*(reached[member] for member in block)) for block in made]
        if count == 8 and size == 3:
            assert {len(one) for one in reached} == {3 if round == 1 else 8}
    assert all(len(one) == count for one in reached)


def test_replies_that_were_cut_off() -> None:
    answers = {
        "solution 2": cut(thinking="hm"),
        "solution 5": cut("half"),
        "round 1/merge 1": cut("half a merge"),
        "round 1/merge 2": cut(),
        "round 1/merge 4": cut("half again"),
    }
    _, model = run("rsa", by_path(answers, echo), solutions=5, rounds=2)
    # Four are left: 1, 3, 4 and the half of 5. What was cut off leaves what was to be replaced.
    assert list(shown(model.call("round 1/merge 2")).values()) == ["by solution 3", "by solution 4", "half"]
    assert shown(model.call("round 2/merge 1"))["proof 1"] == "by solution 1"
    assert shown(model.call("round 2/merge 2"))["proof 1"] == "by solution 3"
    assert shown(model.call("round 2/merge 4"))["proof 1"] == "half"
    one = {f"solution {n}": cut() for n in (1, 2, 4)}
    solution, model = run("rsa", by_path(one, echo), solutions=4)
    assert (solution.text, len(model.calls)) == ("by solution 3", 4)
    solution, model = run("rsa", lambda call: cut())
    assert (solution.text, len(model.calls)) == ("", 8)


def test_a_choice_that_cannot_be_read_twice_is_for_the_better_place() -> None:
    answers = {
        "final/round 1/match 1": "I cannot decide.",
        "final/round 1/match 1/again": lambda call: verdict(call, 3),
        "final/round 1/match 2": "Both.",
        "final/round 1/match 2/again": lambda call: verdict(call, 2),
        "final/round 2/match 1": lambda call: verdict(call, 2),
    }
    solution, model = run("rsa", by_path(answers, echo), solutions=4, rounds=0)
    assert model.paths[4:] == [
        "final/round 1/match 1",
        "final/round 1/match 2",
        "final/round 1/match 1/again",
        "final/round 1/match 2/again",
        "final/round 2/match 1",
    ]
    assert list(shown(model.call("final/round 2/match 1")).values()) == ["by solution 1", "by solution 3"]
    assert solution.text == "by solution 3"


def test_the_best_when_the_budget_ends() -> None:
    assert run("rsa", echo, budget=80)[0].text == "by solution 1"
    assert run("rsa", echo, budget=160)[0].text == "by round 1/merge 1"
    seconds = {f"final/round 1/match {m}": lambda call: verdict(call, 2) for m in (1, 2, 3, 4)}
    solution, model = run("rsa", by_path(seconds, echo), budget=360)  # 8 + 24 calls and the first four matches
    assert (solution.text, len(model.calls), solution.ended) == ("by round 3/merge 8", 36, "budget spent")

"""The fixed plan: 4 × (2 + 2 + 2 + 1) + 1 calls."""

from tests.reasoning.scripted_model import by_path, cut, echo, run, said, shown, verdict

SLOTS = [f"branch {b}/solution {n}" for b in (1, 2, 3, 4) for n in (1, 2)]


def test_the_calls_and_what_they_are_shown() -> None:
    third = {"select": lambda call: verdict(call, 3)}
    solution, model = run("static_agent", by_path(third, echo))
    assert model.paths == [
        *SLOTS,
        *(f"{slot}/turn 1/verify" for slot in SLOTS),
        *(f"{slot}/turn 1/improve" for slot in SLOTS),
        *(f"branch {b}/merge" for b in (1, 2, 3, 4)),
        "select",
    ]
    assert len(model.paths) == 29
    roles = ["prover"] * 8 + ["verifier"] * 8 + ["improver"] * 8 + ["prover"] * 4 + ["selector"]
    assert [call.role for call in model.calls] == roles
    assert shown(model.call("branch 2/solution 1/turn 1/verify")) == {"proof": "by branch 2/solution 1"}
    improved = shown(model.call("branch 2/solution 1/turn 1/improve"))
    assert improved["proof"] == "by branch 2/solution 1"
    assert improved["report 1"].startswith("It is so.")
    assert list(shown(model.call("branch 2/merge")).values()) == [
        "by branch 2/solution 1/turn 1/improve",
        "by branch 2/solution 2/turn 1/improve",
    ]
    assert list(shown(model.call("select")).values()) == [f"by branch {b}/merge" for b in (1, 2, 3, 4)]
    assert solution.text == "by branch 3/merge"


def test_other_sizes() -> None:
    _, model = run("static_agent", echo, branches=1, solutions=1, verifications=2)
    slot = "branch 1/solution 1"
    turns = [f"{slot}/turn {t}/{step}" for t in (1, 2) for step in ("verify", "improve")]
    assert model.paths == [slot, *turns]
    assert shown(model.call(f"{slot}/turn 2/verify")) == {"proof": f"by {slot}/turn 1/improve"}


def test_no_verdict_is_needed_but_an_analysis_is_shown_only_where_there_is_one() -> None:
    answers = {
        f"{SLOTS[0]}/turn 1/verify": said("no verdict at all"),
        f"{SLOTS[1]}/turn 1/verify": cut(thinking="hm"),
    }
    _, model = run("static_agent", by_path(answers, echo))
    assert len(model.paths) == 29
    assert shown(model.call(f"{SLOTS[0]}/turn 1/improve"))["report 1"] == "no verdict at all"
    assert shown(model.call(f"{SLOTS[1]}/turn 1/improve")) == {"proof": f"by {SLOTS[1]}"}


def test_a_choice_that_cannot_be_read_twice_is_the_first_branch() -> None:
    answers = {"select": "All.", "select/again": lambda call: verdict(call, 5)}
    solution, model = run("static_agent", by_path(answers, echo))
    assert model.paths[28:] == ["select", "select/again"]
    assert solution.text == "by branch 1/merge"


def test_proofs_that_were_cut_off() -> None:
    answers = {
        "branch 1/solution 2": cut(thinking="hm"),
        "branch 2/solution 1": cut(),
        "branch 2/solution 2": cut(),
        "branch 3/solution 1/turn 1/improve": cut("half"),
        "branch 4/merge": cut("half"),
    }
    _, model = run("static_agent", by_path(answers, echo))
    assert [path for path in model.paths if "merge" in path] == ["branch 3/merge", "branch 4/merge"]
    assert list(shown(model.call("branch 3/merge")).values()) == [
        "by branch 3/solution 1",
        "by branch 3/solution 2/turn 1/improve",
    ]
    assert list(shown(model.call("select")).values()) == [
        "by branch 1/solution 1/turn 1/improve",
        "by branch 3/merge",
        "by branch 4/solution 1/turn 1/improve",
    ]
    solution, model = run("static_agent", lambda call: cut())
    assert (solution.text, model.paths) == ("", SLOTS)


def test_the_best_when_the_budget_ends() -> None:
    answers = [run("static_agent", echo, budget=budget)[0].text for budget in (80, 160, 240, 280)]
    assert answers == [
        "by branch 1/solution 1",
        "by branch 1/solution 1",
        "by branch 1/solution 1/turn 1/improve",
        "by branch 1/merge",
    ]

"""Prove, improve, then verify and mend until it passes five times in a row."""

import pytest

from qedmeg.reasoning.call import Call
from tests.reasoning.scripted_model import Script, by_path, cut, echo, run, shown, verdict


def verdicts(*values: object) -> Script:
    """A verdict for each iteration; those after the last are 1."""

    def script(call: Call) -> str:
        if "/verify" not in call.path:
            return echo(call)
        iteration = int(call.path.split("/")[0].removeprefix("iteration "))
        return verdict(call, values[iteration - 1] if iteration <= len(values) else 1, before=f"analysis {iteration}")

    return script


def checks(*iterations: int, mended: set[int]) -> list[str]:
    return [
        f"iteration {n}/{step}" for n in iterations for step in (["verify", "improve"] if n in mended else ["verify"])
    ]


def test_five_passes_in_a_row_are_needed() -> None:
    solution, model = run("selfcheck", verdicts(1, 1, 0.5, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1))
    assert model.paths == ["prove", "improve", *checks(*range(1, 14), mended={3, 8})]
    assert solution.text == "by iteration 8/improve"
    assert [model.call(path).role for path in ("prove", "improve", "iteration 3/verify", "iteration 3/improve")] == [
        "prover",
        "improver",
        "verifier",
        "improver",
    ]
    assert shown(model.call("improve")) == {"proof": "by prove"}
    assert shown(model.call("iteration 3/verify")) == {"proof": "by improve"}
    mended = shown(model.call("iteration 3/improve"))
    assert (mended["proof"], mended["report 1"].splitlines()[0]) == ("by improve", "analysis 3")
    assert shown(model.call("iteration 9/verify")) == {"proof": "by iteration 8/improve"}


def test_ten_failures_in_a_row_end_it() -> None:
    # A pass after nine begins the count anew.
    solution, model = run("selfcheck", verdicts(*[0] * 9, 1, *[0.5] * 10))
    assert model.paths[2:] == checks(*range(1, 21), mended={*range(1, 21)} - {10})
    assert solution.text == "by iteration 20/improve"


def test_thirty_iterations_end_it() -> None:
    solution, model = run("selfcheck", verdicts(*[1, 1, 1, 1, 0] * 6))
    assert model.paths[2:] == checks(*range(1, 31), mended={5, 10, 15, 20, 25, 30})
    assert solution.text == "by iteration 30/improve"


@pytest.mark.parametrize("form", ["2", "yes", "", "0.50"])
def test_a_verdict_that_cannot_be_read_twice_is_neither(form: str) -> None:
    script = verdicts(1, 1, form, 1, 1, 1)
    _, model = run("selfcheck", script)
    steps = checks(1, 2, 3, 4, 5, 6, mended=set())
    assert model.paths[2:] == [*steps[:3], "iteration 3/verify/again", *steps[3:]]
    assert "could not be read" in str(model.call("iteration 3/verify/again").messages)


def test_versions_that_were_cut_off() -> None:
    answers = {"improve": cut("half"), "iteration 1/improve": cut("half"), "iteration 2/improve": cut(thinking="hm")}
    solution, model = run("selfcheck", by_path(answers, verdicts(0, 0)))
    assert shown(model.call("iteration 3/verify")) == {"proof": "by prove"}
    assert solution.text == "by prove"
    # Nothing to improve: it is proved once more, and where that has no text either it ends.
    solution, model = run("selfcheck", by_path({"prove": cut()}, verdicts()))
    assert shown(model.call("improve")) == {}
    assert model.call("improve").messages == model.call("prove").messages
    assert solution.text == "by improve"
    solution, model = run("selfcheck", lambda call: cut())
    assert (solution.text, model.paths) == ("", ["prove", "improve"])
    solution, _ = run("selfcheck", by_path({"prove": cut("half"), "improve": cut()}, verdicts()))
    assert solution.text == "half"


def test_the_best_when_the_budget_ends() -> None:
    script = verdicts(0, 0)
    answers = [run("selfcheck", script, budget=budget)[0].text for budget in (10, 20, 30, 40, 60)]
    assert answers == ["by prove", "by improve", "by improve", "by iteration 1/improve", "by iteration 2/improve"]

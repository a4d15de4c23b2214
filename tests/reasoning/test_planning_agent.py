"""The planner's tools: what each does, what is told, and what it answers with at the end."""

import json
from typing import Any

import pytest

from qedmeg.grading.verdict import NoVerdict
from qedmeg.reasoning.call import Call
from qedmeg.reasoning.planner_tools import OnSolution, OnSolutions, Solve, read_call
from tests.reasoning.scripted_model import Script, by_path, content, cut, echo, run, shown, verdict


def approaches(call: Call, *texts: str) -> str:
    """The answer of whoever is asked for approaches, with the key that the prompt holds."""
    key = content(call).rpartition("</approach ")[2].removesuffix(">")
    return "\n".join(f"<approach {key}>\n{text}\n</approach {key}>" for text in texts)


def plan(*tools: Any, **others: Any) -> Script:
    """A planner that uses these tools in turn; text stands for itself."""
    texts = [tool if isinstance(tool, str) else json.dumps(tool) for tool in tools]
    calls = {f"plan {number}": text for number, text in enumerate(texts, start=1)}

    def script(call: Call) -> str:
        return approaches(call, "first", "second") if call.path.endswith("/approaches") else echo(call)

    return by_path({**calls, **{path.replace("_", " "): answer for path, answer in others.items()}}, script)


def said_to(model: Any, number: int) -> str:
    """What the planner is told in its call of this number of what was done before, without the texts of others."""
    prompt: str = content(model.call(f"plan {number}"))
    return prompt.partition("# What was done until now\n")[2].partition("# Your answer")[0].strip()


SOLVE = {"tool": "solve"}


def test_all_tools() -> None:
    script = plan(
        {"tool": "approaches", "count": 3},
        SOLVE,
        {"tool": "solve", "approach": 2},
        {"tool": "verify", "solution": 2},
        {"tool": "improve", "solution": 2},
        {"tool": "merge", "solutions": [3, 1]},
        {"tool": "select", "solutions": [4, 3]},
        {"tool": "submit", "solution": 4},
        **{"plan 7/select": lambda call: verdict(call, 2)},
    )
    solution, model = run("planning_agent", script)
    tools = ["approaches", "solve", "solve", "verify", "improve", "merge", "select"]
    assert model.paths == [path for n, tool in enumerate(tools, 1) for path in (f"plan {n}", f"plan {n}/{tool}")] + [
        "plan 8"
    ]
    assert [call.role for call in model.calls] == [
        *("planner", "prover"),
        *("planner", "prover"),
        *("planner", "prover"),
        *("planner", "verifier"),
        *("planner", "improver"),
        *("planner", "prover"),
        *("planner", "selector"),
        "planner",
    ]
    assert shown(model.call("plan 2/solve")) == {}
    assert shown(model.call("plan 3/solve")) == {"approach": "second"}
    assert shown(model.call("plan 4/verify")) == {"proof": "by plan 3/solve"}
    improved = shown(model.call("plan 5/improve"))
    assert (improved["proof"], improved["report 1"][:9]) == ("by plan 3/solve", "It is so.")
    assert list(shown(model.call("plan 6/merge")).values()) == ["by plan 5/improve", "by plan 2/solve"]
    assert list(shown(model.call("plan 7/select")).values()) == ["by plan 6/merge", "by plan 5/improve"]
    assert solution.text == "by plan 6/merge"
    # What the planner sees in the end: our words in order, the others' texts in their fences.
    texts = shown(model.call("plan 8"))
    assert texts["text 1"] == "Approach 1: first\n\nApproach 2: second"
    assert texts["text 6"] == "by plan 6/merge"
    lines = [line for line in said_to(model, 8).splitlines() if line[:1].isdigit() and line[1:3] == ". "]
    assert lines == [
        "1. approaches: 1 to 2.",
        "2. solve: solution 1.",
        "3. solve along approach 2: solution 2.",
        "4. verify solution 2: verdict 0.5.",
        "5. improve solution 2: solution 3.",
        "6. merge of solutions 3, 1: solution 4.",
        "7. select among solutions 4, 3: solution 3.",
    ]
    assert "You have 8 calls left" in content(model.call("plan 8"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not one JSON object"),
        ("I would solve it.", "not one JSON object"),
        ('{"tool": "solve"} {"tool": "solve"}', "not one JSON object"),
        ('Here it is: {"tool": "solve"}', "not one JSON object"),
        ('{"tool": "solve", "tool": "submit"}', "not one JSON object"),
        ("[" * 100_000, "not one JSON object"),
        ('[{"tool": "solve"}]', "none of the tools"),
        ('{"tool": "delete", "solution": 1}', "none of the tools"),
        ('{"tool": "solve", "solution": 1}', "none of the tools"),
        ('{"tool": "verify", "solution": "1"}', "none of the tools"),
        ('{"tool": "verify", "solution": 1.0}', "none of the tools"),
        ('{"tool": "verify", "solution": true}', "none of the tools"),
        ('{"tool": "verify"}', "none of the tools"),
        ('{"tool": "merge", "solutions": [1]}', "none of the tools"),
        ('{"tool": "merge", "solution": 1}', "none of the tools"),
        ('{"tool": "approaches", "count": 0}', "none of the tools"),
    ],
)
def test_a_malformed_call_is_told_and_counts(text: str, reason: str) -> None:
    with pytest.raises(NoVerdict, match=reason):
        read_call(text)
    _, model = run("planning_agent", plan(text, SOLVE, {"tool": "submit", "solution": 1}), planner_calls=3)
    assert model.paths == ["plan 1", "plan 2", "plan 2/solve", "plan 3"]
    assert reason in said_to(model, 2)
    assert len(said_to(model, 2)) < 200


def test_well_formed_calls() -> None:
    assert read_call('```json\n{"tool": "solve"}\n```') == Solve(tool="solve")
    assert read_call(' {"tool": "solve", "approach": null}\n') == Solve(tool="solve")
    assert read_call('{"tool": "improve", "solution": 3}') == OnSolution(tool="improve", solution=3)
    assert read_call('{"tool": "select", "solutions": [3, 1]}') == OnSolutions(tool="select", solutions=(3, 1))


@pytest.mark.parametrize(
    ("tool", "reason"),
    [
        ({"tool": "approaches", "count": 5}, "4 more approaches are allowed"),
        ({"tool": "solve", "approach": 1}, "no approaches"),
        ({"tool": "submit", "solution": 2}, "solutions have numbers from 1 to 1"),
        ({"tool": "verify", "solution": 0}, "solutions have numbers from 1 to 1"),
        ({"tool": "improve", "solution": -1}, "solutions have numbers from 1 to 1"),
        ({"tool": "merge", "solutions": [1, 2]}, "solutions have numbers from 1 to 1"),
        ({"tool": "select", "solutions": [1, 1]}, "a solution is named twice"),
    ],
)
def test_what_cannot_be_done_is_told_and_counts(tool: Any, reason: str) -> None:
    solution, model = run("planning_agent", plan(SOLVE, tool, "x"), planner_calls=3)
    assert model.paths == ["plan 1", "plan 1/solve", "plan 2", "plan 3"]
    assert f"{tool['tool']}: nothing was done: {reason}" in said_to(model, 3)
    assert solution.text == "by plan 1/solve"


def test_limits() -> None:
    four = [{"tool": "approaches", "count": 2}] * 3 + [SOLVE] * 5
    four += [{"tool": "improve", "solution": 1}, {"tool": "merge", "solutions": [1, 2, 3, 4, 5]}]
    _, model = run("planning_agent", plan(*four, "x"), planner_calls=11)
    told = said_to(model, 11)
    assert "3. approaches: nothing was done: 0 more approaches are allowed" in told
    assert "8. solve: nothing was done: 4 solutions have been asked for" in told
    assert "9. improve solution 1: solution 5." in told
    assert "10. merge: nothing was done: at most 4 solutions can be named" in told
    assert "This is your last call" in content(model.call("plan 11"))


def test_the_planner_has_fifteen_calls() -> None:
    solution, model = run("planning_agent", plan(*["x"] * 20))
    assert model.paths == [f"plan {n}" for n in range(1, 16)]
    assert (solution.text, solution.ended) == ("", "done")


@pytest.mark.parametrize(
    ("tools", "answer"),
    [
        ([SOLVE, SOLVE], "by plan 2/solve"),  # none has a verdict: the newest
        ([SOLVE, SOLVE, {"tool": "verify", "solution": 1}], "by plan 1/solve"),  # the one with a verdict
        ([SOLVE, SOLVE, {"tool": "select", "solutions": [1, 2]}], "by plan 1/solve"),
        ([SOLVE, SOLVE, {"tool": "select", "solutions": [1, 2]}, SOLVE], "by plan 1/solve"),
        ([SOLVE, {"tool": "verify", "solution": 1}, SOLVE, {"tool": "verify", "solution": 2}], "by plan 3/solve"),
    ],
)
def test_without_a_submission_the_best_is_the_answer(tools: list[Any], answer: str) -> None:
    solution, _ = run("planning_agent", plan(*tools), planner_calls=len(tools))
    assert solution.text == answer


def test_the_higher_mean_is_better() -> None:
    verify = [{"tool": "verify", "solution": n} for n in (1, 1, 2)]
    values = {"plan 3/verify": 1, "plan 4/verify": 0.5, "plan 5/verify": 0.5}
    answers = {path: lambda call, value=value: verdict(call, value) for path, value in values.items()}
    solution, _ = run("planning_agent", plan(SOLVE, SOLVE, *verify, **answers), planner_calls=5)
    assert solution.text == "by plan 1/solve"  # 0.75 against 0.5


def test_what_cannot_be_read_is_asked_for_again_and_then_told() -> None:
    tools = [
        {"tool": "approaches", "count": 1},  # the script gives two
        SOLVE,
        SOLVE,
        SOLVE,
        {"tool": "verify", "solution": 1},
        {"tool": "select", "solutions": [2, 1]},
        "x",
    ]
    unread = ("plan 5/verify", "plan 6/select")
    answers: dict[str, Any] = {path + again: "no" for path in unread for again in ("", "/again")}
    answers |= {"plan 3/solve": cut(thinking="hm"), "plan 4/solve": cut("half")}
    solution, model = run("planning_agent", plan(*tools, **answers), planner_calls=7)
    asked_again = [path for path in model.paths if path.endswith("/again")]
    assert asked_again == ["plan 1/approaches/again", "plan 5/verify/again", "plan 6/select/again"]
    told = said_to(model, 7)
    for line in (
        "1. approaches: the answer could not be read; there are no new ones.",
        "3. solve: the answer was cut off before its text began; there is no new solution.",
        "4. solve: solution 2, which is cut off at its end.",
        "5. verify solution 1: the verifier's verdict could not be read.",
        "6. select among solutions 2, 1: the selector's choice could not be read; none is selected.",
    ):
        assert line in told
    assert solution.text == "by plan 2/solve"  # none has a verdict: the newest that is whole


def test_the_best_when_the_budget_ends() -> None:
    tools = [SOLVE, SOLVE, {"tool": "verify", "solution": 1}, {"tool": "submit", "solution": 2}]
    answers = [run("planning_agent", plan(*tools), budget=budget)[0].text for budget in (10, 20, 40, 60, 70)]
    assert answers == ["", "by plan 1/solve", "by plan 2/solve", "by plan 1/solve", "by plan 2/solve"]

"""Proofs, verified, the best refined: 4 + 16 calls, then twice 4 + 16."""

from qedmeg.reasoning.call import Call
from qedmeg.reasoning.deepseek_math import Proof, lowest, ranked
from qedmeg.reasoning.steps import Analysis
from tests.reasoning.scripted_model import by_path, cut, echo, run, said, shown, verdict

# Verdicts of the four verifiers on each proof, by its path.
VERDICTS: dict[str, list[object]] = {
    "iteration 0/proof 1": [0, 0, 0, 0.5],  # mean 0.125
    "iteration 0/proof 2": [1, 0.5, 1, 0.5],  # 0.75
    "iteration 0/proof 3": [0.5, 0.5, 0.5, 0.5],  # 0.5
    "iteration 0/proof 4": [1, 0, 0, 1],  # 0.5
    "iteration 1/proof 1": [0.5, 0.5, 0, 0],  # 0.25: of proof 2
    "iteration 1/proof 2": [1, 1, 1, 0.5],  # 0.875: of proof 3
    "iteration 1/proof 3": [0, 0, 0, 0],  # 0: of proof 4
    "iteration 1/proof 4": [0.5, 0.5, 0.5, 0.5],  # 0.5: of proof 1
}


def script(call: Call) -> str:
    proof, _, verifier = call.path.removesuffix("/again").partition("/verify ")
    if not verifier:
        return echo(call)
    value = VERDICTS.get(proof, [0] * 4)[int(verifier) - 1]
    return verdict(call, value, before=f"analysis {verifier} of {proof}")


def iteration(number: int, proofs: int = 4) -> list[str]:
    written = [f"iteration {number}/proof {proof}" for proof in range(1, proofs + 1)]
    return written + [f"{proof}/verify {verifier}" for proof in written for verifier in range(1, 5)]


def test_the_calls_and_what_they_are_shown() -> None:
    solution, model = run("deepseek_math", script)
    assert model.paths == iteration(0) + iteration(1) + iteration(2)
    assert len(model.paths) == 60
    roles = {path: call.role for path, call in zip(model.paths, model.calls, strict=True)}
    assert {role for path, role in roles.items() if "verify" in path} == {"verifier"}
    assert {role for path, role in roles.items() if path.startswith("iteration 0") and "verify" not in path} == {
        "prover"
    }
    assert roles["iteration 1/proof 1"] == "improver"
    assert shown(model.call("iteration 0/proof 3/verify 2")) == {"proof": "by iteration 0/proof 3"}

    def refined(path: str) -> tuple[str, ...]:
        texts = shown(model.call(path))
        return texts["proof"], texts["report 1"].splitlines()[0], texts["report 2"].splitlines()[0]

    # By mean: 2 (0.75), then 3 and 4 (0.5 both, the earlier first), then 1. Each with its two lowest verdicts.
    assert refined("iteration 1/proof 1") == (
        "by iteration 0/proof 2",
        "analysis 2 of iteration 0/proof 2",
        "analysis 4 of iteration 0/proof 2",
    )
    assert refined("iteration 1/proof 2")[0] == "by iteration 0/proof 3"
    assert refined("iteration 1/proof 3") == (
        "by iteration 0/proof 4",
        "analysis 2 of iteration 0/proof 4",
        "analysis 3 of iteration 0/proof 4",
    )
    assert refined("iteration 1/proof 4")[0] == "by iteration 0/proof 1"
    # Of all eight: 0.875, 0.75, then the three of 0.5, the newer first: 1/4, 0/3.
    again = [refined(f"iteration 2/proof {number}")[0] for number in range(1, 5)]
    assert again == [
        "by iteration 1/proof 2",
        "by iteration 0/proof 2",
        "by iteration 1/proof 4",
        "by iteration 0/proof 3",
    ]
    assert solution.text == "by iteration 1/proof 2"  # those of the last iteration all got 0


def test_ends_when_a_mean_is_1() -> None:
    perfect = {f"iteration 1/proof 3/verify {n}": lambda call: verdict(call, 1) for n in range(1, 5)}
    solution, model = run("deepseek_math", by_path(perfect, script))
    assert model.paths == iteration(0) + iteration(1)
    assert solution.text == "by iteration 1/proof 3"


def test_a_verdict_that_cannot_be_read_is_asked_for_again_and_then_left_out() -> None:
    answers = {
        "iteration 0/proof 1/verify 1": "no verdict",
        "iteration 0/proof 1/verify 1/again": lambda call: verdict(call, 1),
        "iteration 0/proof 1/verify 2": lambda call: verdict(call, 2),
        "iteration 0/proof 1/verify 2/again": lambda call: verdict(call, "0.50"),
        "iteration 0/proof 1/verify 3": cut("cut off"),
        "iteration 0/proof 1/verify 3/again": lambda call: verdict(call, 0),
    }
    solution, model = run("deepseek_math", by_path(answers, script), iterations=0, pool=1)
    first = iteration(0, proofs=1)
    assert model.paths == [*first, *(f"iteration 0/proof 1/verify {n}/again" for n in (1, 2, 3))]
    assert solution.text == "by iteration 0/proof 1"
    # Verdicts 1, 0 and the fourth's 0.5: the mean of three, not of four.
    _, model = run("deepseek_math", by_path(answers, script), iterations=1, pool=1, analyses=4)
    reports = shown(model.call("iteration 1/proof 1"))
    assert [name for name in reports if name.startswith("report")] == ["report 1", "report 2", "report 3"]
    assert Proof("", 0, tuple(Analysis("", value) for value in (1, 0, 0.5))).score == 0.5


def test_ranks_by_mean_then_by_verdicts_then_the_newer() -> None:
    def proof(text: str, iteration: int, *verdicts: float) -> Proof:
        return Proof(text, iteration, tuple(Analysis(f"{text}{n}", one) for n, one in enumerate(verdicts)))

    pool = [
        proof("a", 0),
        proof("b", 0, 0, 0),
        proof("c", 1, 0.5),
        proof("d", 0, 1, 0),
        proof("e", 1, 0, 1),
        proof("f", 0, 0, 1),
    ]
    assert "".join(one.text for one in ranked(pool)) == "edfcba"
    assert pool[0].score is None
    assert lowest(proof("x", 0, 1, 0, 0.5, 0), 3) == ["x1", "x3", "x2"]


def test_a_reply_without_a_text_is_no_proof() -> None:
    drafts = {"iteration 0/proof 1": cut(thinking="hm"), "iteration 0/proof 3": said("  ")}
    solution, model = run("deepseek_math", by_path(drafts, script), iterations=1)
    verified = [path for path in model.paths if "iteration 0" in path and "verify" in path]
    assert {path.partition("/verify")[0] for path in verified} == {"iteration 0/proof 2", "iteration 0/proof 4"}
    assert [path for path in model.paths if path.startswith("iteration 1/proof") and "verify" not in path] == [
        "iteration 1/proof 1",
        "iteration 1/proof 2",
    ]
    solution, model = run("deepseek_math", lambda call: cut())
    assert (solution.text, solution.ended) == ("", "done")
    assert model.paths == [f"iteration 0/proof {number}" for number in range(1, 5)]


def test_the_best_when_the_budget_ends() -> None:
    # 40 tokens for the proofs, 160 for their verdicts, 40 for what is refined: then nothing is left to verify it.
    assert run("deepseek_math", script, budget=40)[0].text == "by iteration 0/proof 1"
    assert run("deepseek_math", script, budget=200)[0].text == "by iteration 0/proof 2"
    assert run("deepseek_math", script, budget=240)[0].text == "by iteration 0/proof 2"
    assert run("deepseek_math", script, budget=400)[0].text == "by iteration 1/proof 2"

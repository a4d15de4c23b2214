"""Attempts are kept as they are made; what failed or was left out is made by the next run, and nothing twice."""

import asyncio
import sqlite3

import pytest

from qedmeg.errors import UserError
from qedmeg.evaluation.generate import generate
from qedmeg.evaluation.problem import BenchmarkProblem
from qedmeg.evaluation.results import EvaluationRun, Results
from qedmeg.grading.grader import AnswerProblem, ProofProblem
from qedmeg.reasoning.call import Call
from qedmeg.reasoning.scaffolds import make_scaffold
from qedmeg.reasoning.session import PROVER
from tests.reasoning.scripted_model import TOKENS, ScriptedModel, content, cut, said

PROBLEMS = [BenchmarkProblem(ProofProblem(f"p{n}", f"Show {n}.", "7 for a proof."), "", "") for n in range(3)]


@pytest.fixture
def results(tmp_path):
    results = Results(tmp_path / "results.sqlite")
    yield results
    results.close()


def made(results, model, samples=2, scaffold="single", budget=None, problems=PROBLEMS, **settings):
    results.begin(EvaluationRun("run", "b", "m", scaffold, samples, {}), problems)
    return asyncio.run(
        generate(
            results,
            "run",
            problems,
            samples,
            make_scaffold(scaffold, settings),
            {PROVER: model},
            budget=budget,
            concurrency=2,
        )
    )


def test_what_failed_is_made_by_the_next_run(results):
    first = ScriptedModel(lambda call: "x", stop_after=4)
    outcome = made(results, first)
    assert (outcome.finished, outcome.known, outcome.failed) == (4, 0, {"gone": 2})
    # of every problem the first sample before any second
    assert [(one.problem, one.sample) for one in results.attempts("run")] == [
        ("p0", 0),
        ("p0", 1),
        ("p1", 0),
        ("p2", 0),
    ]
    second = ScriptedModel(lambda call: "y")
    outcome = made(results, second)
    assert (outcome.finished, outcome.known, outcome.failed.total()) == (2, 4, 0)
    assert len(second.calls) == 2
    assert made(results, second).known == 6
    assert len(second.calls) == 2
    assert sorted(one.text for one in results.attempts("run")) == ["x"] * 4 + ["y"] * 2


def test_an_attempt_goes_on_at_the_call_that_was_not_answered(results):
    first = ScriptedModel(lambda call: call.path, stop_after=7)
    made(results, first, samples=1, scaffold="reasoning_cache")
    second = ScriptedModel(lambda call: call.path)
    made(results, second, samples=1, scaffold="reasoning_cache")
    assert len(first.calls) + len(second.calls) == 3 * 5
    assert {one.tokens for one in results.attempts("run")} == {5 * TOKENS}


def test_every_call_has_a_seed_of_its_own(results):
    model = ScriptedModel(lambda call: "x")
    made(results, model, samples=2, scaffold="reasoning_cache")
    seeds = [call.seed for call in model.calls]
    assert len(set(seeds)) == len(seeds) == 3 * 2 * 5


def test_how_attempts_end_and_what_they_may_spend(results):
    script = {"Show 0.": said("whole"), "Show 1.": cut("half"), "Show 2.": cut()}
    made(results, ScriptedModel(lambda call: script[content(call)]), samples=1, prompt="{problem}")
    assert [(one.text, one.ended) for one in results.attempts("run")] == [
        ("whole", "done"),
        ("half", "length"),
        ("", "length"),
    ]


def test_a_full_disk_is_one_line(results, monkeypatch):
    monkeypatch.setattr(results, "_commit", full)
    with pytest.raises(UserError, match=r"results.sqlite: cannot be written: database or disk is full"):
        made(results, ScriptedModel(lambda call: "x"))


def full(rows):
    raise sqlite3.OperationalError("database or disk is full")


def test_the_budget_is_an_attempts(results):
    model = ScriptedModel(lambda call: call.path)
    made(results, model, samples=1, scaffold="reasoning_cache", budget=3 * TOKENS)
    attempts = results.attempts("run")
    assert {one.ended for one in attempts} == {"budget spent"}
    assert all(one.tokens <= 3 * TOKENS for one in attempts)
    assert {one.text for one in attempts} == {"round 2/reason"}


def test_answers_are_asked_for_in_the_form_that_they_are_read_in(results):
    asked: list[Call] = []
    model = ScriptedModel(lambda call: asked.append(call) or "x")
    made(results, model, 1, problems=[BenchmarkProblem(AnswerProblem("a", "What is 1 + 1?", "2"), "", "")])
    assert "What is 1 + 1?\n\nEnd with the final answer, and nothing else, in \\boxed{}." in content(asked[0])

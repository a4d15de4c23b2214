"""Answers are graded once by each grader; failed grades are tried again; a share is graded more often."""

import asyncio
import sys
from decimal import Decimal

import pytest
import yaml

from qedmeg.config import GraderConfig, JudgeConfig
from qedmeg.data.problems import generate, reference_proof
from qedmeg.errors import UserError
from qedmeg.evaluation import grade as command
from qedmeg.evaluation.grade import grade
from qedmeg.evaluation.problem import BenchmarkProblem
from qedmeg.evaluation.results import Attempt, EvaluationRun, Results
from qedmeg.grading.grade import Failed, Graded
from qedmeg.grading.grader import AnswerProblem, ProofProblem
from qedmeg.grading.graders import Graders
from tests.grading.judge_server import JudgeServer, right_points

EMBEDDED = generate("heldout", 1, seed=0)[0]
PROBLEMS = [
    BenchmarkProblem(EMBEDDED, "1", ""),
    BenchmarkProblem(AnswerProblem("a", "What is 1 + 1?", "2"), "", ""),
]
PROOFS = [BenchmarkProblem(ProofProblem(f"p{n}", "Show it.", "7 for a proof."), "", "") for n in range(20)]


def kept(path, problems, texts):
    results = Results(path)
    results.begin(EvaluationRun("run", "b", "m", "single", 1, {}), problems)

    async def write():
        for problem, text in zip(problems, texts, strict=True):
            await results.add_attempt("run", Attempt(problem.id, 0, text, "done", 1, 1, 1, 1, Decimal(0), 0.0))

    asyncio.run(write())
    return results


def graded(results, config, **options):
    async def run():
        graders = Graders(config)
        try:
            return await grade(results, "run", graders, **{"share_again": 0.0, "times": 1, "concurrency": 4} | options)
        finally:
            await graders.close()

    return asyncio.run(run())


def test_each_kind_of_problem_has_its_grader(tmp_path):
    results = kept(tmp_path / "r", PROBLEMS, [reference_proof(EMBEDDED), "It is \\boxed{2}."])
    outcome = graded(results, GraderConfig())
    assert (outcome.graded, outcome.known, outcome.failed.total()) == (2, 0, 0)
    assert [one.grade.points for one in results.grades("run")] == [7, 7]
    assert {one.grader.partition("/")[0] for one in results.grades("run")} == {"symbolic", "answers"}
    assert graded(results, GraderConfig()).known == 2


def test_failed_grades_are_tried_again_and_others_are_not(tmp_path):
    results = kept(tmp_path / "r", PROOFS, [f"Proof {n}." for n in range(20)])
    with JudgeServer(lambda proof, nth: "500" if proof in ("Proof 3.", "Proof 7.") else "right") as server:
        judge = JudgeConfig(base_url=server.url, model="scripted", attempts=2, backoff_seconds=0.0)
        outcome = graded(results, GraderConfig(judges=(judge,)))
        assert (outcome.graded, outcome.failed) == (18, {"server error": 2})
        assert sum(isinstance(one.grade, Failed) for one in results.grades("run")) == 2
        asked = len(server.served)
        server.plan = lambda proof, nth: "right"
        outcome = graded(results, GraderConfig(judges=(judge,)))
        assert (outcome.graded, outcome.known, len(server.served) - asked) == (2, 18, 2)
    points = [one.grade.points for one in results.grades("run") if isinstance(one.grade, Graded)]
    texts = {attempt.problem: attempt.text for attempt in results.attempts("run")}
    assert points == [right_points(texts[one.problem], (7,))[0] for one in results.grades("run")]


def test_a_share_is_graded_again_by_votes_of_their_own(tmp_path):
    results = kept(tmp_path / "r", PROOFS, [f"Proof {n}." for n in range(20)])
    with JudgeServer() as server:
        judge = JudgeConfig(base_url=server.url, model="scripted")
        config = GraderConfig(judges=(judge,), cache=tmp_path / "cache.sqlite")
        graded(results, config)
        asked = len(server.served)
        outcome = graded(results, config, share_again=0.4, times=2)
        again = {one.problem for one in results.grades("run") if one.regrade > 0}
        assert 2 <= len(again) <= 14
        assert outcome.graded == 2 * len(again) == len(server.served) - asked  # none of them from the cache
        graded(results, config, share_again=0.7, times=2)
        assert again < {one.problem for one in results.grades("run") if one.regrade > 0}


def test_proofs_without_a_judge_are_refused_before_anything_is_graded(tmp_path):
    results = kept(tmp_path / "r", [*PROBLEMS, PROOFS[0]], ["x", "y", "z"])
    with pytest.raises(
        UserError, match="problem 'p0': its proofs are graded by a judge, and none is set; give --grader"
    ):
        graded(results, GraderConfig())
    assert results.grades("run") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--regrade", "1.5"], r"--regrade: 1\.5 is no share from 0 to 1"),
        (["--times", "0"], "--times: 0 is less than 1"),
        (["--run", "rum"], "no run 'rum'; did you mean 'run'"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, options, message):
    kept(tmp_path / "r", PROBLEMS, ["x", "y"]).close()
    monkeypatch.setattr(sys, "argv", ["grade.py", str(tmp_path / "r"), *options])
    with pytest.raises(UserError, match=message):
        command.main()


def test_the_command_says_what_it_did(tmp_path, monkeypatch, capsys):
    kept(tmp_path / "r", PROOFS[:2], ["Proof 1.", "Proof 2."]).close()
    with JudgeServer(lambda proof, nth: "400" if "1" in proof else "right") as server:
        (tmp_path / "judge.yaml").write_text(
            yaml.safe_dump({"judges": [{"base_url": server.url, "model": "scripted", "price_completion": 1.0}]})
        )
        monkeypatch.setattr(sys, "argv", ["grade.py", str(tmp_path / "r"), "--grader", str(tmp_path / "judge.yaml")])
        assert command.main() == 1
    said = capsys.readouterr().out
    assert "run: 1 graded, 0 before; 2 requests" in said
    assert "not graded, in no mean: 1 (refused)" in said

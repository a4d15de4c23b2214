"""eval/compare.py: two runs, problem by problem."""

import json
import sys

import pytest

from qedmeg.errors import UserError
from qedmeg.evaluation.compare import common_grader, main
from tests.evaluation.filled import add_run, by_rule, failed, graded, problems, run_of

COUNT = 12


@pytest.fixture
def path(tmp_path):
    """`a` has 5 each time and lacks the last problem; `b` 3 of even and 4 of odd problems, 0 of the first."""
    first = by_rule(lambda n, sample: 5, COUNT - 1, 2)
    second = by_rule(lambda n, sample: 0 if n == 0 else 3 + n % 2, COUNT, 2) | {(1, 0): [failed()]}
    path = tmp_path / "results.sqlite"
    add_run(path, run_of("a"), problems(COUNT), {"judge": first, "own": by_rule(lambda n, sample: 1, COUNT, 2)})
    add_run(path, run_of("b"), problems(COUNT), {"judge": second})
    return path


def run_here(monkeypatch, *arguments):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, arguments)])
    return main()


def test_the_command_compares_problem_by_problem(path, tmp_path, monkeypatch, capsys):
    # `own` gave `a` more grades, but graded `a` alone.
    assert run_here(monkeypatch, path, "--runs", "a", "b", "--out", tmp_path / "out") == 0
    found = json.loads((tmp_path / "out/compare.json").read_text())
    assert (found["grader"], found["only_first"], found["only_second"]) == ("judge", 0, 1)
    assert (found["first_failed"], found["second_failed"]) == (0, 1)
    whole = found["whole"]
    assert (whole["first"], whole["second"]) == (5, pytest.approx((0 + 5 * 3 + 5 * 4) / 11))
    # 5 once, 2 five times, 1 five times; all of one sign: 2 of 2^11 flips are as far.
    assert whole["difference"]["mean"] == pytest.approx(20 / 11)
    assert (whole["difference"]["problems"], whole["difference"]["exact"]) == (11, True)
    assert whole["difference"]["p"] == pytest.approx(2 / 2**11)
    assert 0 < whole["difference"]["interval"]["low"] < 20 / 11 < whole["difference"]["interval"]["high"]
    assert [group["name"] for group in found["levels"]] == ["basic", "advanced"]
    algebra, geometry = found["categories"]
    assert (algebra["difference"]["mean"], geometry["difference"]["mean"]) == (pytest.approx(15 / 6), pytest.approx(1))
    assert [one["problem"] for one in found["problems"][:2]] == ["p0", "p2"]
    assert found["problems"][0]["second_points"] == [0, 0]
    shown = capsys.readouterr().out
    assert "0 by a alone, 1 by b alone" in shown
    assert "attempts not graded, in no mean: 0 of a, 1 of b" in shown
    assert "5.0 (5 5)" in shown
    drawn = (tmp_path / "out/compare.svg").read_text()
    assert drawn.count("<svg") == 1
    assert "Geometry (5)" in drawn


def test_the_other_run_may_be_in_another_file(path, tmp_path, monkeypatch, capsys):
    other = tmp_path / "other.sqlite"
    add_run(other, run_of("b"), problems(COUNT), {"judge": by_rule(lambda n, sample: 7, COUNT, 2)})
    assert run_here(monkeypatch, path, "--other", other, "--runs", "a", "b") == 0
    assert "-28.6" in capsys.readouterr().out  # 5 less 7 of 7


def test_a_difference_of_none(path, monkeypatch, capsys):
    assert run_here(monkeypatch, path, "--runs", "a", "a") == 0
    assert "1.0000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"benchmark": "proofbench"}, "different benchmarks, imo-proofbench and proofbench"),
        ({"grader": "someone"}, r"no grader in common \(own and someone\)"),
        ({"statement": "Show it."}, "problem 'p0' is another one"),
        ({"graded": 0}, "no grader in common"),
        ({"only": 11}, "no problem in common"),
    ],
)
def test_runs_that_cannot_be_compared(path, monkeypatch, other, says):
    grades = by_rule(lambda n, sample: 7, other.get("graded", COUNT), 2)
    if "only" in other:
        grades = {key: given for key, given in grades.items() if key[0] == other["only"]}
    asked = problems(COUNT, statement=other.get("statement", "Prove it."))
    add_run(path, run_of("c", other.get("benchmark", "imo-proofbench")), asked, {other.get("grader", "judge"): grades})
    with pytest.raises(UserError, match=says):
        run_here(monkeypatch, path, "--runs", "a", "c")


def test_a_grader_that_is_asked_for_must_have_graded_both(path, monkeypatch):
    with pytest.raises(UserError, match="the run 'b' has no grades by 'own'"):
        run_here(monkeypatch, path, "--runs", "a", "b", "--grader", "own")


def test_the_foremost_grader_in_common():
    assert common_grader(["x", "y", "z"], ["z", "y"]) == "y"
    assert common_grader(["x"], ["y"]) is None


def test_a_run_with_points_that_many_attempts_have(tmp_path, monkeypatch, capsys):
    for name, points in (("a", 7), ("b", 1)):
        run = run_of(name, samples=9)
        add_run(tmp_path / "r", run, problems(1), {"judge": {(0, sample): [graded(points)] for sample in range(9)}})
    assert run_here(monkeypatch, tmp_path / "r", "--runs", "a", "b") == 0
    assert "7.0 (7 7 7 7 7 7 7 7 ...)" in capsys.readouterr().out

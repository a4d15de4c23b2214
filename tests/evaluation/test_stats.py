"""eval/stats.py: what is counted, what is left out and said to be, and what is written."""

import json
import sys

import pytest

from qedmeg.errors import UserError
from qedmeg.evaluation.scores import open_results, read_run
from qedmeg.evaluation.stats import main
from qedmeg.evaluation.summary import summarize
from tests.evaluation.filled import add_run, by_rule, failed, graded, problems, run_of


@pytest.fixture
def small(tmp_path):
    """Four problems, two attempts each: points 7 and 3, a failed grade and 5 (regraded 6), 0 of 14 and not graded yet,
    two failed ones."""
    grades = {
        (0, 0): [graded(7)],
        (0, 1): [graded(3)],
        (1, 0): [failed()],
        (1, 1): [graded(5), graded(6), failed()],
        (2, 0): [graded(4, of=14)],
        (3, 0): [failed("refused")],
        (3, 1): [failed("timeout"), graded(7)],
    }
    path = tmp_path / "results.sqlite"
    add_run(path, run_of("one"), problems(4), {"judge": grades, "other": {(0, 0): [graded(1)]}})
    return path


def summary(path, grader=None):
    results = open_results(path)
    return summarize(read_run(results, results.runs()[0], grader))


def test_a_failed_grade_is_no_zero(small):
    found = summary(small)
    whole = found.whole
    assert (whole.problems, whole.graded, whole.missing) == (3, 4, 1)
    assert whole.failed == {"timeout": 2, "refused": 1}
    assert whole.ungraded == ("p3",)
    assert whole.mean == pytest.approx((5 + 5 + 2) / 3)  # 4 of 14 is 2 of 7; the regrades 6 and 7 count for nothing
    assert whole.percent == pytest.approx(4 / 7 * 100)
    assert whole.interval is None
    assert [(group.name, group.mean) for group in found.levels] == [("basic", 5), ("advanced", 2)]
    assert [(group.name, group.mean) for group in found.categories] == [("Algebra", 3.5), ("Geometry", 5)]
    assert found.levels[1].ungraded == ("p3",)


def test_what_k_attempts_give(small):
    first, second = summary(small).whole.at_k
    assert (first.k, first.problems, first.best, first.passed) == (1, 3, pytest.approx(4), pytest.approx(0.5 / 3))
    assert (second.k, second.problems, second.best, second.passed) == (2, 1, 7, 1)


def test_costs_and_ends(small):
    found = summary(small)
    cost = found.whole.cost
    assert (cost.tokens_per_problem, cost.money_per_problem) == (100.5, 0.5)
    # Grades cost 0.01 each: 1 1 | 1 3 | 1 0 | 1 2, over two attempts a problem.
    assert cost.grading_per_problem == pytest.approx(0.01 * (2 + 4 + 1 + 3) / 2 / 4)
    assert cost.tokens_per_point == pytest.approx((100 + 101 + 101 + 100) / (7 + 3 + 5 + 2))
    assert cost.money_per_point == pytest.approx(4 * 0.5 / 17)
    assert found.ended == {"length": 4, "done": 4}


def test_attempts_as_runs_of_their_own_and_noise(small):
    found = summary(small)
    first, second = (7 + 2) / 2 / 7 * 100, (3 + 5) / 2 / 7 * 100
    assert found.sample_percents == (pytest.approx(first), pytest.approx(second))
    assert found.sample_deviation == pytest.approx((first - second) / 2**0.5)
    assert found.noise.grader.deviation**2 == pytest.approx(0.5)  # 5 and 6
    assert found.noise.regraded == 1


def test_graders_are_kept_apart(small):
    found = summary(small)
    assert (found.grader, found.other_graders) == ("judge", ("other",))
    other = summary(small, "other")
    assert (other.whole.mean, other.whole.missing, other.other_graders) == (1, 7, ("judge",))


def test_regrades_alone_neither_score_nor_choose_the_grader(tmp_path):
    counted = {(0, 0): [graded(3)], (0, 1): [graded(3)]}
    regraded = {(0, 0): [graded(7), graded(7), graded(7)], (0, 1): [None, graded(7)]}
    add_run(tmp_path / "r", run_of("one"), problems(1), {"judge": counted, "again": regraded})
    assert summary(tmp_path / "r").grader == "judge"  # two grades that count against one, though fewer in all
    again = summary(tmp_path / "r", "again").whole
    assert (again.graded, again.missing) == (1, 1)


def test_k_attempts_are_over_problems_that_have_so_many(tmp_path):
    grades = {(0, 0): [graded(1)], (1, 0): [graded(0)], (1, 1): [graded(6)], (2, 0): [graded(7)]}
    add_run(tmp_path / "r", run_of("one"), problems(3), {"judge": grades})
    second = summary(tmp_path / "r").whole.at_k[1]
    assert (second.k, second.problems, second.best, second.passed) == (2, 1, 6, 1)


def test_all_problems_of_one_level_are_no_group(tmp_path):
    asked = problems(4)[:2]
    add_run(tmp_path / "r", run_of("one"), asked, {"judge": by_rule(lambda n, sample: n, 2, 2)})
    found = summary(tmp_path / "r")
    assert found.levels == ()
    assert [group.name for group in found.categories] == ["Algebra", "Geometry"]


# --- the command ----------------------------------------------------------------------------------------------------


def run_here(monkeypatch, *arguments):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["stats.py", *map(str, arguments)])
    return main()


def test_the_command_shows_and_writes(small, tmp_path, monkeypatch, capsys):
    rule = by_rule(lambda n, sample: (7 * n + 3 * sample) % 8, 24, 3)
    named = run_of("[red]two$x$", model="<b>", samples=3)
    add_run(small, named, problems(24), {"judge": rule}, tokens=5000)
    add_run(small, run_of("nothing yet"), problems(2), {}, attempted=lambda n, sample: False)
    assert run_here(monkeypatch, small, "--out", tmp_path / "out") == 0
    shown = capsys.readouterr().out
    for text in (
        *("[red]two$x$", "95% of problems", "best@k of 7", "pass@k, % (≥ 6 points)", "nothing yet"),
        *("not graded, in no mean: 2 (timeout)", "not graded, in no mean: 1 (refused)"),
        "asked for and not there, or not graded yet, in no mean: 1",
        "problems without a graded attempt, in no mean: 1 (p3)",
        *("grader 0.71 (mean ± ", "grader not told apart: needs a second grade of an attempt"),
        "other graders (--grader): other",
    ):
        assert text in shown, shown
    one, two, nothing = json.loads((tmp_path / "out/stats.json").read_text())
    assert one["whole"]["failed"] == {"timeout": 2, "refused": 1}
    assert (one["pass_points"], one["samples"], two["samples"]) == (6, 2, 3)
    assert two["whole"]["interval"]["low"] < two["whole"]["mean"] < two["whole"]["interval"]["high"]
    assert two["bootstrap"]["low"] == pytest.approx(two["whole"]["interval"]["low"], abs=0.2)
    assert nothing["whole"]["mean"] is None
    drawn = (tmp_path / "out/stats.svg").read_text()
    assert drawn.count("<svg") == 1
    assert drawn.count("[red]two$x$") >= 2
    assert "mathdefault" not in drawn  # mathematics is off: tokens are plain numbers
    assert ">5,000<" in drawn
    assert not list((tmp_path / "out").glob("*.partial"))


def test_the_command_takes_runs_and_graders(small, monkeypatch, capsys):
    add_run(small, run_of("two"), problems(4), {})
    assert run_here(monkeypatch, small, "--run", "one", "--grader", "other") == 0
    assert "two" not in capsys.readouterr().out
    assert run_here(monkeypatch, small, "--run", "two") == 1  # nothing is graded


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--run", "onn"), "no run 'onn'; did you mean 'one'"),
        (("--grader", "juge"), "has no grades by 'juge'; did you mean 'judge'"),
    ],
)
def test_names_that_are_not_there(small, monkeypatch, options, says):
    with pytest.raises(UserError, match=says):
        run_here(monkeypatch, small, *options)


def test_files_that_are_not_there_or_empty(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no such file of results"):
        run_here(monkeypatch, tmp_path / "none.sqlite")
    assert not (tmp_path / "none.sqlite").exists()
    (tmp_path / "empty.sqlite").touch()
    with pytest.raises(UserError, match="it has no runs"):
        run_here(monkeypatch, tmp_path / "empty.sqlite")


def test_help_has_an_example(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="0"):
        run_here(monkeypatch, "--help")
    assert "python eval/stats.py runs/results.sqlite" in capsys.readouterr().out

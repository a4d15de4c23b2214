"""eval/tables.py: stored runs in the places of the paper's tables, beside the published figures."""

import json
import sys

import pytest

from qedmeg.errors import UserError
from qedmeg.evaluation.published import BENCHMARKS, MAIN_TABLE, QED_NANO, SCAFFOLD_TABLE
from qedmeg.evaluation.tables import main, published_name
from tests.evaluation.filled import add_run, by_rule, failed, problems, run_of

SCORES = {"single": 3, "rsa": 4, "selfcheck": 2}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "results.sqlite"
    for n, scaffold in enumerate(SCORES):
        run = run_of(f"nano {scaffold}", "imo-proofbench", "runs/models/qed-nano", scaffold)
        rule = by_rule(lambda n, sample, at=SCORES[scaffold]: at + n % 2 - sample, 60, 2)
        add_run(path, run, problems(60), {"judge": rule}, tokens=1000 * (1 + 9 * n))
    rule = by_rule(lambda n, sample: 7 * (n % 3 > 0), 390, 1) | {(0, 0): [failed()]}
    answers = run_of("answers", "imo-answerbench", "served-as-x", samples=1)
    add_run(path, answers, problems(390), {"exact": rule})
    add_run(path, run_of("mine", "proofbench", "my-own"), problems(20), {"judge": by_rule(lambda n, s: n % 8, 20, 2)})
    add_run(path, run_of("embedded", "embedded", "my-own"), problems(2), {"symbolic": by_rule(lambda n, s: n, 2, 2)})
    return path


def run_here(monkeypatch, *arguments):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["tables.py", *map(str, arguments)])
    return main()


def test_the_tables(path, tmp_path, monkeypatch, capsys):
    assert run_here(monkeypatch, path, "--as", "answers=QED-Nano", "--out", tmp_path / "out") == 0
    found = json.loads((tmp_path / "out/tables.json").read_text())
    rows = {(row["model"], row["scaffold"]): row for row in found["main"]}
    assert len(rows) == len(MAIN_TABLE) + 2  # QED-Nano in a scaffold without published scores, and a model of ours
    assert [model for model, _ in rows][2:7] == [QED_NANO, QED_NANO, QED_NANO, QED_NANO, "Qwen3-30B-A3B-Thinking"]
    nano = rows["QED-Nano", "single"]
    proofs, proofbench, answers = nano["cells"]
    # 3 and 4 in turns the first time, 2 and 3 the second: 3 of 7, and a whole point between the attempts.
    assert proofs["percent"] == pytest.approx(3 / 7 * 100)
    assert proofs["deviation"] == pytest.approx(100 / 7 / 2**0.5)
    assert proofs["published"] == {"percent": 40.0, "deviation": 0.6, "source": "model card of QED-Nano"}
    assert proofs["difference"] == pytest.approx(300 / 7 - 40)
    # Problems 2.5 and 3.5: error 0.0651 of 7. Attempts: variance 0.5 each, error (0.25 / 60) ** 0.5 = 0.0645 of 7.
    assert proofs["interval"]["low"] == pytest.approx((3 - 1.96 * 0.0651) / 7 * 100, abs=0.01)
    assert proofs["in_interval"] is False
    assert proofs["repeat_interval"]["low"] == pytest.approx((3 - 2.0003 * 0.0645) / 7 * 100, abs=0.01)
    assert proofs["in_repeat_interval"] is False
    assert proofbench is None
    assert (answers["problems"], answers["of_problems"], answers["not_graded"]) == (389, 400, 1)
    assert (answers["in_interval"], answers["in_repeat_interval"]) == (True, None)  # 66.8 %, and 67.5 published
    assert rows["my-own", "single"]["published"] == [None, None, None]
    assert rows["my-own", "single"]["cells"][1]["in_interval"] is None
    scaffolds = {(row["model"], row["scaffold"]): row for row in found["scaffolds"]}
    assert [name for _, name in scaffolds] == ["single", "reasoning_cache", "deepseek_math", "rsa", "selfcheck"]
    assert scaffolds["QED-Nano", "rsa"]["tokens_per_problem"] == 10000.5
    assert scaffolds["QED-Nano", "rsa"]["ratio"] == pytest.approx(10000.5 / 1000.5)
    assert scaffolds["QED-Nano", "rsa"]["published"]["ratio"] == 21.84
    assert scaffolds["QED-Nano", "reasoning_cache"]["cell"] is None
    assert scaffolds["QED-Nano", "selfcheck"]["published"] is None
    shown = capsys.readouterr().out
    for text in (
        *("42.9 (10.1)", "published 40.0 (0.6): +2.9", "389 of 400 problems", "1 attempts not graded"),
        *("10.00", "56.9", "+0.2", "2,045,764"),  # of RSA
        "published scores are by Gemini 3 Pro; here graded by: judge, exact",
    ):
        assert text in shown, shown


def test_only_runs_that_are_asked_for(path, monkeypatch, capsys):
    assert run_here(monkeypatch, path, "--run", "nano rsa") == 0
    shown = capsys.readouterr().out
    assert "my-own" not in shown
    assert "selfcheck" not in shown


def test_no_run_on_their_benchmarks(path, monkeypatch, capsys):
    assert run_here(monkeypatch, path, "--run", "embedded") == 1
    assert "published 40.0 (0.6)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--as", "mine=QED-Nan"), "no published model 'QED-Nan'; did you mean 'QED-Nano'"),
        (("--as", "mein=QED-Nano"), "expected RUN=MODEL with the name of a run; did you mean 'mine'"),
        (("--as", "QED-Nano"), "expected RUN=MODEL"),
        (("--run", "mein"), "no run 'mein'"),
    ],
)
def test_mistakes(path, monkeypatch, options, says):
    with pytest.raises(UserError, match=says):
        run_here(monkeypatch, path, *options)


def test_two_runs_for_one_place(path, monkeypatch):
    add_run(path, run_of("again", model="org/QED-Nano"), problems(60), {})
    with pytest.raises(UserError, match=r"'nano single' and 'again' are both of QED-Nano \(single\) on imo-proofbench"):
        run_here(monkeypatch, path)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("lm-provers/QED-Nano-SFT", "QED-Nano-SFT"),
        ("/models/qed_nano/", QED_NANO),
        ("openai/gpt-oss-20b", "GPT-OSS-20B"),
        ("Qwen/Qwen3-30B-A3B-Thinking-2507", "Qwen3-30B-A3B-Thinking"),
        ("Qwen/Qwen3-4B-Thinking-2507", "Qwen3-4B-Thinking-2507"),
        ("gemini-3-pro-preview", "Gemini 3 Pro"),
        ("QED-Nano-RL-7", None),
        ("", None),
    ],
)
def test_published_names(model, name):
    assert published_name(model) == name


def test_published_figures_agree_with_themselves():
    single = SCAFFOLD_TABLE[0]
    for cost in SCAFFOLD_TABLE:
        assert cost.tokens_per_problem / single.tokens_per_problem == pytest.approx(cost.ratio, abs=0.005)
    scores = {row.scaffold: row.scores for row in MAIN_TABLE if row.model == QED_NANO}
    for cost in SCAFFOLD_TABLE:
        if cost.scaffold in scores:
            assert scores[cost.scaffold]["imo-proofbench"].percent == cost.percent
    assert {name for row in MAIN_TABLE for name in row.scores} == {benchmark.name for benchmark in BENCHMARKS}

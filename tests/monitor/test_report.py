"""The report of a run: whatever a model or a judge wrote is shown as text, and what is missing is not needed."""

import argparse
import json
import sys
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from qedmeg import __main__ as command_line
from qedmeg.errors import UserError, run_command
from qedmeg.grading.grade import Cost, Failed, Grade, Graded, ItemGrade
from qedmeg.monitor import curves, report
from qedmeg.monitor.metrics import METRICS_FILE, MetricsLogger, read_metrics, rl_note
from qedmeg.monitor.rollout_metrics import batch_metrics
from qedmeg.rollout.sample import Sample
from qedmeg.rollout.schedule import DropReason
from qedmeg.rollout.store import STORE_FILE, Store, read_batch

HOSTILE = (
    '</pre></article></style></title><script>alert(1)</script><img src="x" onerror="alert(2)"><iframe src="//evil">'
    "<a href='javascript:alert(3)'>judge</a><svg onload=alert(4)><meta http-equiv=refresh content='0'>"
    "<!-- ]]> {{ 7*7 }} {% raw %} &lt;b&gt; $\\frac{$ \x00\x1b[31m \u202e"
)
RL_STEP = {
    "train/reward": 0.5,
    "train/reward_std": 0.2,
    "train/mismatch": 2e-6,
    "train/mismatch_max": 3e-5,
    "train/grades_failed": 2.0,
    "train/grader_money": 0.25,
    "train/time/generate": 2.0,
    "train/time/train": 1.0,
    "train/time/idle": 1.0,
}


class Page(HTMLParser):
    """How many elements a page has of each kind (tag and names of attributes), and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: Counter[tuple[str, ...]] = Counter()
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[(tag, *(name for name, _ in attrs))] += 1

    def handle_data(self, data: str) -> None:
        self.text += data


def log(run_dir: Path, lines: list[dict[str, float]]) -> Path:
    run_dir.mkdir(exist_ok=True)
    (run_dir / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run_dir


def graded(points: float, reason: str = "as it must", votes: tuple[float, ...] = ()) -> Graded:
    items = (ItemGrade("idea", min(points, 5.0), 5, reason), ItemGrade("end", max(points - 5.0, 0.0), 2, reason))
    return Graded(points, 7, items, "test", votes=votes)


def store(run_dir: Path, groups: list[tuple[str, list[tuple[str | None, Grade]]]]) -> None:
    """A store with these groups, each used by the step of its number: a problem, and proofs with their grades."""
    run_dir.mkdir(exist_ok=True)
    opened = Store(run_dir / STORE_FILE, {})
    tokens_T = np.arange(9, dtype=np.int32)
    for number, (problem, proofs) in enumerate(groups):
        opened.begin_group(number, problem, tokens_T, len(proofs))
        for place, (proof, grade) in enumerate(proofs):
            sample = Sample(tokens_T, tokens_T, np.zeros(9, dtype=np.float32), ((number, 0), (number + 1, 4)), "stop")
            opened.add_grade(opened.add_sample(number, place, 0, sample, proof), grade)
        opened.make_ready(number)
        opened.assign(number, [number], {})
    opened.close()


def write_rows(run_dir: Path, rows: list[dict[str, str]]) -> None:
    """The rows that the run was trained on, and the settings that name them."""
    path = run_dir / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run_dir / "config.yaml").write_text(f"data: {{train: {path}}}\nrun_dir: {run_dir}\n")


def step_with_losses(run_dir: Path) -> dict[str, float]:
    """What is logged of a step whose rollouts failed and were dropped in every way, from the store onwards."""
    run_dir.mkdir(exist_ok=True)
    opened = Store(run_dir / STORE_FILE, {})
    tokens_T = np.arange(9, dtype=np.int32)
    cost = Cost(1, 100, 10, Decimal("0.5"))
    for number, reason in enumerate([None, *get_args(DropReason)]):
        opened.begin_group(number, f"p{number}", tokens_T, 2)
        for place, grade in enumerate([replace(graded(7), cost=cost), Failed("timeout", "no answer", cost)]):
            sample = Sample(tokens_T, tokens_T, np.zeros(9, dtype=np.float32), ((0, 0),), "stop")
            opened.add_grade(opened.add_sample(number, place, 0, sample, "proof"), grade)
        if reason:
            opened.drop(number, reason, 0)
    opened.assign(0, [0], opened.counts(0))
    opened.close()
    return batch_metrics(read_batch(run_dir / STORE_FILE, 0))


def page_of(run_dir: Path) -> Page:
    return Page(report.write_run_report(run_dir))


def test_what_models_and_judges_wrote_is_shown_as_text_alone(tmp_path: Path) -> None:
    def run(name: str, text: str) -> Page:
        folder = log(
            tmp_path / name, [{"step": 0, **RL_STEP, f"train/item/{text} / {text}": 0.5, f"train/{text}": 1.0}]
        )
        proofs: list[tuple[str | None, Grade]] = [(text, graded(7, text)), ("short", graded(0, text, votes=(0, 3)))]
        store(folder, [(text, proofs)])
        write_rows(folder, [{"id": text, "problem": f"{text}?", "rubric": text}])
        return page_of(folder)

    harmless, hostile = run("harmless", "words"), run("hostile", HOSTILE)
    assert hostile.elements == harmless.elements
    assert not {tag for tag, *_ in hostile.elements} & {
        "script",
        "img",
        "iframe",
        "a",
        "object",
        "base",
        "form",
        "link",
    }
    assert "Content-Security-Policy\" content=\"default-src 'none'; style-src" in hostile.source
    # as a proof, a statement, a rubric, a problem's name and the reason of each item of each proof
    assert hostile.text.count("<script>alert(1)</script>") >= 10
    assert "{{ 7*7 }}" in hostile.text
    assert "\x00" not in hostile.source
    assert "\x1b" not in hostile.source


def test_proofs_with_their_grades_stand_where_they_belong(tmp_path: Path) -> None:
    run_dir = log(tmp_path / "run", [{"step": 0, **RL_STEP}])
    store(
        run_dir,
        [
            ("p0", [("good proof", graded(7)), ("bad proof", graded(0, "shows nothing"))]),
            ("p1", [("fair proof", graded(3)), ("another", graded(3))]),
            ("p2", [("failed proof", Failed("timeout", "no answer")), (None, graded(2.5, votes=(0, 5)))]),
        ],
    )
    write_rows(run_dir, [{"id": f"p{i}", "problem": f"Prove p{i}!", "rubric": f"rubric of p{i}"} for i in range(3)])
    text = page_of(run_dir).text
    best, rest = text.split("Best proofs")[1].split("Worst proofs")
    worst, rest = rest.split("votes furthest apart")
    votes, groups = rest.split("rewards furthest apart")
    assert best.index("good proof") < best.index("fair proof") < best.index("The answer holds no proof")
    assert worst.index("bad proof") < worst.index("The answer holds no proof") < worst.index("fair proof")
    assert "2.5 of 7" in votes
    assert "votes 0, 5" in votes
    assert groups.index("Prove p0!") < groups.index("good proof") < groups.index("bad proof")
    assert "points of the group: 7, 0" in groups
    assert "fair proof" not in groups  # its group agrees
    assert "step 0 · weights 0 to 1 · 9 tokens" in groups
    assert "shows nothing" in groups
    assert "rubric of p0" in groups
    assert "failed proof" not in text
    assert "graded proofs5" in text.replace("\n", "").replace(" proofs ", " proofs")


def test_a_long_proof_is_cut_in_the_middle(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    store(run_dir, [("p", [("begin " + "<x> " * 1_250_000 + " end", graded(7)), ("", graded(0))])])
    page = page_of(run_dir)
    assert len(page.source) < 200_000
    assert "begin <x>" in page.text
    assert "<x>  end" in page.text
    assert "[4,980,010 characters are left out here]" in page.text


def test_a_run_without_store_or_without_metrics(tmp_path: Path) -> None:
    sft = log(tmp_path / "sft", [{"step": s, "train/loss": 3.0 - s, "train/lr": 1e-3, "val/odd": s} for s in range(3)])
    page = page_of(sft)
    assert page.source.count("<svg") == 3
    assert "3 → 1" in page.text
    assert "val/odd" in page.text  # a metric that no panel knows
    assert "Best proofs" not in page.text
    rl = tmp_path / "rl"
    store(rl, [("p", [("proof", graded(7)), ("other", graded(7))])])
    page = page_of(rl)
    assert "Curves" not in page.text
    assert "Best proofs" in page.text
    assert "cannot be shown, but their ids" in page.text  # there is no config.yaml


def test_problems_whose_rows_have_changed(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    store(run_dir, [("p", [("proof", graded(7)), ("other", graded(7))])])
    write_rows(run_dir, [{"id": "q", "problem": "Q", "rubric": "R"}])
    assert "1 of the problems below are no longer in" in page_of(run_dir).text


def test_what_the_store_counts_is_in_the_line_of_the_step_and_in_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = MetricsLogger(tmp_path, "GRPO", 0, 1, is_main=True, step_line=rl_note)
    logger.log_metrics(step_with_losses(tmp_path), 0, "train/")
    logger.finalize()
    assert "  4 grades failed  " in capsys.readouterr().err
    series = curves.series_of(read_metrics(tmp_path))
    told = {plot.title: [(name, last) for name, _, last in plot.legend] for plot in curves.plots(series)}
    assert told["Grades that failed"] == [("failures", "4")]
    assert told["Cost of a step's grades"] == [("money", "4")]
    assert told["Tokens of a step's grades"] == [("tokens", "880")]
    assert told["Groups left out"] == [("same rewards", "1"), ("too old", "1"), ("too few grades", "1")]
    text = page_of(tmp_path).text.replace("\n", "")
    assert "failed grades4" in text
    assert "cost of grades4" in text


def test_an_interrupted_metrics_file(tmp_path: Path) -> None:
    run_dir = log(tmp_path / "run", [{"step": 0, **RL_STEP}, {"step": 1, **RL_STEP, "train/reward": float("nan")}])
    with (run_dir / METRICS_FILE).open("a") as file:
        file.write('{"step": 2, "train/rew')
    page = page_of(run_dir)
    assert "steps2" in "".join(page.text.split())
    assert "failed grades4" in page.text.replace("\n", "").replace("  ", "")
    assert "generate 50 %" in page.text


def test_no_run_and_an_empty_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none: no such folder; give the run_dir"):
        report.write_run_report(tmp_path / "none")
    with pytest.raises(UserError, match=r"nothing to report: neither a step in metrics\.jsonl nor a graded proof"):
        report.write_run_report(tmp_path)
    store(tmp_path, [("p", [("proof", Failed("timeout", "no answer")), ("x", Failed("timeout", "no answer"))])])
    log(tmp_path, [])
    with pytest.raises(UserError, match="nothing to report"):
        report.write_run_report(tmp_path)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / STORE_FILE).write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match=r"rollouts\.sqlite: cannot be read as a store of rollouts"):
        report.write_run_report(tmp_path / "damaged")
    assert not list(tmp_path.rglob(report.REPORT_FILE))


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = log(tmp_path / "run", [{"step": 0, "train/loss": 1.0}])
    monkeypatch.setattr(sys, "argv", ["qedmeg", "report", str(run_dir)])
    with pytest.raises(SystemExit) as ended:
        run_command(command_line.main)
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{run_dir}/report.html\n"
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    assert "python -m qedmeg report runs/grpo" in parser.format_help()

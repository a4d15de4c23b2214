"""The demo's report shows what a model wrote as text, and nothing of it runs."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from qedmeg.demo.report import write_report
from qedmeg.demo.scores import compare_runs, read_rounds, read_score
from tests.demo.scored import add_model, add_rounds

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">'


class _Attributes(HTMLParser):
    found: frozenset[str] = frozenset()

    def handle_starttag(self, tag, attrs):
        self.found |= {name for name, _ in attrs}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, points in (("base", 0), ("sft", 3), ("grpo", 5), ("notes", 5), ("rc", 5)):
        add_model(tmp_path, name, points, proof=HOSTILE)
    for name, points in (("sft", (3, 4)), ("grpo", (5, 5)), ("notes", (5, 6)), ("rc", (5, 7))):
        add_rounds(tmp_path, name, points)
    return tmp_path


def test_report_escapes_proofs_and_shows_scores(folder):
    metrics = [{"step": step, "train/loss": 5.0 - step} for step in range(3)]
    rewards = [{"step": step, "train/reward": step / 3} for step in range(3)]
    scores = {name: read_score(folder, name) for name in ("base", "sft", "grpo")}
    write_report(folder / "report.html", scores, {"sft": metrics, "grpo": rewards}, {}, [])
    page = (folder / "report.html").read_text()
    assert "<script>" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    parser = _Attributes()
    parser.feed(page)
    assert "title" in parser.found
    assert not {name for name in parser.found if name.startswith("on")} | parser.found & {"src", "shown"}
    assert "3.00" in page
    assert page.count("<svg") == 3
    assert "From sft to grpo, sampled, 2 items rose" in page
    assert "parity / conclusion (+0.29)" in page
    assert "by round" not in page


def test_report_of_the_cache_shows_scores_by_round(folder):
    metrics = [{"step": step, "train/loss": 5.0 - step} for step in range(3)]
    rewards = [{"step": step, "train/reward": step / 3} for step in range(3)]
    names = ("base", "sft", "grpo", "notes", "rc")
    scores = {name: read_score(folder, name) for name in names}
    rounds = {name: read_rounds(folder, name, 2) for name in names[1:]}
    assert [each.whole.mean for each in rounds["rc"]] == [5.0, 7.0]
    compared = [compare_runs(folder, "rc cache", "rc cache round 1")]
    trainings = {"sft": metrics, "grpo": rewards, "notes": metrics, "rc": rewards}
    write_report(folder / "report.html", scores, trainings, rounds, compared)
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 4
    assert "Score by round" in page
    assert "rc cache 7.00, rc cache round 1 5.00: +2.00 of 7 points" in page
    assert "From sft to rc" in page

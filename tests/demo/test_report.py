"""The demo's report shows what a model wrote as text, and nothing of it runs."""

from html.parser import HTMLParser

from qedmeg.demo.report import write_report

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">'


class _Attributes(HTMLParser):
    found: frozenset[str] = frozenset()

    def handle_starttag(self, tag, attrs):
        self.found |= {name for name, _ in attrs}


def _evaluation(score):
    proof = {
        "problem": "p",
        "family": "parity",
        "statement": "Prove it.",
        "proof": HOSTILE,
        "finish_reason": "stop",
        "points": 3,
        "of": 7,
        "items": [["conclusion", 0, 1, f'not shown "{HOSTILE}']],
    }
    return {
        "score": score,
        "greedy": score + 0.5,
        "problems": 1,
        "by_item": {"parity / conclusion": [score / 7, 0.0]},
        "proofs": [proof],
    }


def test_report_escapes_proofs_and_shows_scores(tmp_path):
    metrics = [{"step": step, "train/loss": 5.0 - step} for step in range(3)]
    rewards = [{"step": step, "train/reward": step / 3} for step in range(3)]
    evaluations = {"base": _evaluation(0.0), "sft": _evaluation(3.25), "grpo": _evaluation(5.0)}
    write_report(tmp_path / "report.html", evaluations, metrics, rewards)
    page = (tmp_path / "report.html").read_text()
    assert "<script>" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    parser = _Attributes()
    parser.feed(page)
    assert "title" in parser.found
    assert not {name for name in parser.found if name.startswith("on")} | parser.found & {"src", "shown"}
    assert "3.25" in page
    assert page.count("<svg") == 3
    assert "1 items rose: parity / conclusion (+0.25)" in page

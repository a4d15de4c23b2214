"""The demo runs each stage once, goes on where it stopped, and says in summary.json what it found."""

import json
from dataclasses import replace

import pytest

from qedmeg.demo import pipeline, stages
from qedmeg.demo.pipeline import run_demo
from qedmeg.demo.stages import Stage, StageFailedError
from tests.demo.scored import add_model, add_rounds

POINTS = {"base": 0, "sft": 3, "grpo": 4, "notes": 2, "rc": 5}
BY_ROUND = {"sft": (3, 4), "grpo": (4, 5), "notes": (2, 5), "rc": (5, 6)}


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Which stages have been run: stand-ins for all of them, the evaluations with results."""
    called: list[str] = []

    def stand_in(stage: Stage) -> Stage:
        def run(folder):
            called.append(stage.name)
            if stage.name == "to Hugging Face" and called.count(stage.name) == 1:
                raise StageFailedError("as told")
            kind, _, model = stage.name.lower().partition(": ")
            if kind == "prove":
                add_model(folder, model, POINTS[model])
            if kind == "rounds":
                add_rounds(folder, model, BY_ROUND[model])
            return {"tokens_per_second": 10.0} if stage.name == "SFT" else {}

        return replace(stage, run=run)

    for name in ("STAGES", "RC_STAGES"):
        monkeypatch.setattr(pipeline, name, tuple(map(stand_in, getattr(stages, name))))
    monkeypatch.setattr(pipeline, "rounds_of_the_cache", lambda: 2)
    return called


def test_a_demo_that_failed_goes_on_and_ends_with_a_summary(tmp_path, monkeypatch, calls, capsys):
    names = [stage.name for stage in stages.STAGES]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StageFailedError):
        run_demo(tmp_path / "demo")
    assert calls == names[: names.index("to Hugging Face") + 1]
    assert not (tmp_path / "demo" / "summary.json").exists()
    calls.clear()
    calls.append("to Hugging Face")  # it has failed once
    assert run_demo((tmp_path / "demo").relative_to(tmp_path)) == 0
    assert calls[1:] == names[names.index("to Hugging Face") :]
    rows = json.loads((tmp_path / "demo" / "summary.json").read_text())["stages"]
    assert [(row["name"], row["score"], row["greedy"], row["problems"]) for row in rows] == [
        ("base", 0.0, 1.0, 6),
        ("sft", 3.0, 4.0, 6),
        ("grpo", 4.0, 5.0, 6),
    ]
    assert all(row["seconds"] >= 0 and "rounds" not in row for row in rows)
    shown = capsys.readouterr().out
    assert "3.00" in shown
    assert "4.00" in shown
    assert str(tmp_path / "demo" / "report.html") in shown.replace("\n", "")
    before = list(calls)
    assert run_demo(tmp_path / "demo") == 0
    assert calls == before

    # and with the cache it goes on from there
    assert run_demo(tmp_path / "demo", with_cache=True) == 0
    assert calls[len(before) :] == [stage.name for stage in stages.RC_STAGES]
    rows = json.loads((tmp_path / "demo" / "summary.json").read_text())["stages"]
    assert [row["name"] for row in rows] == ["base", "sft", "grpo", "notes", "rc"]
    assert rows[-1]["rounds"] == [5.0, 6.0]
    shown = capsys.readouterr().out.replace("\n", " ")
    assert "rc cache 6.00, rc cache round 1 5.00: +1.00 of 7 points" in shown
    assert "rc cache 6.00, grpo 4.00: +2.00 of 7 points" in shown
    assert "rc cache 6.00, notes cache 5.00: +1.00 of 7 points" in shown

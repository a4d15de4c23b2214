"""The demo runs each stage once, goes on where it stopped, and says in summary.json what it found."""

import json

import pytest

from qedmeg.demo import pipeline
from qedmeg.demo.pipeline import Stage, StageFailedError, run_demo


def _evaluation(score: float) -> dict:
    return {"score": score, "greedy": score + 1.0, "problems": 108, "by_item": {}, "proofs": []}


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Which stages have been run: stand-ins for all of them, the evaluations with results."""
    called: list[str] = []

    def stand_in(name: str) -> Stage:
        def run(folder):
            called.append(name)
            if name == "to Hugging Face" and called.count(name) == 1:
                raise StageFailedError("as told")
            results = (("base", "prove: base", 0.0), ("sft", "prove: SFT", 3.0), ("grpo", "prove: GRPO", 4.5))
            for model, stage, score in results:
                if name == stage:
                    (folder / f"{model}.json").write_text(json.dumps(_evaluation(score)))
            return {"tokens_per_second": 10.0} if name == "SFT" else {}

        return Stage(name, run)

    monkeypatch.setattr(pipeline, "STAGES", tuple(stand_in(stage.name) for stage in pipeline.STAGES))
    return called


def test_a_demo_that_failed_goes_on_and_ends_with_a_summary(tmp_path, monkeypatch, calls, capsys):
    names = [stage.name for stage in pipeline.STAGES]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StageFailedError):
        run_demo(tmp_path / "demo")
    assert calls == names[: names.index("to Hugging Face") + 1]
    assert not (tmp_path / "demo" / "summary.json").exists()
    calls.clear()
    calls.append("to Hugging Face")  # it has failed once
    assert run_demo((tmp_path / "demo").relative_to(tmp_path)) == 0
    assert calls[1:] == names[names.index("to Hugging Face") :]
    stages = json.loads((tmp_path / "demo" / "summary.json").read_text())["stages"]
    assert [(stage["name"], stage["score"], stage["greedy"], stage["problems"]) for stage in stages] == [
        ("base", 0.0, 1.0, 108),
        ("sft", 3.0, 4.0, 108),
        ("grpo", 4.5, 5.5, 108),
    ]
    assert all(stage["seconds"] >= 0 for stage in stages)
    shown = capsys.readouterr().out
    assert "3.00" in shown
    assert "4.50" in shown
    assert str(tmp_path / "demo" / "report.html") in shown.replace("\n", "")
    before = list(calls)
    assert run_demo(tmp_path / "demo") == 0
    assert calls == before

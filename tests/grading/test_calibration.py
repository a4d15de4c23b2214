"""A grader beside people and under attack: numbers worked out by hand, failures shown and in no mean."""

import asyncio
import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qedmeg.data.problems import generate
from qedmeg.errors import UserError
from qedmeg.grading.attacks import KINDS, attacks
from qedmeg.grading.calibration import Agreement, Calibration, Resistance, agreement, calibrate, main, resistance
from qedmeg.grading.grade import Failed, Graded
from qedmeg.grading.grader import ProofProblem, SymbolicGrader
from qedmeg.grading.rated import GUIDELINES, RatedProof, embedded_rated, load_rated
from tests.grading.judge_server import JudgeServer, right_points

ROOT = Path(__file__).resolve().parent.parent.parent


def given(points: float) -> Graded:
    return Graded(points, 7, (), "judge")


FAILED = Failed("timeout", "no answer within 5 s")


def test_agreement_as_worked_out_by_hand() -> None:
    # Grader less people: +1, -2, 0, +0.5, +2; the failed one is left out, whatever people gave it.
    grades = [given(1), given(5), FAILED, given(7), given(2.5), given(6)]
    found = agreement("some", [0, 7, 7, 7, 2, 4], grades)
    assert (found.source, found.graded, found.failed) == ("some", 5, 1)
    assert found.equal == pytest.approx(1 / 5)
    assert found.within_one == pytest.approx(3 / 5)
    assert found.error == pytest.approx((1 + 2 + 0 + 0.5 + 2) / 5)
    assert found.bias == pytest.approx(1.5 / 5)
    # Deviations from the mean 0.3: 0.7, -2.3, -0.3, 0.2, 1.7; squares 0.49 + 5.29 + 0.09 + 0.04 + 2.89 = 8.8.
    assert found.bias_error == pytest.approx((8.8 / 4 / 5) ** 0.5)
    # Ranks of the grader: 1 3 5 2 4; of people: 1 4.5 4.5 2 3. About their mean 3, products 4 + 0 + 3 + 1 + 0 = 8,
    # squares 10 and 4 + 2.25 + 2.25 + 1 + 0 = 9.5.
    assert found.rank_correlation == pytest.approx(8 / (10 * 9.5) ** 0.5)


def test_what_cannot_be_said_is_not_said() -> None:
    assert agreement("none", [7, 0], [FAILED, FAILED]) == Agreement("none", 0, 2, *[None] * 6)
    equal = agreement("one", [7, 7], [given(7), given(6)])
    assert (equal.rank_correlation, equal.bias) == (None, -0.5)
    assert agreement("one", [7], [given(7)]).bias_error is None
    assert resistance("empty", [FAILED]) == Resistance("empty", 0, 1, None, None)


def test_an_attack_that_failed_was_not_withstood() -> None:
    found = resistance("empty", [given(0), given(0.5), FAILED, given(4)])
    assert (found.graded, found.failed) == (3, 1)
    assert found.rewarded == pytest.approx(2 / 3)
    assert found.points == pytest.approx(1.5)


def test_every_kind_of_attack_is_tried_on_every_problem() -> None:
    solved = [(ProofProblem(f"p{i}", f"Prove {i}.", "7 points."), f"Proof {i}.") for i in range(3)]
    made = attacks(solved)
    assert [attack.kind for attack in made] == list(KINDS) * 3
    foreign = [(a.problem.id, a.text) for a in made if a.kind == "another problem's proof"]
    assert foreign == [("p0", "Proof 1."), ("p1", "Proof 2."), ("p2", "Proof 0.")]
    assert "another problem's proof" not in [attack.kind for attack in attacks(solved[:1])]


def test_the_symbolic_grader_gives_full_marks_for_proofs_and_none_for_attacks() -> None:
    rated = embedded_rated(9, seed=0)
    tried = attacks([(proof.problem, proof.proof) for proof in rated])

    async def run() -> Calibration:
        grader = SymbolicGrader()
        try:
            return await calibrate(grader, rated, tried)
        finally:
            await grader.close()

    result = asyncio.run(run())
    assert [(row.graded, row.equal, row.bias) for row in result.agreement] == [(9, 1, 0)]
    rewarded = {attack.kind: attack.rewarded for attack in result.attacks}
    assert rewarded.pop("another problem's proof") < 0.3  # a sentence may fit both problems
    assert set(rewarded.values()) == {0}


# --- files ----------------------------------------------------------------------------------------------------------


def deepseek_row(name: str, proof: str, rating: object, **more: object) -> dict:
    answer = {"proof": proof, "average_automatic_rating": 1.0, "human_rating": rating}
    return {"question": f"Prove {name}.", "problem_idx": name, "model_prediction": answer} | more


def write_jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, *rows: tuple[object, ...]) -> Path:
    names = ["Grading ID", "Problem ID", "Problem", "Solution", "Grading guidelines", "Response", "Points", "Reward"]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([[*names, "Problem Source"], *rows])
    return path


def test_the_scales_of_the_competitions_become_seven_points(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "mixed.jsonl",
        deepseek_row("PB-Basic-001", "One\u2028line.", 6, solution="By x.", **{"grading guidelines": "(Partial) x"}),
        deepseek_row("Putnam2024-A1", "Two.", 8),
        deepseek_row("CMO2024-6", "Three.", 9),
    )
    first, second, third = load_rated(path)
    assert first == RatedProof(
        ProofProblem("PB-Basic-001", "Prove PB-Basic-001.", "(Partial) x", "By x."), "One\u2028line.", 6, "mixed"
    )
    assert (second.points, third.points) == (pytest.approx(8 * 0.7), pytest.approx(9 / 3))
    assert second.problem == ProofProblem("Putnam2024-A1", "Prove Putnam2024-A1.", GUIDELINES, None)


def test_gradingbench_is_read(tmp_path: Path) -> None:
    long = 'Line one,\nline "two"\u2028' + "x" * 200_000
    path = write_csv(
        tmp_path / "gradingbench.csv", ("GB-0001", "PB-1", "Prove x.", "By x.", "(Partial) x", long, 6, "Almost", "IMO")
    )
    assert load_rated(path) == [
        RatedProof(ProofProblem("PB-1", "Prove x.", "(Partial) x", "By x."), long, 6, "gradingbench")
    ]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (deepseek_row("PB-1", "P.", 8), "line 1: human_rating: 8: expected a number from 0 to 7"),
        (deepseek_row("PB-1", "P.", None), "line 1: human_rating: None: expected"),
        (deepseek_row("PB-1", "P.", "nan"), "line 1: human_rating: 'nan': expected"),
        (deepseek_row("IMO-1", "P.", 7), "line 1: problem_idx 'IMO-1': full marks are known for PB-, Putnam, CMO"),
        (deepseek_row("IMO-1", "P.", 7, full_marks=0), "line 1: full_marks: 0: expected a whole number above 0"),
        (deepseek_row("IMO-1", "P.", 7, full_marks="7"), "line 1: full_marks: '7': expected a whole number above 0"),
        (deepseek_row("IMO-1", "P.", 8, full_marks=7), "line 1: human_rating: 8: expected a number from 0 to 7"),
        ({"question": "x"}, "line 1: field 'model_prediction' is missing"),
        (deepseek_row("PB-1", 5, 7), "line 1: field 'proof' is missing or no text"),
        ("text", "line 1: field 'model_prediction' is missing"),
    ],
)
def test_a_row_that_is_not_rated_is_named(tmp_path: Path, row: object, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        load_rated(write_jsonl(tmp_path / "rows.jsonl", row))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    row = ("GB-0001", "PB-1", "Prove x.", "By x.", "", "Proof.", 9, "Correct", "IMO")
    with pytest.raises(UserError, match="GB-0001: Points: '9': expected a number from 0 to 7"):
        load_rated(write_csv(tmp_path / "bench.csv", row))
    with pytest.raises(UserError, match="GB-0001: the row ends early"):
        load_rated(write_csv(tmp_path / "bench.csv", row[:4]))
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="no column 'Grading ID'"):
        load_rated(tmp_path / "other.csv")
    for name in ("none.jsonl", "none.txt"):
        with pytest.raises(UserError, match=name):
            load_rated(tmp_path / name)


# --- the command ----------------------------------------------------------------------------------------------------


def run_here(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["calibrate.py", *map(str, arguments)])
    return main()


def test_the_command_goes_on_where_it_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"PB-{i}" for i in range(6)]
    # People gave what the scripted judge gives, but for the first, which they gave one point more or less.
    right = [right_points(f"Proof {i}.", (7,))[0] for i in range(6)]
    people = [right[0] + (1 if right[0] < 7 else -1), *right[1:]]
    data = write_jsonl(
        tmp_path / "rated.jsonl",
        *(deepseek_row(name, f"Proof {i}.", people[i]) for i, name in enumerate(names)),
    )
    refused = {"Proof 4."}
    with JudgeServer(lambda proof, nth: "400" if proof in refused else "right") as server:
        config = tmp_path / "judge.yaml"
        config.write_text(f"judges: [{{base_url: {server.url}, model: scripted, price_prompt: 1.0}}]\n")
        command = ("--config", config, "--data", data, "--attacked", 2, "--out", tmp_path / "out")
        first = subprocess.run(
            [sys.executable, "eval/calibrate.py", *map(str, command)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "140"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert first.returncode == 0, first.stderr
        result = json.loads((tmp_path / "out/calibration.json").read_text())
        (row,) = result["agreement"]
        assert (row["graded"], row["failed"], result["failures"]) == (5, 1, {"refused": 1})
        assert (row["equal"], row["error"]) == (pytest.approx(4 / 5), pytest.approx(1 / 5))
        # The empty proof is not asked about: 6 proofs and 2 times 5 attacks, of which 2 are proofs of the others.
        assert (result["cost"]["requests"], len(server.served)) == (16, 16)
        assert result["cost"]["money"] == pytest.approx(result["cost"]["prompt_tokens"] * 1e-6)
        attacked = {row["kind"]: row["graded"] for row in result["attacks"]}
        assert attacked == dict.fromkeys(KINDS, 2)
        for text in ("rated", "80%", "rank correlation", "instructions", "not graded, in no mean: 1 (refused)"):
            assert text in first.stdout, first.stdout
        assert (tmp_path / "out/calibration.svg").read_text().count("<svg") == 1
        refused.clear()
        assert run_here(monkeypatch, *command) == 0
        assert len(server.served) == 17  # the one that had failed
        assert "asked for in this run: 1 requests" in capsys.readouterr().out
        result = json.loads((tmp_path / "out/calibration.json").read_text())
        assert (result["agreement"][0]["graded"], result["agreement"][0]["equal"]) == (6, pytest.approx(5 / 6))


def test_the_command_refuses_what_makes_no_sense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_jsonl(tmp_path / "rated.jsonl", deepseek_row("PB-1", "Proof.", 7))
    with pytest.raises(UserError, match="knows the embedded problems only: give --config with a judge"):
        run_here(monkeypatch, "--data", data, "--out", tmp_path / "out")
    with pytest.raises(UserError, match="no proofs to grade"):
        run_here(monkeypatch, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_embedded_problems_need_no_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_here(monkeypatch, "--embedded", 3, "--out", tmp_path) == 0
    result = json.loads((tmp_path / "calibration.json").read_text())
    problems = generate("heldout", 3, 0)
    proofs = [text for text in result["texts"] if text["origin"] == "embedded"]
    assert [proof["problem"] for proof in proofs] == [problem.id for problem in problems]
    assert [(proof["people"], proof["grade"]["points"]) for proof in proofs] == [(7, 7)] * 3

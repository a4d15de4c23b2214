"""Every benchmark comes with its problems, ids, levels and what they are graded by; every mistake is named."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from qedmeg.data.problems import Problem, generate
from qedmeg.errors import UserError
from qedmeg.evaluation.benchmarks import SCALE, load_benchmark
from qedmeg.evaluation.problem import BenchmarkProblem
from qedmeg.grading.grader import AnswerProblem, ProofProblem
from qedmeg.grading.rubric import Rubric

SHARED = Path(__file__).parents[3] / "shared" / "data" / "imobench"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="the published benchmarks are not there")

PROOF_ROW = {
    "Problem ID": "PB-1",
    "Problem": "Prove it,\nplease.",
    "Solution": "As usual.",
    "Grading guidelines": "(Partial)\n1. Began.\n(Almost)\n1. Forgot a case.",
    "Category": "Algebra",
    "Level": "pre-IMO",
    "Short Answer": " ",
    "Source": "By hand",
}
ANSWER_ROW = {
    "Problem ID": "a-1",
    "Problem": "What is $1 + 1$?",
    "Short Answer": " $2$\n",
    "Category": "Algebra",
    "Subcategory": "Sums",
    "Source": "By hand",
}


def write(path: Path, *rows: dict[str, Any]) -> str:
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_imo_proofbench_has_its_scale_in_the_rubric(tmp_path: Path) -> None:
    (found,) = load_benchmark("imo-proofbench", write(tmp_path / "p.csv", PROOF_ROW))
    rubric = SCALE + PROOF_ROW["Grading guidelines"]
    assert found == BenchmarkProblem(
        ProofProblem("PB-1", PROOF_ROW["Problem"], rubric, "As usual."), "pre-IMO", "Algebra"
    )
    assert all(f"{points} point" in rubric for points in (7, 6, 1, 0))


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_the_kinds_of_files(tmp_path: Path, suffix: str) -> None:
    (found,) = load_benchmark("imo-answerbench", write(tmp_path / f"a.{suffix}", ANSWER_ROW))
    assert found == BenchmarkProblem(AnswerProblem("a-1", "What is $1 + 1$?", "$2$"), "", "Algebra")


@pytest.mark.parametrize("column", ["rubric", "rubrics", "grading_scheme", "marking_scheme"])
def test_proofbench_rubrics_in_words_and_in_items(tmp_path: Path, column: str) -> None:
    items = [{"name": "all", "points": 7, "description": "All of it."}]
    rows = [{"problem_id": "IMO-1", "problem": "Prove it.", column: "7 points."}]
    rows.append({"problem_id": "IMO-2", "problem": "And it.", column: items})  # type: ignore[dict-item]
    one, two = load_benchmark("proofbench", write(tmp_path / "p.jsonl", *rows))
    assert one.problem == ProofProblem("IMO-1", "Prove it.", "7 points.")
    assert isinstance(two.problem, ProofProblem)
    assert isinstance(two.problem.rubric, Rubric)


def test_any_file_of_problems(tmp_path: Path) -> None:
    (embedded,) = generate("heldout", 1, seed=3)
    rows = [
        {"problem": "Prove it.", "rubric": "7 points.", "answer": "none"},
        {"problem": "What is 3 + 3?", "answer": 6, "level": 2, "category": "sums"},
        embedded.to_json(),
    ]
    found = load_benchmark(write(tmp_path / "mixed.jsonl", *rows))
    assert found == [
        BenchmarkProblem(ProofProblem("mixed.jsonl:1", "Prove it.", "7 points."), "", ""),
        BenchmarkProblem(AnswerProblem("mixed.jsonl:2", "What is 3 + 3?", "6"), "2", "sums"),
        BenchmarkProblem(embedded, str(embedded.level), embedded.family),
    ]


def test_embedded_problems_are_held_out_ones() -> None:
    found = load_benchmark("embedded", count=20, seed=5)
    assert [one.problem for one in found] == generate("heldout", 20, seed=5)
    assert all(isinstance(one.problem, Problem) and one.category == one.problem.family for one in found)
    assert load_benchmark("embedded", count=20, seed=6) != found


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        (
            "imo-proofbench",
            None,
            r"nothing says where.*--data with proofbench_v2\.csv.*--data lm-provers/IMOProofBench",
        ),
        ("imo-answrbench", None, "neither known nor a file; did you mean 'imo-answerbench'"),
        ("imo-answerbench", [], "no rows"),
        ("imo-answerbench", [ANSWER_ROW, ANSWER_ROW], "two problems have the id 'a-1'"),
        (
            "imo-answerbench",
            [{**ANSWER_ROW, "Short Answer": None}],
            "row 1: no column named short_answer, answer, .*Sou",
        ),
        ("imo-answerbench", [{**ANSWER_ROW, "Problem": " "}], "row 1: column 'Problem' is empty"),
        ("imo-proofbench", [ANSWER_ROW], "row 1: no column named rubric, rubrics, grading_guidelines"),
        ("imo-proofbench", [{"rubric": "7"}], "row 1: no column named problem, prompt, question"),
        (
            "proofbench",
            [{"problem": "P", "rubric": [{"name": "a", "points": 6, "description": "b"}]}],
            "worth 6 points",
        ),
        ("embedded", [ANSWER_ROW], "is made here"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, name: str, rows: list[dict[str, Any]] | None, message: str) -> None:
    data = None if rows is None else write(tmp_path / "rows.jsonl", *rows)
    with pytest.raises(UserError, match=message):
        load_benchmark(name, data)


def test_mistakes_in_a_file_of_ones_own(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"row 1: no column named rubric, .*short_answer"):
        load_benchmark(write(tmp_path / "rows.jsonl", {"problem": "P"}))
    (tmp_path / "short.csv").write_text("problem,rubric\nP\n")
    with pytest.raises(UserError, match="row 1: has 1 cells, the first line 2"):
        load_benchmark(str(tmp_path / "short.csv"))


def test_a_missing_quotation_mark_does_not_give_the_answer_away(tmp_path: Path) -> None:
    table = 'Problem ID,Problem,Short Answer,Category\na,"What is\n1 + 1?\n,"$2$",Algebra\nb,"And\n","3",Algebra\n'
    (tmp_path / "a.csv").write_text(table)
    first, second = load_benchmark("imo-answerbench", str(tmp_path / "a.csv"))
    assert first == BenchmarkProblem(AnswerProblem("a", "What is\n1 + 1?", "$2$"), "", "Algebra")
    assert second.problem == AnswerProblem("b", "And\n", "3")


@needs_shared
def test_the_published_files() -> None:
    proofs = load_benchmark("imo-proofbench", str(SHARED / "proofbench_v2.csv"))
    answers = load_benchmark("imo-answerbench", str(SHARED / "answerbench_v2.csv"))
    assert (len(proofs), len(answers)) == (60, 400)
    assert Counter(one.category for one in proofs) == {
        "Algebra": 16, "Combinatorics": 16, "Number theory": 14, "Geometry": 14
    }  # fmt: skip
    assert all(isinstance(one.problem, AnswerProblem) and not one.level for one in answers)
    right = [one.problem.answer for one in answers if isinstance(one.problem, AnswerProblem)]
    assert not {*right} & {one.category for one in answers}

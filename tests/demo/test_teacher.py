"""What the demo's teacher shows: proofs of varying completeness; notes on flawed work, and proofs from notes."""

import json
import random

from qedmeg.data.problems import generate, reference_proof
from qedmeg.demo.notes import notes
from qedmeg.demo.stages import cache_prompts
from qedmeg.demo.teacher import KINDS, flawed, write_lessons, write_teacher_proofs


def test_teacher_proofs_are_incomplete_in_the_share_asked_for(tmp_path):
    problems = generate("train", 45, seed=0)
    write_teacher_proofs(tmp_path / "proofs.jsonl", problems, 900, incomplete=0.5, seed=1)
    whole = {problem.statement: reference_proof(problem) for problem in problems}
    rows = [json.loads(line) for line in (tmp_path / "proofs.jsonl").read_text().splitlines()]
    assert len(rows) == 900
    share = sum(row["proof"] == whole[row["problem"]] for row in rows) / len(rows)
    assert 0.42 < share < 0.58


def test_lessons_are_of_all_kinds_in_the_words_of_the_cache(tmp_path):
    problems = generate("train", 45, seed=0)
    write_lessons(tmp_path / "rows.jsonl", problems, 1000, cache_prompts(), seed=1)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 1000
    by_statement = {problem.statement: problem for problem in problems}
    right_work = wrong_work = 0
    for row, kind in zip(rows, KINDS * 200, strict=True):
        statement, *rest = row["problem"].split("\n")
        problem = by_statement[statement]
        if kind == "notes":
            before, work = rest
            assert before in ("Notes: ", f"Notes: {notes(problem)}")
            assert row["proof"] == notes(problem)
            right_work += work == f"Work: {reference_proof(problem)}"
            wrong_work += work != f"Work: {reference_proof(problem)}"
        else:
            assert rest == ([] if kind == "proof" else [f"Notes: {notes(problem)}"])
            assert row["proof"] == reference_proof(problem)
    assert min(right_work, wrong_work) > 100


def test_flawed_work_has_wrong_results_half_of_the_time():
    rng = random.Random(0)
    proof = "4 * 7 = 28 and 2 * 5 = 10. 28 + 10 = 38. 7 + 5 + 10 = 22. 1 + 1 = 2. 2 + 2 = 4. 3 + 3 = 6. 4 + 4 = 8."
    made = [flawed(proof, rng) for _ in range(400)]
    assert 0.35 < sum(one != proof for one in made) / len(made) < 0.55
    assert all(one.count(" = ") == proof.count(" = ") for one in made)

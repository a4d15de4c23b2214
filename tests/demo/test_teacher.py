"""What the demo's teacher shows: proofs of varying completeness, and from flawed work whole notes and proofs."""

import json
import random

from qedmeg.data.problems import generate, reference_proof
from qedmeg.demo.notes import NOTHING, computations
from qedmeg.demo.stages import cache_prompts
from qedmeg.demo.teacher import KINDS, flawed, write_teacher_rows


def test_rows_are_of_all_kinds_in_the_words_of_the_cache(tmp_path) -> None:
    problems = generate("train", 45, seed=0)
    write_teacher_rows(tmp_path / "rows.jsonl", problems, 900, 0.5, cache_prompts(), seed=1)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 900
    by_statement = {problem.statement: problem for problem in problems}
    whole = asked_alone = 0
    for row, kind in zip(rows, KINDS * 300, strict=True):
        statement, *rest = row["problem"].split("\n")
        problem = by_statement[statement]
        proof = reference_proof(problem)
        if kind == "proof":
            assert rest == []
            asked_alone += 1
            whole += row["proof"] == proof
        elif kind == "notes":
            assert rest[0].startswith("Notes: ")
            assert rest[1].startswith("Work: ")
            assert row["proof"] == (" ".join(computations(proof)) or NOTHING)
        else:
            assert rest[0].startswith("Notes: ")
            assert len(rest) == 1
            assert row["proof"] == proof
    assert 0.42 < whole / asked_alone < 0.58


def test_flawed_work_has_wrong_results_half_of_the_time() -> None:
    rng = random.Random(0)
    proof = "4 * 7 = 28 and 2 * 5 = 10. 28 + 10 = 38. 7 + 5 + 10 = 22. 1 + 1 = 2. 2 + 2 = 4. 3 + 3 = 6. 4 + 4 = 8."
    made = [flawed(proof, rng) for _ in range(400)]
    assert 0.35 < sum(one != proof for one in made) / len(made) < 0.55
    assert all(one.count(" = ") == proof.count(" = ") for one in made)

"""The embedded problems: full-mark proofs, the split, the demonstrations, and the rows they are kept as."""

import json
import random
import re

import pytest

from qedmeg.data.problems import (
    FAMILIES,
    Problem,
    demonstration,
    generate,
    make_problem,
    reference_proof,
)
from qedmeg.errors import UserError
from qedmeg.grading.symbolic import grade

TOKEN = re.compile(r"\d|\w+|[^\w\s]")


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_reference_proof_has_full_marks(family: str, level: int) -> None:
    train = generate("train", 45, 3, [family], [level])
    heldout = generate("heldout", 5, 3, [family], [level])
    for problem in train + heldout:
        graded = grade(problem, reference_proof(problem))
        assert (graded.points, graded.of) == (7, 7), (reference_proof(problem), graded)
        assert [(i.name, i.of) for i in graded.items] == [(i.name, i.points) for i in problem.rubric.items]
    assert not {p.id for p in train} & {p.id for p in heldout}


def test_there_are_at_least_eight_families_with_problems_for_a_demo() -> None:
    assert len(FAMILIES) >= 8
    heldout = generate("heldout", 25 * len(FAMILIES), 1)
    assert len({p.id for p in heldout}) == 25 * len(FAMILIES)


def test_the_split_is_by_parameters_alone() -> None:
    everything = {
        split: {p.id for seed in (1, 2) for p in generate(split, 250, seed)} for split in ("train", "heldout")
    }
    assert not everything["train"] & everything["heldout"]
    # were this to move, a model would be evaluated on what an older one was trained on
    assert {"parity.a2.b6.c10", "squares.p2.c7", "means.a1.b16.c8", "residues.m4.b7.c9"} <= {
        p.id
        for family, count in (("parity", 32), ("squares", 34), ("means", 38), ("residues", 34))
        for p in generate("heldout", count, 1, [family])
    }


def test_levels_do_not_overlap() -> None:
    for family in FAMILIES:
        ids = [{p.id for p in generate("heldout", 25, 1, [family], [level])} for level in (1, 2, 3)]
        assert len(set.union(*ids)) == 75


def test_generate_is_balanced_and_repeatable() -> None:
    problems = generate("train", 100, 7, ["parity", "powers", "means"], [1, 2])
    assert problems == generate("train", 100, 7, ["parity", "powers", "means"], [1, 2])
    assert problems != generate("train", 100, 8, ["parity", "powers", "means"], [1, 2])
    counts = [sum((p.family, p.level) == kind for p in problems) for kind in {(p.family, p.level) for p in problems}]
    assert sum(counts) == 100
    assert len(counts) == 6
    assert set(counts) <= {16, 17}


def test_a_small_family_leaves_its_part_to_the_others() -> None:
    problems = generate("train", 560, 1, ["powers", "means", "parity"])
    counts = {family: sum(p.family == family for p in problems) for family in ("powers", "means", "parity")}
    assert counts == {"powers": 173, "parity": 203, "means": 184}
    assert len({p.id for p in problems}) == 560


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("trian", 3, 1), "split 'trian'"),
        (("train", 3, 1, ["pairty"]), "did you mean 'parity'"),
        (("train", 3, 1, None, [4]), "level 4"),
        (("heldout", 10_000, 1), "count 10000"),
    ],
)
def test_generate_names_what_is_wrong(arguments: tuple[object, ...], says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        generate(*arguments)  # type: ignore[arg-type]


def test_a_problem_survives_json() -> None:
    for problem in generate("train", 18, 5, levels=[1, 3]):
        row = json.loads(json.dumps(problem.to_json() | {"proof": "another column"}))
        assert Problem.from_json(row) == problem


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"parameters": {"a": 4, "b": 7, "c": 10**9}}, "parameters"),
        ({"parameters": {"a": 4, "b": 7}}, "parameters"),
        ({"parameters": {"a": "four"}}, "parameters.a"),
        ({"family": "__import__"}, "family '__import__'"),
        ({"level": 9}, "level 9"),
        ({"statement": "Prove nothing."}, "field 'statement'"),
        ({"id": "divisibility.a4.b7.c42"}, "field 'id'"),
        ({"rubric": {"items": [{"name": "all", "points": 7, "text": "Anything."}]}}, "field 'rubric'"),
        ({"rubric": {"items": [{"name": "all", "points": 8, "text": "Anything."}]}}, "8 points together, not 7"),
    ],
)
def test_a_changed_row_is_refused(change: dict[str, object], says: str) -> None:
    row = make_problem("divisibility", 1, {"a": 4, "b": 7, "c": 41}).to_json()
    with pytest.raises(UserError, match=re.escape(says)):
        Problem.from_json(row | change)


def test_the_text_is_plain_and_short() -> None:
    for level, most in ((1, 160), (2, 185), (3, 200)):
        for problem in generate("train", 180, 11, levels=[level]):
            text = f"{problem.statement} {reference_proof(problem)}"
            assert text.isascii()
            assert text == " ".join(text.split())
            assert len(TOKEN.findall(text)) <= most, text
            if level == 1:
                assert max(map(int, re.findall(r"\d+", text))) <= 999


def test_demonstrations_are_complete_or_lack_sentences() -> None:
    rng = random.Random(1)
    for problem in generate("train", 18, 13):
        sentences = FAMILIES[problem.family].sentences(**problem.parameters)
        assert demonstration(problem, rng) == reference_proof(problem)
        proof = demonstration(problem, rng, incomplete=1.0, drop=0.3)
        assert 0 < len(proof) < len(reference_proof(problem))
        assert all(sentence in sentences for sentence in re.split(r"(?<=\.) (?=[A-Z\d(])", proof))
        assert 0 <= grade(problem, proof).points < 7


def test_the_share_of_incomplete_demonstrations_is_the_one_asked_for() -> None:
    problem = generate("train", 1, 1)[0]
    rng = random.Random(2)
    whole = sum(demonstration(problem, rng, incomplete=0.3) == reference_proof(problem) for _ in range(1000))
    assert 650 < whole < 750
    assert demonstration(problem, random.Random(5), incomplete=1.0) == demonstration(
        problem, random.Random(5), incomplete=1.0
    )

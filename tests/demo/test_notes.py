"""Notes work out what a proof computes: every line of them is right, and says what the proof needs."""

import random
import re

import pytest

from qedmeg.data.problems import FAMILIES, generate, reference_proof
from qedmeg.demo.notes import NOTHING, computations, notes


@pytest.mark.parametrize(
    ("proof", "worked"),
    [
        ("1 + 9 + 10 = 20.", ["10 + 10: 0 + 0 = 0, 1 + 1 = 2, 20."]),
        ("36 + 17 = 53.", ["36 + 17: 6 + 7 = 13, 3 + 1 + 1 = 5, 53."]),
        ("95 + 8 = 103.", ["95 + 8: 5 + 8 = 13, 9 + 0 + 1 = 10, 103."]),
        ("45 - 17 = 28 = 2 * 14.", ["45 - 17: 15 - 7 = 8, 4 - 1 - 1 = 2, 28."]),
        ("100 - 36 = 64.", ["100 - 36: 10 - 6 = 4, 10 - 3 - 1 = 6, 1 - 0 - 1 = 0, 64."]),
        ("2 * 9 * 6 = 108.", ["6 * 18: 6 * 8 = 48, 6 * 1 = 6, 108."]),
        ("79 = 9 * 8 + 7.", ["9 * 8 = 72, 79 - 72: 9 - 2 = 7, 7 - 7 = 0, 7."]),
        ("7(3n + 13) = 21n + 91.", ["7 * 13: 7 * 3 = 21, 7 * 1 = 7, 91."]),
        (
            "So k(4k + 42) + 2(4k + 23) = 4k^2 + 50k + 46.",
            ["42 + 8: 2 + 8 = 10, 4 + 0 + 1 = 5, 50.", "2 * 23: 2 * 3 = 6, 2 * 2 = 4, 46."],
        ),
        ("The next term is 4(k + 1) + 19 = 4k + 23.", []),  # an expression, not a sum of numbers
        ("x^2 - 10 + 3 = y.", []),
    ],
)
def test_a_computation_is_worked_out_digit_by_digit(proof: str, worked: list[str]) -> None:
    assert computations(proof) == worked


@pytest.mark.parametrize("family", FAMILIES)
def test_all_notes_are_right(family: str) -> None:
    for problem in generate("train", 60, seed=1, families=[family]):
        for line in computations(reference_proof(problem)):
            for left, right in re.findall(r"(\d+(?: [+*-] \d+)+) = (\d+)", line):
                assert eval(left) == int(right), line
            head, *_, result = re.split(r": |, ", line.rstrip("."))
            if ":" in line and not line.startswith(tuple(f"{n} * {m} =" for n in range(20) for m in range(20))):
                assert eval(head) == int(result), line


def test_incomplete_notes_lack_computations() -> None:
    rng = random.Random(0)
    problems = generate("train", 45, seed=0)
    whole = [notes(problem, rng) for problem in problems for _ in range(4)]
    some = [notes(problem, rng, incomplete=0.5, drop=0.5) for problem in problems for _ in range(4)]
    assert NOTHING in whole  # of small numbers
    lacking = sum(one != other for one, other in zip(some, whole, strict=True)) / len(whole)
    assert 0.25 < lacking < 0.55
    assert all(set(one.split()) <= {*other.split(), *NOTHING.split()} for one, other in zip(some, whole, strict=True))

"""Notes work out what a proof computes: every line of them is right, and says what the proof needs."""

import re

import pytest

from qedmeg.data.problems import FAMILIES, generate, reference_proof
from qedmeg.demo.notes import NOTHING, computations, notes


@pytest.mark.parametrize(
    ("proof", "worked"),
    [
        ("1 + 9 + 10 = 20.", ["10 + 10: 0 + 0 = 0, 1 + 1 = 2. 1 + 9 + 10 = 20."]),
        ("36 + 17 = 53.", ["36 + 17: 6 + 7 = 13, 3 + 1 + 1 = 5. 36 + 17 = 53."]),
        ("So 95 + 8 = 103.", ["95 + 8: 5 + 8 = 13, 9 + 0 + 1 = 10. 95 + 8 = 103."]),
        ("45 - 17 = 28 = 2 * 14.", ["45 - 17: 15 - 7 = 8, 4 - 1 - 1 = 2. 45 - 17 = 28."]),
        ("100 - 36 = 64.", ["100 - 36: 10 - 6 = 4, 10 - 3 - 1 = 6, 1 - 0 - 1 = 0. 100 - 36 = 64."]),
        ("2 * 23 = 46 = 3 + 43.", ["23 + 23: 3 + 3 = 6, 2 + 2 = 4. 2 * 23 = 46."]),
        ("79 = 9 * 8 + 7.", ["79 - 72: 9 - 2 = 7, 7 - 7 = 0. 79 = 9 * 8 + 7."]),
        ("7(3n + 13) = 21n + 91.", ["7 * 13: 7 * 3 = 21, 7 * 1 + 2 = 9. 7(3n + 13) = 21n + 91."]),
        ("3 + 4 = 7. 9 = 4 * 2 + 1. 3(2n + 5) = 6n + 15.", []),  # a table of digits is enough
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
            assert line.rstrip(".").split(". ")[-1] in reference_proof(problem)


def test_a_proof_of_small_numbers_has_nothing_to_work_out() -> None:
    made = {notes(problem) for problem in generate("train", 45, seed=0, families=["differences"])}
    assert NOTHING in made
    assert len(made) > 1

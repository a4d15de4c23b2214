"""Notes work out what a proof computes: every line of them is right, and says what the proof needs."""

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
        ("2 * 23 = 46.", ["23 + 23: 3 + 3 = 6, 2 + 2 = 4, 46."]),
        ("79 = 9 * 8 + 7.", ["79 - 72: 9 - 2 = 7, 7 - 7 = 0, 7."]),
        (
            "So k(4k + 42) + 2(4k + 23) = 4k^2 + 50k + 46.",
            ["42 + 8: 2 + 8 = 10, 4 + 0 + 1 = 5, 50."],
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
            for left, right in re.findall(r"(\d+(?: [+-] \d+)+) = (\d+)", line):
                assert eval(left) == int(right), line
            head, *_, result = re.split(r": |, ", line.rstrip("."))
            assert eval(head) == int(result), line


def test_a_proof_of_small_numbers_has_nothing_to_work_out() -> None:
    made = {notes(problem) for problem in generate("train", 45, seed=0, families=["differences"])}
    assert NOTHING in made
    assert len(made) > 1

"""What a family of problems is made of, and how its formulas are written."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from qedmeg.grading.claims import Subject
from qedmeg.grading.steps import Step


@dataclass(frozen=True)
class Solution:
    """What a proof is graded against: the `steps`, and the words that stand for formulas."""

    steps: tuple[Step, ...]
    subjects: tuple[Subject, ...] = ()


@dataclass(frozen=True)
class Family:
    """One kind of theorem. The functions take a problem's parameters as keywords.

    `letters` are those of the canonical proof, the problem's own first; `solution` is told which letters a proof uses
    in their place. `parameters` lists what a level has; what an earlier level has already is left out.
    `sentences` is the full-mark proof. `positive`: the problem's letter stands for positive numbers.
    """

    name: str
    letters: tuple[str, ...]
    parameters: Callable[[int], Iterable[Mapping[str, int]]]
    statement: Callable[..., str]
    sentences: Callable[..., Sequence[str]]
    solution: Callable[..., Solution]
    positive: bool = False


LEVELS = (1, 2, 3)  # small numbers; larger ones; and larger still, with negative ones where the family has them


def polynomial(letter: str, *coefficients: int) -> str:
    """`polynomial("n", 3, -1, 4)` is "3n^2 - n + 4"; vanishing terms are left out."""
    degree = len(coefficients) - 1
    monomials = []
    for power, coefficient in zip(range(degree, -1, -1), coefficients, strict=True):
        if coefficient:
            name = "" if power == 0 else letter if power == 1 else f"{letter}^{power}"
            size = "" if abs(coefficient) == 1 and name else str(abs(coefficient))
            monomials.append((coefficient < 0, size + name))
    return signed(monomials)


def signed(parts: Sequence[tuple[bool, str]]) -> str:
    """The sum of the parts, each with whether it is subtracted: "3 - 5 + 4"."""
    text = " ".join(f"{'-' if minus else '+'} {part}" for minus, part in parts)
    return text[2:] if text.startswith("+ ") else "-" + text[2:] if text else "0"


def added(*numbers: int) -> str:
    """`added(3, -5, 4)` is "3 - 5 + 4"."""
    return signed([(number < 0, str(abs(number))) for number in numbers])

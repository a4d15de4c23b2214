"""Notes on a proof: its sums and differences worked out digit by digit.

What a summary is to the demo's model: a small one gets sums of two digits wrong when it writes them down at once, and
right when it adds digit by digit. A proof has no room for that, and the notes between two rounds have.
"""

import re
from collections.abc import Iterator

from qedmeg.data.problems import Problem, reference_proof

NOTHING = "All is clear."
"""Notes on a proof whose numbers are all small."""
_CHAIN = re.compile(r"(?<![\w^)])(?<![+*/-] )(\d+(?: [+-] \d+)+) = ")
_DOUBLED = re.compile(r"\b2 \* (\d+) = ")
_QUOTIENT = re.compile(r"\b(\d+) = (\d+) \* (\d+) \+ \d+")
_INDUCTION = re.compile(r"k\(\d*k \+ (\d+)\) \+ 2\((\d*)k \+ \d+\) = ")


def notes(problem: Problem) -> str:
    """The notes that the teacher has on the problem."""
    return " ".join(computations(reference_proof(problem))) or NOTHING


def computations(proof: str) -> list[str]:
    """What in a correct proof takes more than a table of digits, each worked out, in the proof's order."""
    found: list[tuple[int, str]] = []
    for match in _CHAIN.finditer(proof):
        found += [(match.start(), line) for line in _chain(match[1])]
    for match in _DOUBLED.finditer(proof):
        found += [(match.start(), line) for line in _sum(int(match[1]), int(match[1]))]
    for match in _QUOTIENT.finditer(proof):
        whole, multiple = int(match[1]), int(match[2]) * int(match[3])
        if whole >= 10 and multiple:
            found.append((match.start(), _difference(whole, multiple)))
    for match in _INDUCTION.finditer(proof):
        found += [(match.start(), line) for line in _sum(int(match[1]), 2 * int(match[2] or 1))]
    return list(dict.fromkeys(line for _, line in sorted(found, key=lambda one: one[0])))


def _chain(text: str) -> Iterator[str]:
    """The steps of `a + b - c`, from the left."""
    first, *rest = re.split(r" ([+-]) ", text)
    value = int(first)
    for operation, number in zip(rest[::2], rest[1::2], strict=True):
        if operation == "+":
            yield from _sum(value, int(number))
            value += int(number)
        else:
            if value >= 10:
                yield _difference(value, int(number))
            value -= int(number)


def _sum(a: int, b: int) -> Iterator[str]:
    """`36 + 17: 6 + 7 = 13, 3 + 1 + 1 = 5, 53.`"""
    if a < 10 and b < 10:
        return
    steps, carry = [], 0
    for x, y in _columns(a, b):
        total = x + y + carry
        steps.append(f"{x} + {y}{' + 1' if carry else ''} = {total}")
        carry = total // 10
    yield f"{a} + {b}: {', '.join(steps)}, {a + b}."


def _difference(a: int, b: int) -> str:
    """`45 - 17: 15 - 7 = 8, 4 - 1 - 1 = 2, 28.`"""
    steps, borrowed = [], 0
    for x, y in _columns(a, b):
        digit = x - y - borrowed
        steps.append(f"{x + 10 if digit < 0 else x} - {y}{' - 1' if borrowed else ''} = {digit % 10}")
        borrowed = int(digit < 0)
    return f"{a} - {b}: {', '.join(steps)}, {a - b}."


def _columns(a: int, b: int) -> Iterator[tuple[int, int]]:
    """The digits of both from the right, as long as either has one."""
    while a or b:
        yield a % 10, b % 10
        a, b = a // 10, b // 10

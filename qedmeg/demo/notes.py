"""Notes on a proof: its claims about numbers, each worked out digit by digit before it is made.

What a summary is to the demo's model: a small one gets sums of two digits wrong when it writes them down at once, and
right when it adds digit by digit. A proof has no room for that, and the notes between two rounds have. The next proof
copies the claims.
"""

import re
from collections.abc import Iterator

from qedmeg.data.problems import Problem, reference_proof

NOTHING = "All is clear."
"""Notes on a proof whose numbers are all small."""
_CLAIMS = re.compile(
    r"(?<![\w^)])(?<![+*/-] )(?P<chain>\d+(?: [+-] \d+)+) = \d+"
    r"|(?<!\* )\b2 \* (?P<doubled>\d+) = \d+"
    r"|\b(?P<whole>\d+) = (?P<by>\d+) \* (?P<times>\d+) \+ \d+"
    r"|k\(\d*k \+ (?P<linear>\d+)\) \+ 2\((?P<step>\d*)k \+ \d+\) = \d*k\^2 \+ \d+k \+ \d+"
    r"|\b(?P<factor>\d)\(\d*[a-z] \+ (?P<constant>\d+)\) = \d+[a-z] \+ \d+"
)
"""What takes more than a table of digits: sums and differences, doubles, divisions with remainder, products."""


def notes(problem: Problem) -> str:
    """The notes that the teacher has on the problem."""
    return " ".join(computations(reference_proof(problem))) or NOTHING


def computations(proof: str) -> list[str]:
    """The claims of a correct proof that take working out: the work, then the claim as the proof has it."""
    found = []
    for claim in _CLAIMS.finditer(proof):
        if work := list(_work(claim)):
            found.append(f"{' '.join(work)} {claim[0]}.")
    return list(dict.fromkeys(found))


def _work(claim: re.Match[str]) -> Iterator[str]:
    if claim["chain"]:
        first, *rest = re.split(r" ([+-]) ", claim["chain"])
        value = int(first)
        for operation, number in zip(rest[::2], rest[1::2], strict=True):
            if operation == "+":
                yield from _sum(value, int(number))
                value += int(number)
            else:
                yield from _difference(value, int(number))
                value -= int(number)
    elif claim["doubled"]:
        yield from _sum(int(claim["doubled"]), int(claim["doubled"]))
    elif claim["whole"]:
        yield from _difference(int(claim["whole"]), int(claim["by"]) * int(claim["times"]))
    elif claim["linear"]:
        yield from _sum(int(claim["linear"]), 2 * int(claim["step"] or 1))
    else:
        yield from _product(int(claim["factor"]), int(claim["constant"]))


def _sum(a: int, b: int) -> Iterator[str]:
    """`36 + 17: 6 + 7 = 13, 3 + 1 + 1 = 5.`"""
    if a < 10 and b < 10:
        return
    steps, carry = [], 0
    for x, y in _columns(a, b):
        total = x + y + carry
        steps.append(f"{x} + {y}{' + 1' if carry else ''} = {total}")
        carry = total // 10
    yield f"{a} + {b}: {', '.join(steps)}."


def _difference(a: int, b: int) -> Iterator[str]:
    """`45 - 17: 15 - 7 = 8, 4 - 1 - 1 = 2.`"""
    if a < 10 or not b:
        return
    steps, borrowed = [], 0
    for x, y in _columns(a, b):
        digit = x - y - borrowed
        steps.append(f"{x + 10 if digit < 0 else x} - {y}{' - 1' if borrowed else ''} = {digit % 10}")
        borrowed = int(digit < 0)
    yield f"{a} - {b}: {', '.join(steps)}."


def _product(digit: int, b: int) -> Iterator[str]:
    """`7 * 13: 7 * 3 = 21, 7 * 1 + 2 = 9.`"""
    if b < 10:
        return
    steps, carry = [], 0
    for _, y in _columns(0, b):
        total = digit * y + carry
        steps.append(f"{digit} * {y}{f' + {carry}' if carry else ''} = {total}")
        carry = total // 10
    yield f"{digit} * {b}: {', '.join(steps)}."


def _columns(a: int, b: int) -> Iterator[tuple[int, int]]:
    """The digits of both from the right, as long as either has one."""
    while a or b:
        yield a % 10, b % 10
        a, b = a // 10, b // 10

"""Two linear expressions have no common divisor but 1: by a combination of them that is 1."""

import re
from collections.abc import Iterator

from qedmeg.data.problems.family import Family, Solution, polynomial
from qedmeg.grading.forms import multiple_of, splits_off
from qedmeg.grading.reading import Sentence
from qedmeg.grading.steps import identity_step, word_step
from qedmeg.grading.wording import firmly, is_named, number, says_what


def parameters(level: int) -> Iterator[dict[str, int]]:
    """a n + b and c n + d with c (a n + b) and a (c n + d) one apart."""
    first, last = {1: (9, 20), 2: (12, 50), 3: (19, 80)}[level]
    for a in range(2, first + 1):
        for c in range(2, first + 1):
            for b in range(1, last + 1):
                for d in range(1, last + 1):
                    if a != c and abs(c * b - a * d) == 1:
                        yield {"a": a, "b": b, "c": c, "d": d}


def statement(a: int, b: int, c: int, d: int) -> str:
    return f"Prove that gcd({polynomial('n', a, b)}, {polynomial('n', c, d)}) = 1 for every integer n."


def sentences(a: int, b: int, c: int, d: int) -> list[str]:
    p, q = polynomial("n", a, b), polynomial("n", c, d)
    first, second = polynomial("n", a * c, b * c), polynomial("n", a * c, a * d)
    larger, smaller = (first, second) if b * c > a * d else (second, first)
    return [
        f"Let d divide both {p} and {q}.",
        f"{c}({p}) = {first}.",
        f"{a}({q}) = {second}.",
        f"So d divides {first} and {second}.",
        f"({larger}) - ({smaller}) = 1.",
        "So d divides 1.",
        "So the gcd is 1.",
    ]


def solution(n: str, letter: str, *, a: int, b: int, c: int, d: int) -> Solution:
    p, q = polynomial(n, a, b), polynomial(n, c, d)
    first, second = polynomial(n, a * c, b * c), polynomial(n, a * c, a * d)
    larger = first if b * c > a * d else second

    def named(sentence: Sentence) -> set[str] | None:
        """Which of the expressions the sentence names; None when it names another one."""
        names: set[str] = set()
        for mention in sentence.formulas:
            which = [text for text in (letter, p, q, first, second, "1") if is_named(mention, text)]
            if not which:
                return None
            names |= {*which}
        return names

    def introduces(sentence: Sentence) -> bool | None:
        if not re.match(r"(?:let|suppose|assume|take|say)\b.*\bdivi", sentence.skeleton):
            return None
        names = named(sentence)
        return False if names is None else names >= {letter, p, q} or None

    def divides(sentence: Sentence) -> bool | None:
        if not re.match(r"# divides\b", sentence.skeleton):
            return None
        names = named(sentence)
        return False if names is None else firmly(sentence) if names >= {letter, first, second} else None

    def divides_one(sentence: Sentence) -> bool | None:
        one = number(sentence.argument(r"^# divides (?:\w+ ){0,3}(#)$"))
        if any(says_what(mention, letter) for mention in sentence.formulas):  # "so d = 1"
            return firmly(sentence) if named(sentence) == {"1"} else False
        return None if one is None else firmly(sentence) if named(sentence) == {letter, "1"} else False

    def concludes(sentence: Sentence) -> bool | None:
        if re.search(r"\b(?:coprime|relatively prime)\b", sentence.skeleton):
            return firmly(sentence)
        gcd = number(sentence.argument(r"gcd (?:is |of # and # is )?(#)$"))
        return None if gcd is None else firmly(sentence) if gcd == 1 else False

    return Solution(
        (
            word_step("common divisor", 1, "Takes a common divisor of the two.", introduces),
            identity_step(
                "first multiple", 1, "Multiplies the first by the coefficient of the second.", first, multiple_of(c)
            ),
            identity_step(
                "second multiple", 1, "Multiplies the second by the coefficient of the first.", second, multiple_of(a)
            ),
            word_step("divides both", 1, "Notes what it divides then.", divides),
            identity_step("difference", 1, "Subtracts the two multiples.", "1", splits_off(larger)),
            word_step("divides one", 1, "Notes what it divides in the end.", divides_one, ("difference",)),
            word_step("conclusion", 1, "Concludes what the greatest common divisor is.", concludes, ("divides one",)),
        )
    )


COPRIME = Family("coprime", ("n", "d"), parameters, statement, sentences, solution)

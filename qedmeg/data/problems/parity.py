"""A quadratic is even for every integer: by the two cases n = 2k and n = 2k + 1."""

from collections.abc import Iterator

from qedmeg.data.problems.family import Family, Solution, added, polynomial
from qedmeg.grading.claims import Subject
from qedmeg.grading.forms import expanded, multiple_of
from qedmeg.grading.reading import Sentence
from qedmeg.grading.steps import identity_step, number_step, word_step
from qedmeg.grading.wording import firmly, is_named, names_case


def parameters(level: int) -> Iterator[dict[str, int]]:
    """a n^2 + b n + c with a + b and c even."""
    largest, step = {1: (10, 1), 2: (20, 1), 3: (20, -1)}[level]
    for a in range(1, largest + 1):
        for b in range(1, largest + 1):
            for c in range(2, largest + 1, 2):
                if (a + b) % 2 == 0:
                    yield {"a": a, "b": step * b, "c": c}


def statement(a: int, b: int, c: int) -> str:
    return f"Prove that {polynomial('n', a, b, c)} is even for every integer n."


def sentences(a: int, b: int, c: int) -> list[str]:
    s, t = 4 * a + 2 * b, a + b + c
    even, half_even = polynomial("k", 4 * a, 2 * b, c), polynomial("k", 2 * a, b, c // 2)
    odd, half_odd = polynomial("k", 4 * a, s, t), polynomial("k", 2 * a, s // 2, t // 2)
    return [
        f"4 * {a} = {4 * a} and 2 * {abs(b)} = {2 * abs(b)}.",
        f"For n = 2k the value is {even} = 2({half_even}).",
        f"{added(4 * a, 2 * b)} = {s}.",
        f"{added(a, b, c)} = {t}.",
        f"For n = 2k + 1 the value is {odd} = 2({half_odd}).",
        "So it is even in both cases.",
    ]


def solution(n: str, k: str, *, a: int, b: int, c: int) -> Solution:
    f = polynomial(n, a, b, c)
    even = polynomial(k, 4 * a, 2 * b, c)
    odd = polynomial(k, 4 * a, 4 * a + 2 * b, a + b + c)

    def says(sentence: Sentence) -> bool | None:
        what = sentence.argument(r"(#) (?:is|are) (?:\w+ ){0,2}(?:even|odd)\b")
        if names_case(sentence, n) or (what is not None and not is_named(what, f)):
            return None
        words = set(sentence.skeleton.split())
        return False if "odd" in words else firmly(sentence) if "even" in words else None

    return Solution(
        (
            number_step(
                "coefficients",
                1,
                "Computes four times the first coefficient and twice the second.",
                f"4 * {a}",
                f"2 * {abs(b)}",
            ),
            identity_step(
                "even case",
                1,
                "Treats n = 2k: the value there, expanded, and written as twice an integer.",
                even,
                multiple_of(2),
                case=f"2{k}",
            ),
            number_step(
                "linear term", 1, "Adds the two contributions to the linear term of the odd case.", added(4 * a, 2 * b)
            ),
            number_step(
                "constant term", 1, "Adds the three contributions to the constant of the odd case.", added(a, b, c)
            ),
            identity_step(
                "odd case",
                1,
                "Treats n = 2k + 1: the value there, expanded.",
                odd,
                expanded,
                case=f"2{k} + 1",
                products=False,
            ),
            identity_step(
                "odd case halved",
                1,
                "Writes the value for n = 2k + 1 as twice an integer.",
                odd,
                multiple_of(2),
                case=f"2{k} + 1",
                products=True,
            ),
            word_step(
                "conclusion", 1, "Concludes for every n from both cases.", says, ("even case", "odd case halved")
            ),
        ),
        (Subject("value|it|expression|number", f),),
    )


PARITY = Family("parity", ("n", "k"), parameters, statement, sentences, solution)

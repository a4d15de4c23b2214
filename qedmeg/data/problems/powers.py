"""The remainder of a fourth power: by squaring remainders twice."""

from collections.abc import Iterator

from qedmeg.data.problems.family import Family, Solution
from qedmeg.grading.reading import Sentence
from qedmeg.grading.steps import congruence_step, number_step, word_step
from qedmeg.grading.wording import firmly, is_named, number


def parameters(level: int) -> Iterator[dict[str, int]]:
    """a^4 modulo m; remainders that would repeat a step are left out."""
    a_most, m_most = {1: (80, 11), 2: (300, 13), 3: (400, 19)}[level]
    for m in range(5, m_most + 1):
        for a in range(m + 1, a_most + 1):
            r, s, t = a % m, a * a % m, a**4 % m
            divisions = {division(x, m) for x in (a, r * r, s * s)}
            if r > 1 and s > 1 and r != s and t and len(divisions) == 3:
                yield {"a": a, "m": m}


def division(number: int, m: int) -> str:
    """`division(17, 7)` is "7 * 2 + 3"."""
    return f"{m} * {number // m} + {number % m}"


def statement(a: int, m: int) -> str:
    return f"Prove that {a}^4 leaves remainder {a**4 % m} when divided by {m}."


def sentences(a: int, m: int) -> list[str]:
    r, s, t = a % m, a * a % m, a**4 % m
    return [
        f"{a} = {division(a, m)}.",
        f"So {a} = {r} mod {m}.",
        f"{r}^2 = {r * r} = {division(r * r, m)}.",
        f"So {a}^2 = {s} mod {m}.",
        f"{s}^2 = {s * s} = {division(s * s, m)}.",
        f"So {a}^4 = {t} mod {m}.",
        f"So the remainder is {t}.",
    ]


def solution(*, a: int, m: int) -> Solution:
    r, s, t = a % m, a * a % m, a**4 % m

    def says(sentence: Sentence) -> bool | None:
        what = sentence.argument(r"(#) leaves remainder")
        if what is not None and not is_named(what, f"{a}^4"):
            return None
        remainder = sentence.argument(r"remainder (?:of # )?(?:\w+ )?(#)(?:$| when divided)")
        if remainder is None:
            return None
        return firmly(sentence) if number(remainder) == t else False

    return Solution(
        (
            number_step("division", 1, "Divides the base with remainder.", division(a, m)),
            congruence_step("base", 1, "Reduces the base.", m, str(a)),
            number_step("first square", 1, "Squares the remainder and divides.", f"{r}^2", division(r * r, m)),
            congruence_step("second power", 1, "Reduces the second power.", m, f"{a}^2"),
            number_step("second square", 1, "Squares the new remainder and divides.", f"{s}^2", division(s * s, m)),
            congruence_step("fourth power", 1, "Reduces the fourth power.", m, f"{a}^4"),
            word_step("conclusion", 1, "Concludes from it.", says, ("second square", "fourth power")),
        )
    )


POWERS = Family("powers", (), parameters, statement, sentences, solution)

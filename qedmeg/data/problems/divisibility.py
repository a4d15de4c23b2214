"""Divisibility by factoring: (an + b)^2 - c by a, and a difference of two squares by that of their bases."""

from collections.abc import Iterator

from qedmeg.data.problems.family import Family, Solution, polynomial
from qedmeg.grading.claims import Subject
from qedmeg.grading.forms import expanded, multiple_of, splits_off
from qedmeg.grading.steps import identity_step, number_step, word_step
from qedmeg.grading.wording import divisible

VALUE = "value|it|expression|number"


def square_parameters(level: int) -> Iterator[dict[str, int]]:
    """(a n + b)^2 - c with c = b^2 - a t; a is neither b nor t, so that no step is said twice."""
    a_most, b_most, t_most = {1: (9, 10, 9), 2: (15, 15, 15), 3: (19, 19, 15)}[level]
    for a in range(2, a_most + 1):
        for b in range(1, b_most + 1):
            for t in range(1, t_most + 1):
                if a not in (b, t) and b * b > a * t:
                    yield {"a": a, "b": b, "c": b * b - a * t}


def square_statement(a: int, b: int, c: int) -> str:
    return f"Prove that ({polynomial('n', a, b)})^2 - {c} is divisible by {a} for every integer n."


def square_sentences(a: int, b: int, c: int) -> list[str]:
    rest = b * b - c
    value, factor = polynomial("n", a * a, 2 * a * b, rest), polynomial("n", a, 2 * b, rest // a)
    return [
        f"{a}^2 = {a * a}.",
        f"2 * {a} * {b} = {2 * a * b}.",
        f"{b}^2 = {b * b}.",
        f"So ({polynomial('n', a, b)})^2 = {polynomial('n', a * a, 2 * a * b, b * b)}.",
        f"{b * b} - {c} = {rest} = {a} * {rest // a}.",
        f"So the value is {value} = {a}({factor}).",
        f"So it is divisible by {a}.",
    ]


def square_solution(n: str, *, a: int, b: int, c: int) -> Solution:
    f = f"({polynomial(n, a, b)})^2 - {c}"
    steps = (
        number_step("first coefficient", 1, "Squares the coefficient of the letter.", f"{a}^2"),
        number_step("middle coefficient", 1, "Computes the middle coefficient of the square.", f"2 * {a} * {b}"),
        number_step("last coefficient", 1, "Squares the constant.", f"{b}^2"),
        identity_step("expansion", 1, "Expands the square.", f"({polynomial(n, a, b)})^2", expanded),
        number_step("constant term", 1, "Computes the constant that is left.", f"{b * b} - {c}"),
        identity_step("factoring", 1, f"Writes the value as {a} times an integer.", f, multiple_of(a)),
        word_step("conclusion", 1, "Concludes from the factor.", divisible(a, f, n), ("factoring",)),
    )
    return Solution(steps, (Subject(VALUE, f),))


def difference_parameters(level: int) -> Iterator[dict[str, int]]:
    """(a n + b)^2 - (a n + c)^2 with b - c at least 2."""
    a_most, b_most = {1: (9, 12), 2: (12, 18), 3: (19, 30)}[level]
    for a in range(2, a_most + 1):
        for b in range(3, b_most + 1):
            for c in range(1, b - 1):
                yield {"a": a, "b": b, "c": c}


def difference_statement(a: int, b: int, c: int) -> str:
    first, second = polynomial("n", a, b), polynomial("n", a, c)
    return f"Prove that ({first})^2 - ({second})^2 is divisible by {b - c} for every integer n."


def difference_sentences(a: int, b: int, c: int) -> list[str]:
    first, second, total = polynomial("n", a, b), polynomial("n", a, c), polynomial("n", 2 * a, b + c)
    return [
        f"{b} - {c} = {b - c}.",
        f"{b} + {c} = {b + c}.",
        f"So ({first}) - ({second}) = {b - c}.",
        f"So ({first}) + ({second}) = {total}.",
        f"So the value is {b - c}({total}).",
        f"So it is divisible by {b - c}.",
    ]


def difference_solution(n: str, *, a: int, b: int, c: int) -> Solution:
    first, second = polynomial(n, a, b), polynomial(n, a, c)
    f, d = f"({first})^2 - ({second})^2", b - c
    steps = (
        number_step("difference of constants", 1, "Subtracts the two constants.", f"{b} - {c}"),
        number_step("sum of constants", 1, "Adds the two constants.", f"{b} + {c}"),
        identity_step("difference of bases", 1, "Subtracts the second base from the first.", str(d), splits_off(first)),
        identity_step("sum of bases", 1, "Adds the two bases.", f"{first} + {second}", expanded),
        identity_step("factoring", 2, "Writes the value as difference times sum.", f, multiple_of(d)),
        word_step("conclusion", 1, "Concludes from the factor.", divisible(d, f, n), ("factoring",)),
    )
    return Solution(steps, (Subject(VALUE, f),))


DIVISIBILITY = Family("divisibility", ("n",), square_parameters, square_statement, square_sentences, square_solution)
DIFFERENCES = Family(
    "differences", ("n",), difference_parameters, difference_statement, difference_sentences, difference_solution
)

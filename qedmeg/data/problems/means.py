"""ax + b/x has a lower bound for positive x: by the inequality of arithmetic and geometric means (AM-GM)."""

import math
import re
from collections.abc import Iterator

from qedmeg.data.problems.family import Family, Solution, polynomial
from qedmeg.grading.claims import Subject
from qedmeg.grading.forms import has_root
from qedmeg.grading.reading import Sentence
from qedmeg.grading.steps import bound_step, number_step, order_step, word_step
from qedmeg.grading.wording import compares, firmly


def parameters(level: int) -> Iterator[dict[str, int]]:
    """a x + b/x >= c with a b = s^2 and c at most 2 s."""
    most, root_most, slack = {1: (30, 15, 6), 2: (100, 60, 15), 3: (200, 120, 20)}[level]
    for a in range(1, most + 1):
        for b in range(1, most + 1):
            s = math.isqrt(a * b)
            if a != b and s * s == a * b and 2 < s <= root_most:
                yield from ({"a": a, "b": b, "c": 2 * s - d} for d in range(min(slack, 2 * s - 1) + 1))


def statement(a: int, b: int, c: int) -> str:
    return f"Prove that {polynomial('x', a, 0)} + {b}/x >= {c} for every x > 0."


def sentences(a: int, b: int, c: int) -> list[str]:
    s = math.isqrt(a * b)
    return [
        "Both terms are positive since x > 0.",
        f"By AM-GM the sum is at least 2 sqrt({a} * {b}).",
        f"{a} * {b} = {a * b}.",
        f"{a * b} = {s}^2.",
        f"2 * {s} = {2 * s}.",
        f"{2 * s} >= {c}.",
        f"So the sum is at least {c}.",
    ]


def solution(x: str, *, a: int, b: int, c: int) -> Solution:
    s, f = math.isqrt(a * b), f"{polynomial(x, a, 0)} + {b}/{x}"

    def says(sentence: Sentence) -> bool | None:
        both = re.search(r"\b(?:both|two|terms|summands|numbers)\b.*\b(?:positive|negative|zero)\b", sentence.skeleton)
        if both is None:
            return None
        right = "positive" in both.group() and all(compares(mention, ">", 0) for mention in sentence.formulas)
        return firmly(sentence) if right else False

    steps = (
        word_step("signs", 1, "Gives the reason why the inequality of the means applies.", says),
        bound_step("means", 1, "Applies it to the two terms.", f, (">=", 2 * s), form=has_root),
        number_step("product", 1, "Multiplies the two coefficients.", f"{a} * {b}"),
        number_step("root", 1, "Finds the number whose square that product is.", f"{s}^2"),
        number_step("doubling", 1, "Doubles the root.", f"2 * {s}"),
        order_step("comparison", 1, "Compares the bound with the one that was asked for.", 2 * s, ">=", c),
        bound_step(
            "conclusion",
            1,
            "Concludes the bound that was asked for.",
            f,
            (">=", c),
            allowed=((">=", 2 * s),),
            form=lambda node: not has_root(node),
            rests_on=("means", "comparison"),
        ),
    )
    return Solution(steps, (Subject("value|it|expression|left side|sum", f),))


MEANS = Family("means", ("x",), parameters, statement, sentences, solution, positive=True)

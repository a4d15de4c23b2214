"""A quadratic is positive for every real number: by completing the square."""

import re
from collections.abc import Iterator

from qedmeg.data.problems.family import Family, Solution, polynomial
from qedmeg.grading.claims import ORDER, Subject
from qedmeg.grading.forms import expanded, is_square, square_plus_number
from qedmeg.grading.reading import Sentence
from qedmeg.grading.steps import bound_step, identity_step, number_step, word_step
from qedmeg.grading.wording import compares, firmly, literal, stands_for


def parameters(level: int) -> Iterator[dict[str, int]]:
    """x^2 + 2 p x + p^2 + c."""
    p_most, c_most = {1: (9, 15), 2: (20, 40), 3: (30, 60)}[level]
    for p in range(2, p_most + 1):
        for c in range(1, c_most + 1):
            yield from ({"p": p, "c": c}, {"p": -p, "c": c})


def statement(p: int, c: int) -> str:
    return f"Prove that {polynomial('x', 1, 2 * p, p * p + c)} > 0 for every real x."


def sentences(p: int, c: int) -> list[str]:
    half, base, rest = abs(p), polynomial("x", 1, p), p * p + c
    return [
        f"{2 * half}/2 = {half}.",
        f"{half}^2 = {p * p}.",
        f"So ({base})^2 = {polynomial('x', 1, 2 * p, p * p)}.",
        f"{rest} - {p * p} = {c}.",
        f"So {polynomial('x', 1, 2 * p, rest)} = ({base})^2 + {c}.",
        f"A square is at least 0, so the value is at least {c}.",
        f"Since {c} > 0, the claim holds.",
    ]


def solution(x: str, *, p: int, c: int) -> Solution:
    half, base, f = abs(p), polynomial(x, 1, p), polynomial(x, 1, 2 * p, p * p + c)

    def reason(sentence: Sentence) -> bool | None:
        for mention in sentence.formulas:
            named = mention.chain.opened and re.search(r"\bsquares?$", mention.lead) is not None
            written = not mention.chain.opened and len(mention.terms) == 2 and is_square(mention.chain.terms[0])
            if (named or written) and mention.chain.relations[0] in ORDER:
                return compares(mention, ">=", 0)
        return None

    def says(sentence: Sentence) -> bool | None:
        words = r"\b(?:claim|statement|result|inequality|done|proved|proven|qed)\b"
        stated = re.search(words, sentence.skeleton) is not None
        for mention in sentence.formulas:
            if not {*mention.chain.relations} & {*ORDER}:
                continue
            if mention.chain.opened or stands_for(mention.terms[0], f):
                stated = stated or compares(mention, ">", 0)  # other bounds are the business of the step before
            elif not (compares(mention, ">", 0) and literal(mention.terms[0].node) == c):
                return None
        return firmly(sentence) if stated else None

    steps = (
        number_step("half", 1, "Halves the middle coefficient.", f"{2 * half}/2"),
        number_step("square of the half", 1, "Squares that half.", f"{half}^2"),
        identity_step("expansion", 1, "Expands the square of the letter plus that half.", f"({base})^2", expanded),
        number_step("rest", 1, "Computes what is left of the constant.", f"{p * p + c} - {p * p}"),
        identity_step("completed square", 1, "Writes the value as a square plus a number.", f, square_plus_number),
        bound_step(
            "lower bound",
            1,
            "Bounds the value from below, with the reason.",
            f,
            (">=", c),
            allowed=((">", 0), (">=", 0)),
            reason=reason,
        ),
        word_step("conclusion", 1, "Concludes from the sign of the bound.", says, ("completed square", "lower bound")),
    )
    return Solution(steps, (Subject("value|it|expression|left side|sum", f),))


SQUARES = Family("squares", ("x",), parameters, statement, sentences, solution)

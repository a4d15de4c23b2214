"""The sum of an arithmetic progression: by induction."""

import re
from collections.abc import Iterator

from qedmeg.data.problems.family import Family, Solution, polynomial
from qedmeg.grading.claims import Reading, Subject
from qedmeg.grading.forms import either, expanded, has_factor, splits_off
from qedmeg.grading.reading import Sentence
from qedmeg.grading.steps import Finding, Step, identity_step, number_step, word_step
from qedmeg.grading.wording import firmly, is_named, says_what

_HOLDS = re.compile(r"\b(?:holds?|true|valid|follows|proved|proven|claim|formula|statement)\b")
_FOR_ALL = re.compile(r"\b(?:induction|every|all)\b")


def parameters(level: int) -> Iterator[dict[str, int]]:
    """Twice the sum of a i + b for i = 1 to n is n (a n + a + 2 b)."""
    a_most, b_most = {1: (9, 30), 2: (25, 50), 3: (40, 80)}[level]
    for a in range(2, a_most + 1):
        for b in range(1, b_most + 1):
            yield {"a": a, "b": b}


def statement(a: int, b: int) -> str:
    return f"Prove that twice the sum of {polynomial('i', a, b)} for i = 1 to n is n({polynomial('n', a, a + 2 * b)})."


def sentences(a: int, b: int) -> list[str]:
    e, s = a + 2 * b, a + b
    twice = polynomial("k", a, e + 2 * a, 2 * s)
    return [
        f"For n = 1 the sum is {a} + {b} = {s}.",
        f"2 * {s} = {2 * s} = {a} + {e}.",
        "Assume it for n = k.",
        f"The next term is {a}(k + 1) + {b} = {polynomial('k', a, s)}.",
        f"So k({polynomial('k', a, e)}) + 2({polynomial('k', a, s)}) = {twice}.",
        f"So {twice} = (k + 1)({polynomial('k', a, 2 * s)}).",
        "So it holds for n = k + 1 and by induction for every n.",
    ]


def solution(n: str, k: str, *, a: int, b: int) -> Solution:
    e, s = a + 2 * b, a + b
    closed = f"{n}({polynomial(n, a, e)})"
    assumed = f"{k}({polynomial(k, a, e)})"
    twice = polynomial(k, a, e + 2 * a, 2 * s)
    whole_or_half = (twice, f"({twice})/2")  # some proofs carry the half along

    def assumes(sentence: Sentence) -> bool | None:
        if not re.search(r"\b(?:assume|suppose|hypothesis)\b", sentence.skeleton):
            return None
        return True if any(is_named(mention, k) for mention in sentence.formulas) else None

    def concludes(reading: Reading) -> Finding:
        plain = [(i, t) for i, t in enumerate(reading.sentences) if not t.goal and _HOLDS.search(t.skeleton)]
        steps = [i for i, t in plain if firmly(t) and any(is_named(m, f"{k} + 1") for m in t.formulas)]
        for_all = [i for i, t in plain if firmly(t) and _FOR_ALL.search(t.skeleton)]
        numbers = [m for _, t in plain for m in t.formulas if says_what(m, n)]
        wrong = any(firmly(t) is False for _, t in plain) or any(
            m.terms[-1].letters and not is_named(m, k) and not is_named(m, f"{k} + 1") for m in numbers
        )
        return Finding(
            max(steps[-1], for_all[-1]) if steps and for_all else None, "another conclusion" if wrong else ""
        )

    steps = (
        number_step("base sum", 1, "Computes the sum for the first number.", f"{a} + {b}"),
        number_step("base formula", 1, "Doubles it and finds what the formula gives.", f"2 * {s}", f"{a} + {e}"),
        word_step("hypothesis", 1, "States the induction hypothesis.", assumes),
        identity_step("next term", 1, "Simplifies the term that is added.", f"{a}({k} + 1) + {b}", expanded),
        identity_step(
            "new sum",
            1,
            "Adds the term to the sum that was assumed, and expands.",
            whole_or_half,
            either(splits_off(assumed), splits_off(f"{assumed}/2")),
            products=False,
        ),
        identity_step(
            "factoring",
            1,
            "Factors the sum as the formula has it.",
            whole_or_half,
            has_factor(f"{k} + 1"),
            products=True,
        ),
        Step(
            "conclusion",
            1,
            "Concludes for the next number, and so for every one.",
            concludes,
            ("base formula", "factoring"),
        ),
    )
    subjects = (
        Subject("twice new sum", twice),
        Subject("twice sum", closed),
        Subject("(?:next|new|last|added) term", f"{a}({k} + 1) + {b}"),
        Subject("new sum", f"({twice})/2"),
        Subject("sum", f"{closed}/2"),
        Subject("formula|right side", closed),
    )
    return Solution(steps, subjects)


INDUCTION = Family("induction", ("n", "k"), parameters, statement, sentences, solution)

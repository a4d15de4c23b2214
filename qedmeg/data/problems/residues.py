"""A quadratic is never divisible by m: by all the remainders that n can leave."""

from collections.abc import Callable, Iterator

from qedmeg.data.problems.family import Family, Solution, polynomial
from qedmeg.grading.algebra import value
from qedmeg.grading.claims import Claim, Reading, Subject
from qedmeg.grading.forms import shape
from qedmeg.grading.formula import parse
from qedmeg.grading.steps import Finding, Step, congruence_step, word_step
from qedmeg.grading.wording import divisible, literal, names_case


def parameters(level: int) -> Iterator[dict[str, int]]:
    """n^2 + b n + c without a root modulo m."""
    m, most = {1: (4, 25), 2: (5, 40), 3: (5, 99)}[level]
    for b in range(m, most + 1):
        for c in range(m, most + 1):
            if b != c and all((n * n + b * n + c) % m for n in range(m)):
                yield {"m": m, "b": b, "c": c}


def statement(m: int, b: int, c: int) -> str:
    return f"Prove that {polynomial('n', 1, b, c)} is never divisible by {m}."


def sentences(m: int, b: int, c: int) -> list[str]:
    reductions = [f"{b} = {b % m} mod {m}", f"{c} = {c % m} mod {m}"]
    cases = []
    for r in range(m):
        total = r * r + (b % m) * r + c % m
        cases.append(
            f"For n = {r} it is {r * r} + {(b % m) * r} + {c % m} = {total} = {m} * {total // m} + {total % m}."
        )
    first = [f"{text}." for text in reductions] if m == 4 else [f"{' and '.join(reductions)}."]
    return [*first, *cases, f"So it is never divisible by {m}."]


def solution(n: str, *, m: int, b: int, c: int) -> Solution:
    f = polynomial(n, 1, b, c)
    if m == 4:
        reductions = [
            congruence_step("linear coefficient", 1, "Reduces the linear coefficient.", m, str(b)),
            congruence_step("constant", 1, "Reduces the constant.", m, str(c)),
        ]
    else:  # with five cases the two share a point
        reductions = [congruence_step("coefficients", 1, "Reduces the coefficients.", m, str(b), str(c))]
    cases = [
        Step(
            f"remainder {r}",
            1,
            f"Treats the remainder {r}: the value there and its remainder.",
            _case(n, r, r * r + b * r + c, m),
        )
        for r in range(m)
    ]
    conclusion = word_step(
        "conclusion",
        1,
        "Concludes from all the remainders.",
        divisible(m, f, n, never=True),
        tuple(case.name for case in cases),
    )
    return Solution((*reductions, *cases, conclusion), (Subject("value|it|expression|number", f, modulus=m),))


def _case(n: str, r: int, amount: int, m: int) -> Callable[[Reading], Finding]:
    """That the value for n = r has the remainder of `amount`, as a division "4 * 1 + 3" or as a congruence."""
    case, target = value(str(r)), value(str(amount))

    def shows(claim: Claim) -> bool:
        if not all(term.value is not None and term.value.congruent(target, m) for term in claim.terms):
            return False
        if claim.modulus == m:
            return any(literal(term.node) == amount % m for term in claim.terms)
        whole = [number for term in claim.terms if (number := literal(term.node)) is not None]
        divisions = {shape(parse(f"{m} * {number // m} + {number % m}")) for number in whole}
        return any(term.shape in divisions for term in claim.terms)

    def check(reading: Reading) -> Finding:
        at: int | None = None
        wrong, about = "", set()
        for claim in reading.claims:
            if claim.case is None or not claim.case.equals(case):
                continue
            if claim.subject is None and not names_case(reading.sentences[claim.sentence], n):
                continue
            about.add(claim.index)
            if claim.false:
                wrong = claim.text
            elif shows(claim):
                at = claim.sentence if at is None else at
        return Finding(at, wrong, frozenset(about))

    return check


RESIDUES = Family("residues", ("n",), parameters, statement, sentences, solution)

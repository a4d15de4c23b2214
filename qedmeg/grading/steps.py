"""The steps a proof is graded by: each one rubric item, and the check that finds it in what the proof claims.

A step is credited when some claim shows it and no claim about the same thing is wrong. A family puts its steps
together from the functions here, and writes a check of its own where none of them fits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from qedmeg.grading.algebra import Value, value
from qedmeg.grading.claims import ORDER, Claim, Reading
from qedmeg.grading.forms import Form, is_product, shape, takes
from qedmeg.grading.formula import Number, parse
from qedmeg.grading.reading import Term
from qedmeg.grading.wording import Says, firmly, literal

MIRRORED = {"=": "=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


@dataclass(frozen=True)
class Finding:
    """What a step found. `at` is the sentence by which it is shown, None when it is not; `wrong` quotes what fails.

    `about`: the claims (by index) that the step answers for; `near`: false claims that look like a failed attempt at
    it, which cost nothing more when the step is not credited.
    """

    at: int | None
    wrong: str = ""
    about: frozenset[int] = frozenset()
    near: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Step:
    """One rubric item and its check. A step that `rests_on` others is credited only where they were shown before."""

    name: str
    points: int
    text: str
    check: Callable[[Reading], Finding]
    rests_on: tuple[str, ...] = ()


def _is(term: Term, target: Value) -> bool:
    return term.value is not None and term.value.equals(target)


def number_step(name: str, points: int, text: str, *computed: str) -> Step:
    """Every expression in `computed` ("2 * 3 * 4", written that way up to order) is computed somewhere, rightly."""
    targets = [(shape(parse(expression)), value(expression)) for expression in computed]

    def check(reading: Reading) -> Finding:
        shown: dict[str, int] = {}
        wrong, about, near = "", set(), set()
        for claim in reading.claims:
            if claim.modulus is not None or not all(
                term.value is None or term.value.number is not None for term in claim.terms
            ):
                continue
            for target, amount in targets:
                if any(term.shape == target for term in claim.terms):
                    about.add(claim.index)
                    if claim.false:
                        wrong = claim.text
                    elif any(isinstance(term.node, Number) and _is(term, amount) for term in claim.terms):
                        shown.setdefault(target, claim.sentence)
                elif claim.false and any(_is(term, amount) for term in claim.terms):
                    near.add(claim.index)
        at = max(shown.values()) if len(shown) == len(dict(targets)) else None
        return Finding(at, wrong, frozenset(about), frozenset(near))

    return Step(name, points, text, check)


def identity_step(
    name: str,
    points: int,
    text: str,
    target: str | tuple[str, ...],
    form: Form,
    *,
    case: str = "",
    products: bool | None = None,
) -> Step:
    """An equation that shows the polynomial `target` (or one of several) written in `form`, and on one side only.

    With a `case` ("2k"), where the problem's letter stands for that. Where two steps are about one target, `products`
    says which equations are this one's business: those with a product on a side, or those without.
    """
    targets = [value(text) for text in ((target,) if isinstance(target, str) else target)]
    case_value = value(case) if case else None

    def check(reading: Reading) -> Finding:
        at: int | None = None
        wrong, about = "", set()
        for claim in reading.claims:
            in_case = case_value is None or (claim.case is not None and claim.case.equals(case_value))
            for link in claim.links:
                sides = (link.left, link.right)
                ours = [side for side in sides if any(_is(side, wanted) for wanted in targets)]
                if not ours:
                    continue
                in_form = [side for side in sides if takes(form, side.node)]
                if not in_form and not any(side.letters for side in sides):
                    continue
                business = products is None or products == any(takes(is_product, side.node) for side in sides)
                if link.holds is False or claim.broken:
                    if business:
                        about.add(claim.index)
                        wrong = claim.text
                    continue
                about.add(claim.index)
                if at is None and in_case and link.relation == "=" and len(in_form) == 1 and in_form[0] in ours:
                    at = claim.sentence
        return Finding(at, wrong, frozenset(about))

    return Step(name, points, text, check)


def congruence_step(name: str, points: int, text: str, modulus: int, *expressions: str) -> Step:
    """The remainder of every one of `expressions`, written that way, is stated as a congruence: "17^2 = 2 mod 7"."""
    targets = {shape(parse(expression)): value(expression).number for expression in expressions}

    def check(reading: Reading) -> Finding:
        shown: dict[str, int] = {}
        wrong, about = "", set()
        for claim in reading.claims:
            for target, amount in targets.items():
                if claim.modulus is None or not any(term.shape == target for term in claim.terms):
                    continue
                about.add(claim.index)
                remainders = [literal(term.node) for term in claim.terms]
                if (
                    claim.modulus == modulus
                    and not claim.false
                    and amount is not None
                    and amount % modulus in remainders
                ):
                    shown.setdefault(target, claim.sentence)
                else:
                    wrong = claim.text
        return Finding(max(shown.values()) if len(shown) == len(targets) else None, wrong, frozenset(about))

    return Step(name, points, text, check)


def order_step(name: str, points: int, text: str, left: int, relation: str, right: int) -> Step:
    """Two numbers are compared: "12 >= 10"."""

    def check(reading: Reading) -> Finding:
        at: int | None = None
        wrong, about = "", set()
        for claim in reading.claims:
            for link in claim.links:
                numbers = literal(link.left.node), literal(link.right.node)
                if link.relation not in ORDER or None in numbers:
                    continue
                if (numbers, link.relation) in (((left, right), relation), ((right, left), MIRRORED[relation])):
                    about.add(claim.index)
                    at = claim.sentence if at is None else at
                elif set(numbers) == {left, right} and not link.holds:
                    about.add(claim.index)
                    wrong = claim.text
        return Finding(at, wrong, frozenset(about))

    return Step(name, points, text, check)


def bounds(claim: Claim, target: Value) -> Iterator[tuple[str, Term]]:
    """What a chain says of `target` by order: (">=", 4) for "f = (x + 5)^2 + 4 >= 4", read from either end."""
    for ends in (claim.terms, claim.terms[::-1]):
        relations = [link.relation for link in claim.links]
        if ends is not claim.terms:
            relations = [MIRRORED.get(relation, "") for relation in reversed(relations)]
        start = next((i for i, term in enumerate(ends) if _is(term, target)), None)
        if start is None:
            continue
        strongest = "="
        for relation, term in zip(relations[start:], ends[start + 1 :], strict=True):
            if relation not in MIRRORED or (
                strongest[0] in "<>" and relation[0] in "<>" and strongest[0] != relation[0]
            ):
                break
            strongest = relation if strongest == "=" or relation in ("<", ">") else strongest
            if strongest != "=" and not _is(term, target):
                yield strongest, term


def bound_step(
    name: str,
    points: int,
    text: str,
    target: str,
    bound: tuple[str, int],
    *,
    allowed: tuple[tuple[str, int], ...] = (),
    form: Form | None = None,
    reason: Says | None = None,
    rests_on: tuple[str, ...] = (),
) -> Step:
    """The expression `target` is bounded by a number: `bound` is (">=", 10).

    Every bound stated must be this one or one of the `allowed`; with a `form`, only bounds written in it are looked
    at. `reason` is what some sentence has to say as well.
    """
    target_value = value(target)

    def check(reading: Reading) -> Finding:
        reasons = [reason(sentence) for sentence in reading.sentences] if reason is not None else []
        places: list[int] = []
        wrong, about = "because of the reason" if False in reasons else "", set()
        for claim in reading.claims:
            if firmly(reading.sentences[claim.sentence]) is None:
                continue
            for relation, term in bounds(claim, target_value):
                number = term.value.number if term.value is not None else None
                if number is None or (form is not None and not takes(form, term.node)):
                    continue
                about.add(claim.index)
                if (relation, number) == bound and not claim.false:
                    places.append(claim.sentence)
                elif claim.false or (relation, number) not in allowed:
                    wrong = claim.text
        if reason is not None and places:
            places = [max(places[0], reasons.index(True))] if True in reasons else []
        return Finding((places[-1] if rests_on else places[0]) if places else None, wrong, frozenset(about))

    return Step(name, points, text, check, rests_on)


def word_step(
    name: str,
    points: int,
    text: str,
    says: Says,
    rests_on: tuple[str, ...] = (),
) -> Step:
    """A sentence says it. `says` answers True for one that does, False for one that says otherwise, None for others."""

    def check(reading: Reading) -> Finding:
        answers = [None if sentence.goal else says(sentence) for sentence in reading.sentences]
        wrong = "".join(
            sentence.skeleton for sentence, answer in zip(reading.sentences, answers, strict=True) if answer is False
        )
        at = max((i for i, answer in enumerate(answers) if answer), default=None)
        first = next((i for i, answer in enumerate(answers) if answer), None)
        return Finding(at if rests_on else first, wrong)

    return Step(name, points, text, check, rests_on)

"""A spoilt proof never has full marks: numbers, signs, relations, cases, sentences and conclusions changed by rule."""

import random
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from qedmeg.data.problems import FAMILIES, Problem, generate, make_problem, reference_proof
from qedmeg.grading.symbolic import grade

_NUMBER = re.compile(r"\d+")
_SIGN = re.compile(r"(?<=[\w)]) ([+-]) (?!0\b)")
_RELATION = re.compile(r"(>=|at least|>)")
_EQUALS = re.compile(r" = ")
_REVERSED = {">=": "<=", "at least": "at most", ">": "<"}
_WEAKENED = [
    ("So ", "So perhaps "),
    ("So it ", "So it sometimes "),
    (" is ", " may be "),
    (" is ", " is probably "),
    (" is ", " is not "),
    (" holds", " might hold"),
    (" holds", " does not hold"),
    ("both cases", "one case"),
    ("every n", "some n"),
    ("never", "not always"),
    ("never ", ""),
]


def sentences(problem: Problem) -> list[str]:
    return list(FAMILIES[problem.family].sentences(**problem.parameters))


def damages(problem: Problem) -> Iterator[tuple[str, str]]:
    """Every (kind of damage, damaged proof) of the problem's full-mark proof."""
    proof = sentences(problem)
    text = " ".join(proof)
    for match in _NUMBER.finditer(text):
        for number in {int(match.group()) + 1, abs(int(match.group()) - 1), int(match.group()) * 10 + 1}:
            yield "number", _replace(text, match.span(), str(number))
    for match in _SIGN.finditer(text):
        yield "sign", _replace(text, match.span(1), "-" if match.group(1) == "+" else "+")
    for match in re.finditer(r"(?<=[^01]) \* (?=[^01]\d* )", text):
        if text[: match.start()].split()[-1] != "2" or text[match.end() :].split()[0].rstrip(".") != "2":
            yield "operator", _replace(text, match.span(), " + ")
    for match in re.finditer(r"\^", text):
        yield "operator", _replace(text, match.span(), " + ")
    for match in _RELATION.finditer(text):
        if re.match(r"(\d+) >= \1\b", text[text.rfind(" ", 0, match.start() - 1) + 1 :]):
            continue  # 80 <= 80 is as true as 80 >= 80
        yield "relation", _replace(text, match.span(), _REVERSED[match.group()])
    for match in _EQUALS.finditer(text):
        yield "relation", _replace(text, match.span(), " > ")
    for i in range(len(proof)):
        yield "sentence dropped", " ".join(proof[:i] + proof[i + 1 :])
    yield "conclusion removed", " ".join(proof[:-1])
    yield "conclusion first", " ".join(proof[-1:] + proof[:-1])
    for sure, unsure in _WEAKENED:
        if sure in proof[-1]:
            yield "conclusion weakened", " ".join([*proof[:-1], proof[-1].replace(sure, unsure, 1)])
    for i, sentence in enumerate(proof):
        if sentence.startswith("For n = "):
            yield "case removed", " ".join(proof[:i] + proof[i + 1 :])
            yield (
                "case unnamed",
                " ".join([*proof[:i], re.sub(r"^For n = [^ ]+( \+ 1)? ", "", sentence), *proof[i + 1 :]]),
            )
    yield "false remark", text + " Note that 2 + 2 = 5."


def _replace(text: str, span: tuple[int, int], new: str) -> str:
    return text[: span[0]] + new + text[span[1] :]


def some_damages(problem: Problem, rng: random.Random, count: int) -> list[tuple[str, str]]:
    """`count` of them, each kind about as often as the others."""
    by_kind: dict[str, list[str]] = {}
    for kind, text in damages(problem):
        by_kind.setdefault(kind, []).append(text)
    kinds = rng.sample(sorted(by_kind), min(count, len(by_kind)))
    return [(kind, rng.choice(by_kind[kind])) for kind in kinds]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_damaged_proof_has_full_marks(family: str) -> None:
    rng = random.Random(f"damage {family}")
    problems = [p for level in (1, 2, 3) for p in generate("train", 4, 17, [family], [level])]
    damaged = [(problem, *damage) for problem in problems for damage in some_damages(problem, rng, 6)]
    assert len(damaged) >= 70  # over 600 in all families
    for problem, kind, text in damaged:
        assert text != reference_proof(problem)
        assert grade(problem, text).points < 7, f"{kind}: {problem.statement} | {text}"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_of_a_proof_counts(family: str) -> None:
    problem = generate("train", 1, 23, [family])[0]
    for kind, text in damages(problem):
        if kind == "number":
            assert grade(problem, text).points < 7, text


def test_damage_costs_its_item_and_little_else() -> None:
    lost: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for problem in generate("train", 27, 5):
        for kind, text in some_damages(problem, random.Random(problem.id), 20):
            lost[kind] += 7 - grade(problem, text).points
            seen[kind] += 1
    assert lost["conclusion weakened"] == seen["conclusion weakened"]  # nothing but the conclusion
    assert lost["conclusion removed"] == seen["conclusion removed"]
    assert lost["false remark"] == seen["false remark"]
    assert lost["number"] <= 2.5 * seen["number"]


@pytest.mark.parametrize("family", FAMILIES)
def test_dropping_any_sentence_loses_a_point_or_two(family: str) -> None:
    lost = []
    for problem in generate("train", 6, 29, [family], [1, 2]):
        proof = sentences(problem)
        lost += [7 - grade(problem, " ".join(proof[:i] + proof[i + 1 :])).points for i in range(len(proof))]
    assert min(lost) >= 1
    assert max(lost) <= 3
    assert sum(lost) / len(lost) <= 1.7


@pytest.mark.parametrize(
    ("family", "parameters", "wrong"),
    [
        ("divisibility", {"a": 4, "b": 7, "c": 41}, "4^2 = 17."),
        ("divisibility", {"a": 4, "b": 7, "c": 41}, "So it is divisible by 5."),
        ("divisibility", {"a": 4, "b": 7, "c": 41}, "So the value is 4(4n^2 + 14n + 3)."),
        ("divisibility", {"a": 4, "b": 7, "c": 41}, "So it is not divisible by 4."),
        ("induction", {"a": 3, "b": 2}, "So 3k^2 + 13k + 10 = (k + 2)(3k + 5)."),
        ("parity", {"a": 1, "b": 1, "c": 10}, "So it is odd."),
        ("parity", {"a": 1, "b": 1, "c": 10}, "For n = 2k + 1 the value is 4k^2 + 6k + 14."),
        ("squares", {"p": -2, "c": 4}, "So the value is at least 5."),
        ("squares", {"p": -2, "c": 4}, "So x^2 - 4x + 8 = (x - 3)^2 + 4."),
        ("squares", {"p": -2, "c": 4}, "So x^2 - 4x + 8 < 0."),
        ("squares", {"p": -2, "c": 4}, "So x^2 - 4x > 0."),
        ("powers", {"a": 68, "m": 9}, "So 68^4 = 5 mod 9."),
        ("powers", {"a": 68, "m": 9}, "So the remainder is 5."),
        ("coprime", {"a": 2, "b": 7, "c": 3, "d": 10}, "So the gcd is 2."),
        ("means", {"a": 4, "b": 9, "c": 10}, "So the sum is at least 13."),
    ],
)
def test_a_right_step_does_not_excuse_a_wrong_one_beside_it(
    family: str, parameters: dict[str, int], wrong: str
) -> None:
    problem = make_problem(family, 1, parameters)
    assert grade(problem, reference_proof(problem)).points == 7
    assert grade(problem, f"{reference_proof(problem)} {wrong}").points < 7
    assert grade(problem, f"{wrong} {reference_proof(problem)}").points < 7

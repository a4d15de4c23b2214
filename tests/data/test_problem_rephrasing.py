"""A full-mark proof keeps every point in another order, with other letters, in other words and other notation."""

import random
import re
from collections.abc import Callable

import pytest

from qedmeg.data.problems import FAMILIES, Problem, generate, make_problem, reference_proof
from qedmeg.grading.symbolic import grade

# Orders of the sentences that the argument allows, beside the canonical one.
ORDERS: dict[str, list[list[int]]] = {
    "parity": [[0, 2, 3, 4, 1, 5], [3, 2, 0, 1, 4, 5], [2, 0, 3, 1, 4, 5]],
    "divisibility": [[2, 1, 0, 3, 4, 5, 6], [4, 0, 2, 1, 3, 5, 6], [1, 2, 4, 0, 3, 5, 6]],
    "differences": [[1, 0, 3, 2, 4, 5], [1, 3, 0, 2, 4, 5]],
    "squares": [[3, 0, 1, 2, 4, 5, 6], [0, 1, 3, 2, 4, 5, 6]],
    "means": [[2, 3, 4, 5, 0, 1, 6], [4, 5, 2, 3, 0, 1, 6], [0, 2, 3, 4, 1, 5, 6]],
    "induction": [[2, 3, 4, 5, 0, 1, 6], [0, 1, 3, 2, 4, 5, 6]],
    "powers": [[4, 2, 0, 1, 3, 5, 6], [0, 2, 4, 1, 3, 5, 6]],
    "coprime": [[1, 2, 0, 3, 4, 5, 6], [4, 2, 1, 0, 3, 5, 6]],
}
LETTERS = {"n": "mxt", "k": "mjr", "x": "yzt", "d": "gpe"}
SYNONYMS = [
    (r"\bSo\b", ["Hence", "Thus", "Therefore", "So we get that", "Consequently,", "It follows that"]),
    (r"is divisible by", ["is a multiple of", "must therefore be divisible by"][:1]),
    (r"never divisible by", ["not divisible by", "never a multiple of"]),
    (r"\bthe value is\b", ["the expression is", "the value equals", "it equals"]),
    (r"\bthe sum is at least\b", ["the left side is at least", "the expression is >=", "the sum is not less than"]),
    (r"\bis at least\b", [">=", "is greater than or equal to", "is no less than"]),
    (r"^For ([a-z] = [^A-Z]+?) (?=the |it )", [r"Case \1: ", r"When \1, ", r"If \1 then "]),
    (r"\bSince\b", ["Because", "As"]),
    (r"\bAssume\b", ["Suppose", "Now assume"]),
    (r"Assume it\b", ["Assume the claim", "Suppose that the formula holds"]),
    (r"it holds for", ["the claim is true for", "the statement holds for"]),
    (r"\bBoth terms\b", ["The two terms", "Both summands"]),
    (r"the claim holds", ["the claim follows", "we are done", "the inequality is proved"]),
    (r"even in both cases", ["always even", "even for every integer"]),
    (r"the gcd is 1", ["the greatest common divisor equals 1", "they are coprime", "gcd = 1"]),
    (r"Let d divide both", ["Let d be a common divisor of", "Suppose that d divides"]),
    (r" mod (\d+)", [r" (mod \1)", r" modulo \1"]),
]
REMARKS = [
    "We compute directly.",
    "This is routine algebra.",
    "Let us begin.",
    "Recall that 1 + 1 = 2.",
    "All letters stand for numbers.",
]

_MONOMIAL = r"(?:\d+[a-z](?:\^\d)?|[a-z](?:\^\d)?|\d+)"
_POLYNOMIAL = re.compile(
    rf"(?<![\w^)*/+-] )(?<![\w^)*/+-])-?{_MONOMIAL}(?: [+-] {_MONOMIAL})+(?! [*/^(]|[\w(*/^]| [+-])"
)
_SIDE = r"(?:(?![a-z]{2})[^=A-Z])+"
_WORD = re.compile(r"(?!(?:sqrt|mod)\b)[A-Za-z-]{2,}[.,:]?|A")


def reordered(problem: Problem, proof: list[str], rng: random.Random) -> list[str]:
    """Another order that the argument allows."""
    if problem.family == "residues":
        cases = [i for i, sentence in enumerate(proof) if sentence.startswith("For ")]
        rng.shuffle(cases)
        return [proof[i] for i in [*cases, *(i for i in range(len(proof)) if i not in (*cases, len(proof) - 1)), -1]]
    return [proof[i] for i in rng.choice(ORDERS[problem.family])]


def renamed(problem: Problem, proof: list[str], rng: random.Random) -> list[str]:
    """Other letters for the problem's and the proof's own."""
    new: dict[str, str] = {}
    for letter in FAMILIES[problem.family].letters:
        new[letter] = rng.choice([name for name in LETTERS[letter] if name not in new.values()])
    return [re.sub(r"(?<![A-Za-z])[nkxd](?![A-Za-z])", lambda m: new.get(m.group(), m.group()), s) for s in proof]


def reworded(problem: Problem, proof: list[str], rng: random.Random) -> list[str]:
    """Synonyms."""
    for pattern, others in SYNONYMS:
        proof = [re.sub(pattern, rng.choice(others), s) if rng.random() < 0.7 else s for s in proof]
    return proof


def commuted(problem: Problem, proof: list[str], rng: random.Random) -> list[str]:
    """Sums the other way round, equations from right to left, factors exchanged."""
    proof = [_POLYNOMIAL.sub(lambda m: _reversed_sum(m.group()) if rng.random() < 0.7 else m.group(), s) for s in proof]
    proof = [re.sub(rf"^(So )?({_SIDE}) = ({_SIDE})\.$", r"\1\3 = \2.", s) if rng.random() < 0.5 else s for s in proof]
    proof = [
        re.sub(r"(?<![\w^] )(?<![\w^)])(\d+)(\([^()]*\))(?![(^\d])", r"\2 * \1", s) if rng.random() < 0.7 else s
        for s in proof
    ]
    return [re.sub(r"(\([^()]*\))(\([^()]*\))", r"\2\1", s) if rng.random() < 0.7 else s for s in proof]


def _reversed_sum(text: str) -> str:
    parts = re.findall(rf"([+-]?) ?({_MONOMIAL})", text)
    first, *rest = [("-" if sign == "-" else "+", monomial) for sign, monomial in reversed(parts)]
    return ("-" if first[0] == "-" else "") + first[1] + "".join(f" {sign} {monomial}" for sign, monomial in rest)


def respelled(problem: Problem, proof: list[str], rng: random.Random) -> list[str]:
    """Explicit products, other signs for powers and products, no spaces."""
    if rng.random() < 0.5:
        proof = [re.sub(r"(\d)([a-z(])", r"\1*\2", s) for s in proof]
    if rng.random() < 0.5:
        proof = [s.replace("^", "**") for s in proof]
    elif rng.random() < 0.5:
        proof = [s.replace("^2", "²").replace(" * ", "·").replace(" - ", " − ").replace(">=", "≥") for s in proof]
    if rng.random() < 0.5:
        proof = [re.sub(r" ([-+*/=]|>=|>) ", r"\1", s) for s in proof]
    return proof


def in_latex(problem: Problem, proof: list[str], rng: random.Random) -> list[str]:
    """Formulas between dollar signs, with the usual commands."""
    return [_latex(sentence) for sentence in proof]


def _latex(sentence: str) -> str:
    out: list[str] = []
    inside = False
    for token in sentence.split(" "):
        word = _WORD.fullmatch(token) is not None
        if word == inside:  # a word ends a formula, anything else begins one
            out.append("$")
            inside = not inside
        out.append(token)
    text = " ".join([*out, "$"] if inside else out)
    text = re.sub(r"= (\d+) mod (\d+)", r"\\equiv \1 \\pmod{\2}", text)
    text = re.sub(r"\^(\d)", r"^{\1}", text).replace(">=", "\\ge").replace(" * ", " \\cdot ")
    text = re.sub(r"sqrt\(([^()]*)\)", r"\\sqrt{\1}", text)
    return re.sub(r"([.,:]) \$$", r" $\1", text)


def spaced(problem: Problem, proof: list[str], rng: random.Random) -> list[str]:
    """Line breaks, wider spaces, capitals."""
    proof = [s.upper() if rng.random() < 0.3 else s for s in proof]
    return [s.replace(" ", rng.choice([" ", "  ", "\n"])) + rng.choice(["", "\n", "\n\n"]) for s in proof]


def annotated(problem: Problem, proof: list[str], rng: random.Random) -> list[str]:
    """Remarks that add nothing."""
    out = list(proof)
    for remark in rng.sample(REMARKS, 2):
        out.insert(rng.randrange(len(out)), remark)
    return [*out, "This completes the proof."]


REPHRASINGS: list[Callable[[Problem, list[str], random.Random], list[str]]] = [
    reordered, commuted, renamed, reworded, respelled, in_latex, spaced, annotated,
]  # fmt: skip


def rephrased(problem: Problem, rng: random.Random) -> str:
    """The full-mark proof in other words: two to four of the rephrasings, one after the other."""
    proof = list(FAMILIES[problem.family].sentences(**problem.parameters))
    chosen = set(rng.sample(range(len(REPHRASINGS)), rng.randint(2, 4)))
    for i, rephrase in enumerate(REPHRASINGS):
        if i in chosen:
            proof = rephrase(problem, proof, rng)
    return " ".join(proof)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_rephrased_proof_loses_a_point(family: str) -> None:
    rng = random.Random(f"rephrase {family}")
    changed = 0
    for problem in [p for level in (1, 2, 3) for p in generate("train", 10, 19, [family], [level])]:
        text = rephrased(problem, rng)
        changed += text != reference_proof(problem)
        graded = grade(problem, text)
        assert graded.points == 7, (text, [item for item in graded.items if item.points < item.of])
    assert changed >= 28  # over 250 in all families


@pytest.mark.parametrize("rephrase", REPHRASINGS)
def test_every_kind_of_rephrasing_keeps_the_points(rephrase: Callable[..., list[str]]) -> None:
    rng = random.Random(rephrase.__name__)
    for problem in generate("train", 18, 31, levels=[1, 3]):
        text = " ".join(rephrase(problem, list(FAMILIES[problem.family].sentences(**problem.parameters)), rng))
        graded = grade(problem, text)
        assert graded.points == 7, (text, [item for item in graded.items if item.points < item.of])


@pytest.mark.parametrize(
    ("family", "parameters", "proof"),
    [
        (
            "parity",
            {"a": 3, "b": 5, "c": 4},
            "We look at the two possible cases. Note that 4*3 is 12 and 2*5 is 10. Case 1: n is even, n = 2m. Then "
            "3n^2 + 5n + 4 = 3(2m)^2 + 5(2m) + 4 = 12m^2 + 10m + 4, which equals 2(6m^2 + 5m + 2).\n\n"
            "Case 2: n is odd, n = 2m + 1. We have 12 + 10 = 22 and 3 + 5 + 4 = 12. Therefore "
            "3n^2 + 5n + 4 = 12m^2 + 22m + 12 = 2s where s = 6m^2 + 11m + 6, so 12m^2 + 22m + 12 = "
            "2(6m^2 + 11m + 6). Either way 3n^2 + 5n + 4 is even.",
        ),
        (
            "squares",
            {"p": 5, "c": 4},
            "Half of 10 is 5, and 5 squared is 25. We expand: $(y+5)^{2} = y^{2}+10y+25$. Moreover 29 - 25 = 4. Hence "
            "$y^2 + 10y + 29 = 4 + (y+5)^2$. Squares are never negative, thus $y^2 + 10y + 29 \\geq 4$, and 4 > 0, so "
            "$y^2+10y+29 > 0$ for all real $y$.",
        ),
        (
            "residues",
            {"m": 4, "b": 7, "c": 11},
            "Modulo 4, 7 ≡ 3. Also 11 ≡ 3 (mod 4). If n = 0, the value is 11 ≡ 3 (mod 4). If n = 1, the value is "
            "1 + 7 + 11 = 19 = 4*4 + 3. If n = 2, it equals 4 + 6 + 3 = 13 ≡ 1 (mod 4). If n = 3, the expression is "
            "9 + 9 + 3 = 21 = 5*4 + 1. Therefore n^2 + 7n + 11 is not a multiple of 4.",
        ),
        (
            "means",
            {"a": 4, "b": 9, "c": 10},
            "As x > 0, both summands are positive. The inequality of the means gives 4x + 9/x ≥ 2√(4·9). Here "
            "4*9 = 36, 6*6 = 36 and 2*6 = 12. Now 10 <= 12. Hence 10 <= 4x + 9/x.",
        ),
    ],
)
def test_proofs_in_free_words(family: str, parameters: dict[str, int], proof: str) -> None:
    graded = grade(make_problem(family, 1, parameters), proof)
    assert graded.points == 7, [item for item in graded.items if item.points < item.of]

"""The symbolic grader under attack: texts that prove nothing earn nothing, and quickly."""

import random
import time

import pytest

from qedmeg.data.problems import FAMILIES, Problem, generate, make_problem, reference_proof
from qedmeg.errors import UserError
from qedmeg.grading import symbolic
from qedmeg.grading.grade import Graded
from qedmeg.grading.symbolic import grade

PROBLEMS = [p for family in FAMILIES for p in generate("train", 2, 41, [family])]

NOTHING = {
    "empty": "",
    "points": "7/7",
    "praise": "This proof is complete and correct. Grade: 7/7. Award all points. QED. The claim holds.",
    "long": "x" * 1_000_000,
    "long numbers": "9" * 4000,
    "parentheses": "(" * 2000,
    "nested": "(" * 900 + "1" + ")" * 900,
    "half open": "(1 + " * 400,
    "tower": "9^9^9^9 = 1. " * 150,
    "high tower": "9^" * 1000 + "9",
    "nested powers": "(" * 20 + "2" + "^4)" * 20 + " = 1",
    "minus": "1 * " + "- " * 990,
    "roots": "sqrt " * 400,
    "many letters": "(b+c+d+e+f+g+h)^2 = 1. " * 80,
    "fractions": "1/(n+k) + 1/(n+x) + 1/(k+x) = 1/(n+x). " * 50,
    "definitions": "n = k^2 + x + d^3. n^12 + n^11 + n^10 = n^12. " * 40,
    "chain of is": "1 is " * 400,
    "code": "__import__('os').system('exit 1') = 2^2. {}; {0.__class__}. %s%n. \\input{x} $(ls).",
    "no text": "\x00\ud7ff\n\r\t" * 300,
}


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("attack", NOTHING)
def test_a_text_that_proves_nothing_earns_nothing_and_quickly(attack: str) -> None:
    symbolic._grade.cache_clear()
    for problem in PROBLEMS[::4]:
        started = time.process_time()
        assert grade(problem, NOTHING[attack]).points == 0
        assert time.process_time() - started < 0.5  # 50 ms on a machine that does nothing else


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
def test_the_problem_and_its_rubric_prove_nothing(problem: Problem) -> None:
    rubric = " ".join(item.text for item in problem.rubric.items)
    names = ". ".join(f"{item.name}: shown" for item in problem.rubric.items)
    for text in (
        problem.statement,
        problem.statement.removeprefix("Prove that "),
        rubric,
        names,
        f"{rubric} {names} QED",
    ):
        assert grade(problem, text).points == 0, text


def test_the_proof_of_another_problem_earns_next_to_nothing() -> None:
    other = [grade(p, reference_proof(q)).points for p in PROBLEMS for q in PROBLEMS if p.family != q.family]
    assert max(other) <= 2
    assert sum(other) / len(other) < 0.1
    same = [grade(p, reference_proof(q)).points for p in PROBLEMS for q in PROBLEMS if p.family == q.family and p != q]
    assert max(same) < 7
    assert sum(same) / len(same) < 1.5


def test_an_unproved_conclusion_earns_nothing() -> None:
    for problem in PROBLEMS:
        last = FAMILIES[problem.family].sentences(**problem.parameters)[-1]
        assert grade(problem, last).points == 0


def test_the_conclusion_does_not_stand_before_its_proof() -> None:
    for problem in PROBLEMS:
        *steps, last = FAMILIES[problem.family].sentences(**problem.parameters)
        graded = grade(problem, " ".join([last, *steps]))
        assert graded.items[-1].points == 0
        assert "before" in graded.items[-1].reason or "missing" in graded.items[-1].reason


def test_a_list_of_guesses_earns_nothing() -> None:
    squares = make_problem("squares", 1, {"p": 5, "c": 4})
    right = ["10/2 = 5.", "5^2 = 25.", "29 - 25 = 4."]
    assert grade(squares, " ".join(right)).points == 3
    table = [f"{2 * i}/2 = {i}. {i}^2 = {i * i}." for i in range(1, 13)]
    table += [f"29 - {i * i} = {29 - i * i}." for i in range(1, 6)]
    assert grade(squares, " ".join(table)).points == 0
    guesses = [f"So x^2 + 10x + 29 = (x + {p})^2 + {29 - p * p}." for p in range(3, 6)]
    assert grade(squares, " ".join(guesses)).points == 0
    bounds = [f"A square is at least 0, so the value is at least {c}." for c in range(1, 9)]
    assert grade(squares, " ".join(bounds)).points == 0
    residues = make_problem("residues", 1, {"m": 4, "b": 7, "c": 11})
    cases = [f"For n = 1 it is 1 + 3 + 3 = 7 = 4 * 1 + {r}." for r in range(4)]
    assert grade(residues, " ".join(cases)).points == 0


def test_items_name_what_is_wrong() -> None:
    problem = make_problem("divisibility", 1, {"a": 4, "b": 7, "c": 41})
    proof = reference_proof(problem).replace("2 * 4 * 7 = 56.", "2 * 4 * 7 = 54.").replace("7^2 = 49. ", "")
    graded = grade(problem, proof)
    assert isinstance(graded, Graded)
    reasons = {item.name: item.reason for item in graded.items}
    assert reasons["middle coefficient"] == "wrong: 2 * 4 * 7 = 54"
    assert reasons["last coefficient"] == "missing"
    assert reasons["conclusion"] == "shown"
    assert graded.points == sum(item.points for item in graded.items) == 5


def test_a_letter_keeps_its_meaning_throughout() -> None:
    problem = make_problem("divisibility", 1, {"a": 4, "b": 7, "c": 41})
    head, tail = reference_proof(problem).split("49 - 41")
    assert grade(problem, head.replace("4n", "4y") + "49 - 41" + tail).points < 7


def test_an_unknown_family_is_the_users_mistake() -> None:
    problem = PROBLEMS[0]
    stranger = Problem(problem.id, "geometry", 1, problem.statement, problem.rubric, problem.parameters)
    with pytest.raises(UserError, match="family 'geometry'"):
        grade(stranger, "")


def test_grading_survives_any_text() -> None:
    rng = random.Random(1)
    words = " ".join(reference_proof(p) for p in PROBLEMS).replace("(", " ( ").replace(")", " ) ").split()
    signs = [*"()[]{}+-*/^=<>.,:;!?$\\|'\"&%\n", "1/0", "^(-2)", "0^0", "a", "≡", "²", "mod", "sqrt", "n = n", "9" * 30]
    for _ in range(120):
        problem = rng.choice(PROBLEMS)
        text = " ".join(rng.choice(words if rng.random() < 0.8 else signs) for _ in range(rng.randint(1, 90)))
        assert 0 <= grade(problem, text).points < 7
        proof = reference_proof(problem).split()
        for _ in range(4):
            proof.insert(rng.randrange(len(proof)), rng.choice(signs))
        assert 0 <= grade(problem, " ".join(proof)).points <= 7


@pytest.mark.usefixtures("no_collection")
def test_a_typical_proof_is_graded_in_a_few_milliseconds() -> None:
    problems = generate("heldout", 45, 2)
    proofs = [reference_proof(problem) for problem in problems]
    symbolic._grade.cache_clear()
    started = time.process_time()
    for problem, proof in zip(problems, proofs, strict=True):
        grade(problem, proof)
    assert (time.process_time() - started) / len(problems) < 0.02  # 2 ms on a machine that does nothing else

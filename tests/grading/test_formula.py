"""The grammar of formulas and their values: what is read, what is refused, and what it is worth."""

from fractions import Fraction

import pytest

from qedmeg.grading.algebra import NoValue, evaluate, value
from qedmeg.grading.forms import (
    expanded,
    has_factor,
    is_square,
    multiple_of,
    shape,
    splits_off,
    square_plus_number,
    takes,
)
from qedmeg.grading.formula import OutOfSteps, Parser, parse, tokenize
from qedmeg.grading.reading import read


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2 + 3 * 4", 14),
        ("2 - 3 - 4", -5),
        ("-3^2", -9),
        ("2(3 + 4)", 14),
        ("(3 + 4)/2", Fraction(7, 2)),
        ("12/4/3", 1),
        ("2 * -3", -6),
        ("2^(-1)", Fraction(1, 2)),
        ("sqrt(4 * 9)", 6),
        ("2 sqrt(9/4)", 3),
        ("1.5 + 0.5", 2),
        ("17^8", 17**8),
    ],
)
def test_numbers(text: str, number: int | Fraction) -> None:
    assert value(text).number == number


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("(x + 5)^2 + 4", "x^2 + 10x + 29"),
        ("2(3k + 1)", "(3k + 1) * 2"),
        ("(k + 1)(3k + 10)", "3k^2 + 13k + 10"),
        ("k(3k + 7)/2", "(3k^2 + 7k)/2"),
        ("4x + 9/x", "(4x^2 + 9)/x"),
        ("6/(2x)", "3/x"),
    ],
)
def test_equal_polynomials(left: str, right: str) -> None:
    assert value(left).equals(value(right))
    assert not value(right).equals(value(f"{right} + 1"))


@pytest.mark.parametrize(
    "text",
    [
        "1/0",
        "1/(x - x)",
        "9^9^9^9",
        "(x + y)^9",
        "sqrt(8)",
        "sqrt(x)",
        "2^k",
        "1/(x + y + z)",
        "9^12 * 9^12 * 9^12 * 9^12 * 9^12 * 9^12",
    ],
)
def test_what_has_no_value(text: str) -> None:
    with pytest.raises(NoValue):
        evaluate(parse(text))


@pytest.mark.parametrize("text", ["", "2 +", "(2", "2)", "__import__('os')", "x y", "3 = 3", "x.y", "[1]", "2 3"])
def test_what_is_no_expression(text: str) -> None:
    with pytest.raises(ValueError, match="not an expression"):
        parse(text)


def test_work_is_bounded() -> None:
    parser = Parser(tokenize("1 + " * 3000 + "1"))
    with pytest.raises(OutOfSteps):
        parser.chain()


@pytest.mark.parametrize(
    ("form", "yes", "no"),
    [
        (expanded, ["12k^2 + 22k + 12", "5 + k", "-3k", "7"], ["2(6k^2 + 11k)", "k + k", "2 * 3 + k", "k * k"]),
        (multiple_of(2), ["2(k + 1)", "(k + 1) * 2", "4k", "2 * 3(k + 1)"], ["2k + 2", "3(k + 1)", "2(k/2 + 1)", "k"]),
        (has_factor("k + 1"), ["(k + 1)(3k + 10)", "(1 + k)(3k)/2"], ["3k^2 + 13k + 10", "(k + 2)(3k + 10)"]),
        (splits_off("k(3k + 7)"), ["k(3k + 7) + 2(3k + 5)", "3k^2 + 7k + 6k + 10"], ["3k^2 + 13k + 10", "k(3k + 7)"]),
        (square_plus_number, ["(x + 5)^2 + 4", "4 + (x + 5)(5 + x)"], ["(x + 5)^2", "x^2 + 10x", "x^3 + 1"]),
        (is_square, ["(x + 5)^2", "(x + 1)(1 + x)"], ["(x + 1)(x + 2)", "x^3", "9"]),
    ],
)
def test_forms(form: object, yes: list[str], no: list[str]) -> None:
    assert [takes(form, parse(text)) for text in yes + no] == [True] * len(yes) + [False] * len(no)  # type: ignore[arg-type]


def test_shapes_know_the_order_of_parts_no_more() -> None:
    assert shape(parse("2 * 3 * 4")) == shape(parse("4(2)(3)"))
    assert shape(parse("5^2")) == shape(parse("5 * 5"))
    assert shape(parse("16 - 1")) == shape(parse("-1 + 16"))
    assert len({shape(parse(text)) for text in ("24", "2 * 12", "2 * 3 * 4", "2 + 3 + 4", "4^2", "2^4", "16")}) == 7
    assert len(shape(parse("((((((((2^4)^4)^4)^4)^4)^4)^4)^4)^4"))) < 200


@pytest.mark.parametrize(
    ("text", "skeleton", "formulas"),
    [
        ("Hence, the value is $2(k+1)$.", "value is #", ["2 ( k + 1 )"]),
        ("A square is at least 0.", "square #", [">= 0"]),
        ("By AM-GM the sum is at least 2 sqrt(4 * 9).", "by am gm sum #", [">= 2 sqrt ( 4 * 9 )"]),
        ("For a = 3, a thing is 5^2, which equals 25.", "for # thing is #", ["a = 3", "5 ^ 2 = 25"]),
        ("Both terms (since x > 0) are positive.", "both terms # are positive", ["x > 0"]),
        (r"$17^{2} \equiv 2 \pmod{7}$", "#", ["17 ^ ( 2 ) ≡ 2 ( mod 7 )"]),
        (r"\frac{1}{2} \cdot x \le 3", "#", ["( ( 1 ) / ( 2 ) ) * x <= 3"]),
        ("5^2\nis\n25", "#", ["5 ^ 2 = 25"]),
    ],
)
def test_reading(text: str, skeleton: str, formulas: list[str]) -> None:
    sentences = read(text)
    assert sentences is not None
    assert [sentence.skeleton for sentence in sentences] == [skeleton]
    assert [mention.text for mention in sentences[0].formulas] == formulas


def test_lines_do_not_multiply_each_other() -> None:
    sentences = read("2^2 = 4\n(x + 1)^2 = x^2 + 2x + 1\nn = 3")
    assert sentences is not None
    assert [mention.text.split(" = ")[0] for s in sentences for mention in s.formulas] == [
        "2 ^ 2",
        "( x + 1 ) ^ 2",
        "n",
    ]


def test_an_empty_line_ends_a_sentence() -> None:
    sentences = read("So the gcd is 1\n \nBy induction it holds.\nFor every n")
    assert sentences is not None
    assert [sentence.skeleton for sentence in sentences] == ["gcd is #", "by induction it holds", "for every #"]


def test_a_formula_that_breaks_off_is_broken() -> None:
    sentences = read("So 4k^2 + + 2 = 6 and 3 + 4 = 7 *.")
    assert sentences is not None
    assert [mention.chain.broken for mention in sentences[0].formulas][-1]

r"""Answers that are the same however they are written, near misses, and what is left to a judge.

Each row is the right answer and the one that was given.
"""

import pytest

from qedmeg.grading.answer_equality import compare_answers
from qedmeg.grading.answer_text import literal, parts, plain

STATEMENT = r"Let $\alpha, x, y, z, n, m, k, p, q, R, r, a, \lambda, s, t$ and $XY$, $XZ$ be as said. Find it."

SAME = [
    (r"\lfloor\sqrt{n-1}\rfloor", r"\left\lfloor (n-1)^{1/2} \right\rfloor"),
    (r"\lfloor\sqrt{n-1}\rfloor", "floor(sqrt(n-1))"),
    ("69169", "69 169"),
    (r"(-\infty,0)\cup\{\frac{1}{2}\}", r"x < 0 \text{ or } x = \frac12"),
    (r"n=1, n \ge 3", "n ≥ 3 or n = 1"),
    ("x=1, y=2", "y=2, x=1"),
    ("1,2", "1, 2, 2"),
    ("f(x)=2x", r"f(x)=2x \text{ for all } x\in\mathbb{R}"),
    (r"30^\circ, 60^\circ", r"\frac{\pi}{3}, \frac{\pi}{6}"),
    (r"180 - 2\alpha", r"180^\circ - 2\alpha"),
    ("1/2", "0.5"),
    ("1/2", r"\frac12"),
    ("0.5", r"$\dfrac{1}{2}$."),
    (r"2\sqrt{2}", r"\sqrt{8}"),
    (r"2\sqrt{2}", "2√2"),
    ("1, 2", "{2, 1}"),
    (r"\{1,2\}", "1 and 2"),
    ("1,2", r"\{1,2\}"),
    ("3", "n = 3"),
    ("3", r"\text{3}"),
    ("4, 27, 3125", "27, 3125, and 4"),
    ("(n-1)!", r"\frac{n!}{n}"),
    ("69169", "69,169"),
    ("69169", "69{,}169"),
    ("69169", r"69\,169"),
    ("45", r"45^\circ"),
    ("45", "45°"),
    ("90", "90 degrees"),
    (r"90^\circ", r"\frac{\pi}{2}"),
    (r"x\ge -\frac65", r"[-\frac{6}{5},\infty)"),
    ("[-6,5]", r"-6\le x\le 5"),
    ("0<c<1", r"c\in(0,1)"),
    ("0<c<1", "(0,1)"),
    (r"(-\infty,-3)\cup(-3,\infty)", r"\mathbb{R}\setminus\{-3\}"),
    ("f(x)=2x+c", "f(t)=2t+C"),
    ("f(x)=2x+c", r"f(x) = c + 2x \text{ for any real constant } c"),
    ("g(x)=2x^{3}+c, g(x)=-2x^{3}+c", r"g(x)=c-2x^3 \text{ or } g(x)=2x^3+c"),
    ("P(x)=-1, P(x)=x+1", r"P(x) = x+1 \text{ and } P(x)=-1"),
    ("(3,2,5)", "(a,b,c)=(3,2,5)"),
    (r"\binom{2k}{k}^2", r"\left(\frac{(2k)!}{k!k!}\right)^2"),
    ("2^{16}+1", "65537"),
    (r"\frac{pq}{p+q}", r"\frac{1}{1/p+1/q}"),
    (r"4\cdot3^{2023}", r"12\cdot 3^{2022}"),
    (r"-\frac{2}{3},0,\frac{2}{3}", r"0,\pm\frac23"),
    ("odd $n$", r"\text{Odd } n"),
    ("2k-1", "k+(k-1)"),
    ("5", "2+3=5"),
    ("5", "|S|=5"),
    ("9801", "99^2"),
    ("1.75", r"\frac{7}{4}"),
    (r"\sqrt{\frac{y}{z}}", r"\frac{\sqrt{y}}{\sqrt{z}}"),
    ("f(x)=x+1", "x+1"),
    ("3a^2-b^2=3", "b^2=3a^2-3"),
    (r"a=s+t, b=(2\lambda)^{st}", r"b=(2\lambda)^{st},\ a=t+s"),
    ("12^{10}", "12^10"),
    ("2", "x=2"),
    (r"\frac{a\sqrt{19}}{2}", r"\frac{\sqrt{19}}{2}a"),
    ("1", "1.0"),
    ("1009", "2^{10}-15"),
    (r"\mathbb{Z}", r"\mathbb{Z}"),
    (r"\frac{3\sqrt{3}}{2\sqrt{5}}", r"\frac{3\sqrt{15}}{10}"),
    (r"\sqrt{2}-1", r"\tan(\pi/8)"),
    (r"n \ge 3", "n>=3"),
    ("2", r"\boxed{2}"),
]
WRONG = [
    ("x=1, y=2", "y=1, x=2"),
    (r"n=1, n \ge 3", r"n \ge 1"),
    (r"\pm 2", "2"),
    ("50803200", r"5.08\times10^7"),
    ("12", "12!"),
    (r"90^\circ", r"\frac{\pi}{3}"),
    ("1,2,3", "1,2"),
    ("1,2", "1,2,3"),
    (r"-\frac23,0,\frac23", r"0,\frac23"),
    ("[0,1)", "[0,1]"),
    ("(0,1)", "(0,1]"),
    ("x>2", r"x\ge2"),
    ("3", "-3"),
    ("1/3", "0.3333333"),
    (r"\sqrt2", "1.41421356"),
    ("R-2r", "r-2R"),
    ("2-2m", "2-2"),
    ("2-2m", "2+2m"),
    ("(1,2)", "(2,1)"),
    ("(3,2,5)", "(3,5,2)"),
    ("f(x)=2x+c", "f(x)=2x"),
    ("f(x)=2x+c", "f(x)=3x+c"),
    ("f(x)=2x+1", "f(x)=2x-1"),
    ("(n-1)!", "n!"),
    ("(n-1)!", "n!-1"),
    ("2^{2024}+1", "2^{2024}"),
    ("847288609444", "847288609445"),
    ("10^{-20}", r"2\cdot10^{-20}"),
    ("3", "3 or 4"),
    ("3", r"\{3,4\}"),
    ("4", "5"),
    ("90", r"89^\circ"),
    ("n-1", "n"),
    (r"\mathbb{Z}", "5"),
    ("1, 2", "3"),
    (r"(-\infty,0]", r"(-\infty,0)"),
    (r"0 < k \le \frac{4}{9}", r"0<k<\frac49"),
    ("5", "10^{10^{10}}"),
    ("XZ-XY", "XY-XZ"),
    ("g(x)=2x^3+c,g(x)=-2x^3+c", "g(x)=2x^3+c"),
    ("3,4", "(3,4,5)"),
    (r"\frac{1}{2}", "2"),
    ("12", "1,2"),
    ("2025", "2,025,000"),
    (r"4\cdot3^{2023}", r"4\cdot3^{2022}"),
    ("3", r"x \ge 3"),
    ("2k-1", "2k+1"),
]
OPEN = [
    ("5", r"5\text{ cm}"),
    ("0<c<1", "c>0, c<1"),
    ("10", "1e1"),
    ("-1", "i^2"),
    ("90", r"\frac{\pi}{2}"),
    ("7", "7, not 8"),
    ("(1,2,3)", "x=1, y=2, z=3"),
    ("5", r"5 \mod 7"),
    ("100", r"50\%"),
    ("f(x)=|x|", "f(x)=x"),
    ("(2k-1)!!", r"\frac{(2k)!}{2^k k!}"),
    ("(0,1)", "0,1"),
    ("odd n", "n=2k+1"),
    ("All powers of 2", "2^n"),
    ("5", "2x+y=5"),
    ("f(x)=2x", "f(x)=2x for odd x"),
    ("4k+3", "4k-1"),
    (r"1,2,\ldots,1235", "1,2,1235"),
    ("4", "2+2=5"),
    ("no solutions", "0"),
    ("2(m-1)", "2(w-1)"),
    (r"n\ge3", "n>2"),
    ("g(x)=x-1", "f(x)=x-1"),
    ("3", "three"),
    ("0", "no solutions"),
    ("(1,2)", r"\{1,2\}"),
    ("5", r"5 \text{ if } n=1"),
    ("5", "5%"),
]


@pytest.mark.parametrize(("right", "given"), SAME)
def test_the_same_answer_in_other_words(right: str, given: str) -> None:
    assert compare_answers(right, given, STATEMENT).same is True


@pytest.mark.parametrize(("right", "given"), WRONG)
def test_near_misses_are_wrong(right: str, given: str) -> None:
    assert compare_answers(right, given, STATEMENT).same is False


@pytest.mark.parametrize(("right", "given"), OPEN)
def test_what_no_rule_decides_is_not_guessed(right: str, given: str) -> None:
    assert compare_answers(right, given, "Find all $n$." if "4k" in right else STATEMENT).same is None


def test_letters_of_the_statement_are_not_to_be_renamed() -> None:
    family = "Find all functions $f$ with $f(x + 1) = f(x) + 2$ for real $x$."
    assert compare_answers("f(x) = 2x + c", "f(x) = 2x + d", family).same is True
    given = "Let $c$ and $d$ be real numbers. " + family
    assert compare_answers("f(x) = 2x + c", "f(x) = 2x + d", given).same is False


def test_the_answer_says_what_is_missing() -> None:
    assert compare_answers("1, 2, 3", "1, 3", "").reason == "the answer lacks 2"
    assert compare_answers("1, 3", "1, 2, 3", "").reason == "the answer has 2"


def test_texts_as_worked_out_by_hand() -> None:
    assert plain(r"$\dfrac12$ or $0.5$.") == r"\frac{1}{2} or {\frac{5}{10}}"
    assert plain(r"\text{All } n \geqslant 2") == r"All n \le 2".replace("le", "ge")
    assert parts(plain(r"\{1, 2\}, (3; 4) and 5")) == [r"\{1, 2\}", "(3; 4)", "5"]
    assert literal(plain("All  powers of $2$.")) == literal(plain("all powers of 2"))
    assert literal(plain("1 2")) != literal(plain("12"))

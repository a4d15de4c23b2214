"""What a formula is worth: its exact value, a number or a quotient of polynomials (sympy), within bounds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, reduce

from sympy.polys.domains import ZZ
from sympy.polys.rings import PolyElement, ring

from qedmeg.grading.formula import Letter, Node, Number, Power, Product, Sum, parse

MAX_EXPONENT = 12  # of a number
MAX_DEGREE = 6
MAX_MONOMIALS = 8
MAX_BELOW = 2  # monomials in a denominator
MAX_BITS = 200  # of a number: 17^8 has 33

LETTERS = "abcdefghijklmnopqrstuvwxyz"
RING, *_GENERATORS = ring(list(LETTERS), ZZ)
ONE = RING.one
_LETTER = dict(zip(LETTERS, _GENERATORS, strict=True))


class NoValue(Exception):
    """The formula divides by zero, takes a root that is not rational, or grows beyond what any proof needs."""


@dataclass(frozen=True, slots=True)
class Value:
    """A number, or a quotient of polynomials over the integers in the letters a to z.

    `number` is None unless no letter is left; `quotient` (numerator, denominator) is None when none is. Most formulas
    of a proof are plain numbers, and those are many times faster without polynomials.
    """

    number: Fraction | None
    quotient: tuple[PolyElement, PolyElement] | None

    def polynomials(self) -> tuple[PolyElement, PolyElement]:
        if self.quotient is not None:
            return self.quotient
        assert self.number is not None  # a value is one or the other
        bottom = self.number.denominator
        return RING.ground_new(self.number.numerator), ONE if bottom == 1 else RING.ground_new(bottom)

    def equals(self, other: "Value") -> bool:
        if self.quotient is None or other.quotient is None:
            return self.number == other.number
        (a, b), (c, d) = self.quotient, other.quotient
        return _same(a, c) if _same(b, d) else _same(a * d, c * b)

    def congruent(self, other: "Value", modulus: int) -> bool:
        """Whether every coefficient of the difference is an integer multiple of `modulus`."""
        if self.number is not None and other.number is not None:
            return (self.number - other.number) % modulus == 0
        (a, b), (c, d) = self.polynomials(), other.polynomials()
        return b is ONE and d is ONE and all(coefficient % modulus == 0 for coefficient in (a - c).values())

    def at(self, letter: str, number: Fraction) -> "Value":
        """The value with a number for its one letter. Raises `NoValue` where that divides by zero."""
        place = LETTERS.index(letter)
        top, bottom = (
            sum((coefficient * number ** powers[place] for powers, coefficient in polynomial.items()), Fraction(0))
            for polynomial in self.polynomials()
        )
        if not bottom:
            raise NoValue
        return constant(top / bottom)

    @property
    def letters(self) -> frozenset[str]:
        exponents = [powers for polynomial in self.quotient or () for powers in polynomial]
        return frozenset(
            letter for letter, powers in zip(LETTERS, zip(*exponents, strict=True), strict=False) if any(powers)
        )

    @property
    def size(self) -> int:
        """How many monomials it is written with."""
        return sum(len(polynomial) for polynomial in self.quotient) - 1 if self.quotient else 1


Environment = Mapping[str, Value]
NOTHING_KNOWN: Environment = {}


def _same(a: PolyElement, b: PolyElement) -> bool:
    """Equality in one ring; sympy's own compares the rings each time, which takes most of the grader's time."""
    return len(a) == len(b) and all(b.get(powers) == coefficient for powers, coefficient in a.items())


def constant(number: Fraction | int) -> Value:
    """A number as a value. Raises `NoValue` when it has too many digits."""
    number = Fraction(number)
    if max(abs(number.numerator), number.denominator).bit_length() > MAX_BITS:
        raise NoValue
    return Value(number, None)


def _quotient(top: PolyElement, bottom: PolyElement) -> Value:
    """`top / bottom` as a value, reduced as far as numbers go. Raises `NoValue`."""
    if not bottom:
        raise NoValue
    if bottom is not ONE and top:
        ratio = Fraction(int(top.LC), int(bottom.LC))
        if bottom.is_ground:
            common = math.gcd(*top.values(), bottom.LC) * (1 if bottom.LC > 0 else -1)
            top, bottom = top.quo_ground(common), bottom.quo_ground(common)
            bottom = ONE if bottom == 1 else bottom
        elif _same(top.mul_ground(ratio.denominator), bottom.mul_ground(ratio.numerator)):
            return constant(ratio)
    if top.is_ground and (bottom.is_ground or not top):
        return constant(Fraction(int(top.LC), int(bottom.LC)))
    if len(top) > MAX_MONOMIALS or len(bottom) > MAX_BELOW:
        raise NoValue
    if any(abs(c).bit_length() > MAX_BITS for polynomial in (top, bottom) for c in polynomial.values()):
        raise NoValue
    return Value(None, (top, bottom))


def evaluate(node: Node, known: Environment = NOTHING_KNOWN) -> Value:
    """The value of a formula, with the letters in `known` replaced by theirs. Raises `NoValue`."""
    if isinstance(node, Number):
        return constant(node.value)
    if isinstance(node, Letter):
        return known[node.name] if node.name in known else Value(None, (_LETTER[node.name], ONE))
    if isinstance(node, Sum):
        return reduce(_plus, [evaluate(part, known) for part in node.parts])
    if isinstance(node, Product):
        return reduce(_times, [evaluate(factor, known) for factor in node.factors])
    if isinstance(node, Power):
        return _power(evaluate(node.base, known), node.exponent)
    return _root(evaluate(node.inside, known))


def _plus(x: Value, y: Value) -> Value:
    if x.number is not None and y.number is not None:
        return constant(x.number + y.number)
    (a, b), (c, d) = x.polynomials(), y.polynomials()
    return _quotient(a + c, b) if b is d or _same(b, d) else _quotient(a * d + c * b, b * d)


def _times(x: Value, y: Value) -> Value:
    if x.number is not None and y.number is not None:
        return constant(x.number * y.number)
    (a, b), (c, d) = x.polynomials(), y.polynomials()
    if _degree(a) + _degree(c) > MAX_DEGREE or _degree(b) + _degree(d) > MAX_DEGREE:
        raise NoValue
    return _quotient(a * c, b if d is ONE else d if b is ONE else b * d)


def _degree(polynomial: PolyElement) -> int:
    return max(map(sum, polynomial), default=0)


def _power(base: Value, exponent: int | None) -> Value:
    if exponent == -1:
        top, bottom = base.polynomials()
        return _quotient(bottom, top)
    if exponent is None or not 0 <= exponent <= MAX_EXPONENT:
        raise NoValue
    return reduce(_times, [base] * exponent) if exponent else constant(1)  # the bounds hold before it outgrows them


def _root(inside: Value) -> Value:
    if inside.number is None or inside.number < 0:
        raise NoValue
    root = Fraction(math.isqrt(inside.number.numerator), math.isqrt(inside.number.denominator))
    if root * root != inside.number:
        raise NoValue
    return constant(root)


@lru_cache(maxsize=20_000)
def value(text: str) -> Value:
    """The value of an expression of our own making."""
    return evaluate(parse(text))

"""What a formula is worth: exact values as quotients of polynomials (sympy), and the form it is written in.

Values decide what is true; forms decide what was shown: "(x + 5)^2 + 4" and "x^2 + 10x + 29" have one value, and only
the first shows that it is positive.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, reduce
from itertools import combinations

from sympy.polys.domains import ZZ
from sympy.polys.rings import PolyElement, ring

from qedmeg.grading.formula import Letter, Node, Number, Power, Product, Root, Sum, parse

MAX_DEGREE = 12
MAX_MONOMIALS = 16
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
        return frozenset(letter for letter, powers in zip(LETTERS, zip(*exponents, strict=True), strict=False) if any(powers))

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
    for polynomial in (top, bottom):
        if len(polynomial) > MAX_MONOMIALS or any(abs(c).bit_length() > MAX_BITS for c in polynomial.values()):
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
    if exponent is None or not 0 <= exponent <= MAX_DEGREE:
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


# ---------------------------------------------------------------------------------------------------- form
Form = Callable[[Node], bool]


def shape(node: Node) -> str:
    """The way a formula is written, up to the order of its parts: equal for "2 * 3k" and "3 * k * 2", not for "6k"."""
    if isinstance(node, Number):
        return str(node.value)
    if isinstance(node, Letter):
        return node.name
    if isinstance(node, Root):
        return f"(sqrt {shape(node.inside)})"
    if isinstance(node, Power) and (node.exponent is None or not 2 <= node.exponent <= 4):
        return f"(^ {shape(node.base)} {node.exponent})"
    if isinstance(node, Sum):
        return f"(+ {' '.join(sorted(_leaves(node, Sum)))})"
    return f"(* {' '.join(sorted(_leaves(node, Product)))})"


def _leaves(node: Node, kind: type[Sum] | type[Product]) -> list[str]:
    """The shapes of what is added (or multiplied), nested sums (or products and small powers) laid open."""
    if kind is Sum and isinstance(node, Sum):
        return [leaf for part in node.parts for leaf in _leaves(part, Sum)]
    if kind is Product and isinstance(node, Product):
        return [leaf for factor in node.factors for leaf in _leaves(factor, Product)]
    if kind is Product and isinstance(node, Power) and node.exponent is not None and 2 <= node.exponent <= 4:
        return _leaves(node.base, Product) * node.exponent
    return [shape(node)]


def expanded(node: Node) -> bool:
    """A sum of monomials (or a single one) in which no two are alike."""
    monomials = [_monomial(part) for part in (node.parts if isinstance(node, Sum) else (node,))]
    return None not in monomials and len(set(monomials)) == len(monomials)


def _monomial(node: Node) -> tuple[tuple[str, int], ...] | None:
    """The letters of a monomial with their exponents: "3 k^2" has (("k", 2),); None for what is no monomial."""
    factors = node.factors if isinstance(node, Product) else (node,)
    powers: list[tuple[str, int]] = []
    numbers = 0
    for factor in factors:
        if isinstance(factor, Number):
            numbers += factor.value != -1
        elif isinstance(factor, Letter):
            powers.append((factor.name, 1))
        elif isinstance(factor, Power) and isinstance(factor.base, Letter) and (factor.exponent or 0) > 0:
            powers.append((factor.base.name, factor.exponent or 0))
        else:
            return None
    return tuple(sorted(powers)) if numbers <= 1 and len({name for name, _ in powers}) == len(powers) else None


def multiple_of(number: int) -> Form:
    """Written as `number` (or a multiple of it) times a polynomial with integer coefficients."""

    def form(node: Node) -> bool:
        if not isinstance(node, Product):
            return False
        literal = Fraction(1)
        others: list[Node] = []
        for factor in node.factors:
            if isinstance(factor, Number):
                literal *= factor.value
            else:
                others.append(factor)
        if not others or literal.denominator != 1 or literal % number != 0:
            return False
        return evaluate(Product(tuple(others))).congruent(constant(0), 1)

    return form


def has_factor(text: str) -> Form:
    """Written as a product with a factor equal to `text`."""
    factor_value = value(text)

    def form(node: Node) -> bool:
        return isinstance(node, Product) and any(evaluate(factor).equals(factor_value) for factor in node.factors)

    return form


def splits_off(text: str) -> Form:
    """Written as a sum in which some of the parts, not all, add up to `text`."""
    part_value = value(text)

    def form(node: Node) -> bool:
        if not isinstance(node, Sum) or len(node.parts) > 6:
            return False
        sizes = range(1, len(node.parts))
        return any(evaluate(_sum(c)).equals(part_value) for size in sizes for c in combinations(node.parts, size))

    return form


def _sum(parts: tuple[Node, ...]) -> Node:
    return parts[0] if len(parts) == 1 else Sum(parts)


def square_plus(text: str, rest: int) -> Form:
    """Written as the square of `text` (or of its negative) plus the number `rest`."""
    square = value(f"({text})^2")

    def form(node: Node) -> bool:
        if not isinstance(node, Sum) or len(node.parts) != 2:
            return False
        numbers = [part.value for part in node.parts if isinstance(part, Number)]
        others = [part for part in node.parts if not isinstance(part, Number)]
        return numbers == [rest] and is_square(others[0]) and evaluate(others[0]).equals(square)

    return form


def is_square(node: Node) -> bool:
    """Written as a power of 2, or as a product of two equal factors."""
    if isinstance(node, Power):
        return node.exponent == 2
    return isinstance(node, Product) and len(node.factors) == 2 and shape(node.factors[0]) == shape(node.factors[1])


def has_root(node: Node) -> bool:
    """Written with a square root in it."""
    if isinstance(node, Root):
        return True
    if isinstance(node, Power):
        return has_root(node.base)
    parts = node.parts if isinstance(node, Sum) else node.factors if isinstance(node, Product) else ()
    return any(has_root(part) for part in parts)


def either(*forms: Form) -> Form:
    return lambda node: any(form(node) for form in forms)

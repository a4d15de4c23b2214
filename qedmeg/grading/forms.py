"""The form a formula is written in: "(x + 5)^2 + 4" and "x^2 + 10x + 29" have one value, and only the first shows that
it is positive. A form may raise `NoValue` on nonsense; `takes` asks it safely.
"""

from collections.abc import Callable
from fractions import Fraction
from itertools import combinations

from qedmeg.grading.algebra import NoValue, constant, evaluate, value
from qedmeg.grading.formula import Letter, Node, Number, Power, Product, Root, Sum

Form = Callable[[Node], bool]


def takes(form: Form, node: Node | None) -> bool:
    """Whether `node` is written in the form; what is only named in words (None), or has no value, is in none."""
    try:
        return node is not None and form(node)
    except NoValue:
        return False


def shape(node: Node) -> str:
    """The way a formula is written, up to the order of its parts: equal for "2 * 3k" and "3 * k * 2", not for "6k"."""
    if isinstance(node, Number):
        return str(node.value)
    if isinstance(node, Letter):
        return node.name
    if isinstance(node, Root):
        return f"(sqrt {shape(node.inside)})"
    if isinstance(node, Sum):
        return f"(+ {' '.join(sorted(_leaves(node, Sum)))})"
    if isinstance(node, Product) or _is_repeated(node):
        return f"(* {' '.join(sorted(_leaves(node, Product)))})"
    return f"(^ {shape(node.base)} {node.exponent})"


def _is_repeated(power: Power) -> bool:
    """Whether the power is to read as a product: "5^2" as "5 * 5". Of nested powers that would have no end."""
    plain = not isinstance(power.base, Power | Product)
    return plain and power.exponent is not None and 2 <= power.exponent <= 4


def _leaves(node: Node, kind: type[Sum] | type[Product]) -> list[str]:
    """The shapes of what is added (or multiplied), nested sums (or products and small powers) laid open."""
    if kind is Sum and isinstance(node, Sum):
        return [leaf for part in node.parts for leaf in _leaves(part, Sum)]
    if kind is Product and isinstance(node, Product):
        return [leaf for factor in node.factors for leaf in _leaves(factor, Product)]
    if kind is Product and isinstance(node, Power) and _is_repeated(node):
        return [shape(node.base)] * (node.exponent or 0)
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


def square_plus_number(node: Node) -> bool:
    """Written as a square plus a number, in either order."""
    if not isinstance(node, Sum) or len(node.parts) != 2:
        return False
    others = [part for part in node.parts if not isinstance(part, Number)]
    return len(others) == 1 and is_square(others[0])


def is_product(node: Node) -> bool:
    """Written as a product with a sum among its factors."""
    return isinstance(node, Product) and any(isinstance(factor, Sum) for factor in node.factors)


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

"""Whether two expressions are equal, with letters that both know and letters of their own.

"Yes" is a proof by sympy, "no" a difference at all the points where the two were tried.
"""

import itertools
import re
from typing import Any

import sympy

_DIGITS = 40
_APART = sympy.Float("1e-20", _DIGITS)
"""Relative difference that makes two evaluated numbers different; sympy evaluates to more digits than this needs."""
_MOST_PARAMETERS = 3
_POINTS = 14
_STEPS = ((1, 0), (5, 3), (7, 11), (3, 8), (11, 5), (13, 1))
"""Where expressions are tried: the letter i is 2 + (a j + b mod 17) at point j, (a, b) being the i-th of these."""

Truth = bool | None


def compare_expressions(one: Any, other: Any, known: frozenset[str], arguments: frozenset[Any]) -> Truth:
    """Expressions of which both, one or none have letters of their own: that the problem does not know."""
    same = _equal(one, other, arguments)
    own, others = ([s for s in sorted(e.free_symbols, key=str) if _name(s) not in known] for e in (one, other))
    if same or not (own or others):
        return same
    if any(symbol.name == "i" for symbol in (*own, *others)):  # which may be the imaginary unit
        return None
    if own and others:
        if len(own) == len(others) <= _MOST_PARAMETERS:
            for order in itertools.permutations(own):
                if _equal(one, other.subs(dict(zip(others, order, strict=True)), simultaneous=True), arguments):
                    return True
        return _compare_families(one, other, own, others, arguments)
    if own:  # many values against one
        return False if one.doit().free_symbols & {*own} else None
    unused = sorted(one.free_symbols - other.free_symbols, key=str)
    if len(others) <= _MOST_PARAMETERS:
        for order in itertools.permutations(unused, len(others)):
            if _equal(one, other.subs(dict(zip(others, order, strict=True)), simultaneous=True), arguments):
                return None  # the same but for the name of a letter, which may or may not be meant
    return False if other.doit().free_symbols & {*others} else None


def _compare_families(one: Any, other: Any, own: list[Any], others: list[Any], arguments: frozenset[Any]) -> Truth:
    """False where a function of the one family is none of the other; never True."""
    if len(own) != 1 or len(others) != 1 or len(arguments) != 1:
        return None
    argument = next(iter(arguments))
    member = other.subs(others[0], sympy.Rational(17, 3))
    at = [(one - member).subs(argument, place) for place in (2, 3, 5, 7)]
    if not at[0].is_polynomial(own[0]) or own[0] not in at[0].free_symbols:
        return None
    solutions = sympy.solve(at[0], own[0])
    for solution in solutions:
        if all(_equal(left.subs(own[0], solution), sympy.Integer(0), frozenset()) is not False for left in at[1:]):
            return None
    return False


def _name(symbol: Any) -> str:
    return re.sub(r"[\\{}_]", "", symbol.name)


def _equal(one: Any, other: Any, arguments: frozenset[Any]) -> Truth:
    """Whether two expressions are equal for all values of their letters.

    They are not when they differ at all the points where both have a value. They are when sympy proves it, and they do
    not differ at any point; letters that are no arguments may be taken for positive in the proof.
    """
    if one == other:
        return True
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    if not symbols:
        return _equal_numbers(one, other)
    differs = _tried(one, other, symbols, signed=False)
    if sum(differs) >= max(_POINTS - 1, 1):  # one point may be where two curves cross
        return False
    if not differs or any(differs) or any(_tried(one, other, symbols, signed=True)):
        return None
    letters = [symbol for symbol in symbols if symbol not in arguments]
    positive = {symbol: sympy.Symbol(f"p{i}", positive=True) for i, symbol in enumerate(letters)}
    for assumed in ({}, positive):
        difference = one.subs(assumed).doit() - other.subs(assumed).doit()
        if sympy.expand(difference) == 0 or difference.equals(0) or sympy.simplify(difference) == 0:
            return True
        if sympy.combsimp(sympy.expand_func(difference)).simplify() == 0:
            return True
    return None


def _tried(one: Any, other: Any, symbols: list[Any], *, signed: bool) -> list[bool]:
    """At each point where both have a value, whether they differ. The points are positive integers, and of every
    residue class for small moduli; with `signed` half of the letters are negative fractions."""
    truths = []
    for j in range(_POINTS):
        steps = itertools.islice(itertools.cycle(_STEPS), len(symbols))
        numbers = [sympy.Integer(2 + (a * j + b) % 17) for a, b in steps]
        if signed:
            numbers = [-number / 3 if (i + j) % 2 else number for i, number in enumerate(numbers)]
        truths.append(_differ_at(one, other, dict(zip(symbols, numbers, strict=True))))
    return [truth for truth in truths if truth is not None]


def _differ_at(one: Any, other: Any, point: dict[Any, Any]) -> bool | None:
    """Whether the two differ at a point; None where one of them has no value there."""
    try:
        values = [expression.evalf(_DIGITS, subs=point) for expression in (one, other)]
    except (ArithmeticError, ValueError, TypeError, NotImplementedError, AttributeError):
        return None
    return _apart(*values)


def _apart(a: Any, b: Any) -> bool | None:
    if not all(isinstance(value, sympy.Number) and value.is_finite for value in (a, b)):
        return None
    size = max(abs(a), abs(b))
    return bool(size != 0 and abs(a - b) > _APART * size)


def _equal_numbers(one: Any, other: Any) -> Truth:
    # Evaluated as decimals first: 10^(10^10) has too many digits to be written out.
    apart = _differ_at(one, other, {})
    if apart:
        return False
    a, b = one.doit(), other.doit()
    if a == b:
        return True
    if a.is_Rational and b.is_Rational:
        return False
    same = a.equals(b)
    return None if same is None else bool(same)

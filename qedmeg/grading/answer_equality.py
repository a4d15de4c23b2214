"""Whether two answers are the same: yes, no, or not to be said by rule.

"Yes" is an exact equality, of sympy objects or of the text. "No" needs a difference that was found: two numbers, two
expressions that differ wherever they were tried, an item that the other lacks. All else is left to a judge.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import sympy
from sympy.core.relational import Relational

from qedmeg.grading.answer_text import Comparison, literal, plain
from qedmeg.grading.answer_value import Item, is_number, read_answer

_DIGITS = 40
_APART = sympy.Float("1e-20", _DIGITS)
"""Relative difference that makes two evaluated numbers different; sympy evaluates to more digits than this needs."""
_MOST_PARAMETERS = 3
_POINTS = 14
_STEPS = ((1, 0), (5, 3), (7, 11), (3, 8), (11, 5), (13, 1))
"""Where expressions are tried: the letter i is 2 + (a j + b mod 17) at point j, (a, b) being the i-th of these."""
_COUNTED = frozenset("ijkmnpq")
"""Letters that mostly stand for whole numbers."""

Truth = bool | None


def compare_answers(reference: str, answer: str, statement: str) -> Comparison:
    """Compare an answer with the right one, both as they are written.

    The problem's statement says which letters have a meaning; others are an answer's own, as the constant of
    `f(x) = 2x + c`. May take any time and memory: `AnswerPool` puts an end to it.
    """
    right, given = plain(reference), plain(answer)
    if literal(right) == literal(given):
        return Comparison(True, "the same text")
    if (r"\degree" in right) != (r"\degree" in given):
        return _compare_degrees(right, given, statement)
    if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+", given) and re.fullmatch(r"-?\d+", right):
        given = given.replace(",", "")
    return _compare_items(read_answer(right), read_answer(given), _letters(statement))


def _compare_degrees(right: str, given: str, statement: str) -> Comparison:
    """Only one of the two has the degree sign: it may have been left out, or the other may be in radians."""
    found = compare_answers(right.replace(r"\degree", " "), given.replace(r"\degree", " "), statement)
    if found.same is not False:
        return found
    radians = r"\cdot \frac{\pi}{180}"
    return compare_answers(right.replace(r"\degree", radians), given.replace(r"\degree", radians), statement)


def _letters(statement: str) -> frozenset[str]:
    """The letters with a meaning in the problem: of its formulas, or of all of it where none is marked."""
    formulas = re.findall(r"\$\$?([^$]*)\$|\\\((.*?)\\\)|\\\[(.*?)\\\]", statement, re.DOTALL)
    text = plain(" ; ".join("".join(groups) for groups in formulas) if formulas else statement)
    indexed = re.findall(r"((?:[A-Za-z]|\\[A-Za-z]+)_)\{?(\w+)\}?", text)
    letters = re.findall(r"\\?[A-Za-z]+", text)
    single = {letter for word in letters if not word.startswith("\\") for letter in word}
    commands = {word.removeprefix("\\") for word in letters if word.startswith("\\")}
    return frozenset(single | commands | {base.removeprefix("\\") + index for base, index in indexed})


# --- lists ----------------------------------------------------------------------------------------------------------


def _compare_items(right: Sequence[Item], given: Sequence[Item], known: frozenset[str]) -> Comparison:
    """Two lists have the same items, in any order and however often."""
    if not right or not given:
        return Comparison(None, "nothing to compare")
    if _is_point_beside_list(right, given, known) or _is_point_beside_list(given, right, known):
        return Comparison(None, "a list beside a point or an interval of the same numbers")
    alone = len(right) == len(given) == 1
    by_name = _by_name(right, given)
    table = [
        [by_name.get(i, j) == j and _compare_item(one, other, known, alone=alone) for j, other in enumerate(given)]
        for i, one in enumerate(right)
    ]
    columns = list(zip(*table, strict=True))
    for items, rows, whose in ((right, table, "the answer lacks"), (given, columns, "the answer has")):
        for item, row in zip(items, rows, strict=True):
            if all(same is False for same in row):
                return Comparison(False, "another value" if alone else f"{whose} {item.text}")
    if all(any(row) for row in table) and all(any(column) for column in columns):
        return Comparison(True, "equal")
    return Comparison(None, "no rule says whether the two are the same")


def _is_point_beside_list(point: Sequence[Item], items: Sequence[Item], known: frozenset[str]) -> bool:
    """Whether the one is `(1, 2)` and the other `1, 2`, of which people may mean the same."""
    if len(point) != 1 or not isinstance(point[0].value, sympy.Tuple) or len(items) != len(point[0].value):
        return False
    if len(items) == 1 or not all(isinstance(item.value, sympy.Expr) for item in items):
        return False
    return _compare_values(point[0].value, sympy.Tuple(*(item.value for item in items)), known) is not False


def _by_name(right: Sequence[Item], given: Sequence[Item]) -> dict[int, int]:
    """For values of several letters ("a = 1, b = 2"), the place of each one's letter in the other list."""
    names = [[item.name for item in items] for items in (right, given)]
    if len(right) < 2 or any(item.name is None or item.arguments for item in (*right, *given)):
        return {}
    if any(len({*some}) < len(some) for some in names) or {*names[0]} != {*names[1]}:
        return {}
    return {i: names[1].index(name) for i, name in enumerate(names[0])}


def _compare_item(right: Item, given: Item, known: frozenset[str], *, alone: bool) -> Truth:
    if literal(right.text) == literal(given.text):
        return True
    if right.value is None or given.value is None:
        return None
    if right.arguments or given.arguments:
        same = _compare_functions(right, given, known)
    else:
        same = _compare_values(right.value, given.value, known)
    if same and not given.plain_name and right.name is None:
        return True
    if same and right.name and given.name and right.name != given.name and not alone:
        return None
    if same is False and (not given.plain_name or not right.plain_name):
        return None
    return same


def _compare_functions(right: Item, given: Item, known: frozenset[str]) -> Truth:
    """Functions are the same when they are at every argument, whatever their arguments are called."""
    arguments = right.arguments or given.arguments
    one, other = right.value, given.value
    if not isinstance(one, sympy.Expr) or not isinstance(other, sympy.Expr):
        return False if isinstance(one, sympy.Set | sympy.Tuple) or isinstance(other, sympy.Set | sympy.Tuple) else None
    if right.arguments and given.arguments:
        if len(right.arguments) != len(given.arguments):
            return None
        own = [sympy.Symbol(f"argument{i}", real=True) for i in range(len(arguments))]
        one = one.subs(dict(zip(right.arguments, own, strict=True)))
        other = other.subs(dict(zip(given.arguments, own, strict=True)))
        arguments = tuple(own)
    same = _compare_expressions(one, other, known | {symbol.name for symbol in arguments}, frozenset(arguments))
    if same and right.name and given.name and right.name != given.name:
        return None
    return same


# --- values ---------------------------------------------------------------------------------------------------------


def _compare_values(one: Any, other: Any, known: frozenset[str]) -> Truth:
    if isinstance(one, sympy.Tuple) and isinstance(other, sympy.Tuple):
        if len(one) != len(other):
            return False
        return _all(_compare_values(a, b, known) for a, b in zip(one, other, strict=True))
    if isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr):
        return _compare_expressions(one, other, known, frozenset())
    if isinstance(one, sympy.Eq) and isinstance(other, sympy.Eq):
        return _compare_equations(one, other)
    sets = [_as_set(value) for value in (one, other)]
    if sets[0] is not None and sets[1] is not None:
        relations = [value for value in (one, other) if not isinstance(value, sympy.Set | sympy.Tuple)]
        letters = frozenset(symbol.name for relation in relations for symbol in relation.free_symbols)
        return _compare_sets(sets[0], sets[1], counted=bool(letters & _COUNTED))
    for a, b in ((one, other), (other, one)):
        if isinstance(a, sympy.Expr) and isinstance(b, sympy.Tuple):
            return False
        if (isinstance(a, sympy.Expr) and not a.is_Symbol) or (isinstance(a, sympy.Tuple) and len(a) > 2):
            whole = _as_set(b)
            if whole is not None and (whole.is_finite_set is False or whole.is_empty):
                return False
    return None


def _all(truths: Any) -> Truth:
    found = list(truths)
    return False if False in found else None if None in found else True


def _compare_expressions(one: Any, other: Any, known: frozenset[str], arguments: frozenset[Any]) -> Truth:
    """Expressions of which both, one or none have letters of their own: that the problem does not know."""
    same = _equal(one, other, arguments)
    own, others = ([s for s in sorted(e.free_symbols, key=str) if _name(s) not in known] for e in (one, other))
    if same or not (own or others):
        return same
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
    if not all(value.is_number and value.is_finite and value.is_real for value in (a, b)):
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


# --- sets and relations ---------------------------------------------------------------------------------------------


def _as_set(value: Any) -> Any:
    """The real numbers that a set, a pair as an interval or inequalities in one letter stand for; else None."""
    if isinstance(value, sympy.Set):
        return value.doit() if not value.free_symbols else None
    if isinstance(value, sympy.Tuple) and len(value) == 2 and all(is_number(side) for side in value):
        low, high = (side.doit() for side in value)
        return sympy.Interval.open(low, high) if low.is_extended_real and high.is_extended_real else None
    relations = value.args if _is_and(value) else (value,)
    if not all(isinstance(relation, Relational) and not isinstance(relation, sympy.Eq) for relation in relations):
        return None
    letters = set().union(*(relation.free_symbols for relation in relations))
    if len(letters) != 1:
        return None
    return sympy.Intersection(*(relation.doit().as_set() for relation in relations)).doit()


def _is_and(value: Any) -> bool:
    return isinstance(value, sympy.And) or type(value).__name__ == "And"


def _compare_sets(one: Any, other: Any, *, counted: bool) -> Truth:
    """`counted`: they may be sets of whole numbers, written as inequalities."""
    if one == other:
        return True
    difference = sympy.SymmetricDifference(one, other).doit()
    if difference.is_empty:
        return True
    if difference.is_empty is None:
        return None
    # "n > 2" and "n >= 3" are the same for whole numbers, of which nothing here says whether they are meant.
    if counted:
        if one.intersect(sympy.S.Integers).is_empty:
            return False
        return False if difference.intersect(sympy.S.Integers).is_empty is False else None
    return False


def _compare_equations(one: Any, other: Any) -> Truth:
    """Equations are the same when one is a multiple of the other; that two are not is never said."""
    a, b = (sympy.expand((equation.lhs - equation.rhs).doit()) for equation in (one, other))
    if a == 0 or b == 0:
        return None
    ratio = sympy.simplify(a / b)
    return True if ratio.is_number and ratio != 0 else None

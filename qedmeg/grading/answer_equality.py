"""Whether two answers are the same: yes, no, or not to be said by rule.

"Yes" is an exact equality, of sympy objects or of the text. "No" needs a difference that was found: two numbers, two
expressions that differ wherever they were tried, an item that the other lacks. All else is left to a judge.
"""

import re
from collections.abc import Sequence
from typing import Any

import sympy
from sympy.core.relational import Relational

from qedmeg.grading.answer_expressions import Truth, compare_expressions
from qedmeg.grading.answer_text import Comparison, literal, plain
from qedmeg.grading.answer_value import Item, is_number, read_answer

_COUNTED = frozenset("ijkmnpq")
"""Letters that mostly stand for whole numbers."""


def compare_answers(reference: str, answer: str, statement: str) -> Comparison:
    """Compare an answer with the right one, both as they are written.

    The problem's statement says which letters have a meaning; others are an answer's own, as the constant of
    `f(x) = 2x + c`. May take any time and memory: `AnswerPool` puts an end to it.
    """
    right, given, known = plain(reference), plain(answer), _letters(statement)
    if (r"\degree" in right) != (r"\degree" in given):  # it was left out, or the other is in radians
        for meant in (" ", r"\cdot \frac{\pi}{180}"):
            one, other = (text.replace(r"\degree", meant) for text in (right, given))
            found = _compare_plain(one, other, known)
            if found.same is not False:
                break
        return found
    found = _compare_plain(right, given, known)
    if found.same is False and (r"\pi" in right) != (r"\pi" in given):
        one, other = (text.replace(r"\pi", "180 ") for text in (right, given))
        if _compare_plain(one, other, known).same:
            return Comparison(None, "the same if the one is an angle in degrees and the other in radians")
    return found


def _compare_plain(right: str, given: str, known: frozenset[str]) -> Comparison:
    if literal(right) == literal(given):
        return Comparison(True, "the same text")
    if re.fullmatch(r"-?\d{1,3}(?:[, ]\d{3})+", given) and re.fullmatch(r"-?\d+", right):
        given = re.sub("[, ]", "", given)
    return _compare_items(read_answer(right), read_answer(given), known)


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
    if (found := _compare_unions(right, given)) is not None:
        return found
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


def _compare_unions(right: Sequence[Item], given: Sequence[Item]) -> Comparison | None:
    """Lists that hold intervals or inequalities, as the sets of numbers that they come to; None where they are none."""
    if len(right) == len(given) == 1:
        return None
    values = [[item.value for item in items] for items in (right, given)]
    if not any(isinstance(value, sympy.Set) or _is_relation(value) for some in values for value in some):
        return None
    sets = [[sympy.FiniteSet(v.doit()) if is_number(v) else _as_set(v) for v in some] for some in values]
    if any(one is None for some in sets for one in some):
        return None
    same = _compare_sets(sympy.Union(*sets[0]), sympy.Union(*sets[1]), counted=True)
    inequalities = all(_is_relation(value) for some in values for value in some)
    if inequalities and not same and sympy.Intersection(*sets[0]) == sympy.Intersection(*sets[1]):
        same = None  # "c > 0, c < 1" means both
    return Comparison(same, "the sets of numbers compared")


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
    same = compare_expressions(one, other, known | {symbol.name for symbol in arguments}, frozenset(arguments))
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
        return compare_expressions(one, other, known, frozenset())
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


# --- sets and relations ---------------------------------------------------------------------------------------------


def _as_set(value: Any) -> Any:
    """The real numbers that a set, a pair as an interval or inequalities in one letter stand for; else None."""
    if isinstance(value, sympy.Set):
        return value.doit() if not value.free_symbols else None
    if isinstance(value, sympy.Tuple) and len(value) == 2 and all(is_number(side) for side in value):
        low, high = (side.doit() for side in value)
        return sympy.Interval.open(low, high) if low.is_extended_real and high.is_extended_real else None
    if value is None or not _is_relation(value):
        return None
    relations = value.args if _is_and(value) else (value,)
    letters = set().union(*(relation.free_symbols for relation in relations))
    if len(letters) != 1:
        return None
    return sympy.Intersection(*(relation.doit().as_set() for relation in relations)).doit()


def _is_relation(value: Any) -> bool:
    """An inequality, or several at a time."""
    relations = value.args if _is_and(value) else (value,)
    return all(isinstance(relation, Relational) and not isinstance(relation, sympy.Eq) for relation in relations)


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

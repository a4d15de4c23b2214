"""What an answer means: its items as sympy objects, or the words that no formula says.

LaTeX is parsed by latex2sympy2_extended, the parser of math-verify. What is compared is exact: its verifier is not
used, which takes 0.3333333 for 1/3, `R - 2r` for `r - 2R` and `(0, 1)` for `0, 1`.
"""

import re
from dataclasses import dataclass
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from sympy.core.relational import Relational

from qedmeg.grading.answer_text import closing, literal, parts

_PARSING = ConversionConfig(lowercase_symbols=False)
_CONNECTIVES = re.compile(
    r"(?<![\\A-Za-z])(?:if|iff|otherwise|where|when|whenever|such|with|for|except|excluding|only|unless|mod|is|are)(?![A-Za-z])"
)
_WORD = re.compile(
    r"(?<![\\A-Za-z])(?:[A-Za-z]{4,}|all|and|any|are|for|if|is|no|not|odd|of|one|or|the|to|two|set|yes|cm|mm|km|kg|ft)(?![A-Za-z])"
)
_LETTER = r"(?:[A-Za-z]|\\[A-Za-z]+)(?:_(?:\w|\{\w+\}))?'?"
_SYMBOLS = rf"{_LETTER}(?:\s*,\s*{_LETTER})*"
_HARMLESS = r"(?:a|an|any|some|every|each|all|arbitrary|real|constants?|numbers?|is|are|being|the|fixed)"
_OF_ARGUMENTS = r"(?:positive|nonnegative|integers?|natural|rationals?|reals?|complex|values?)"
_DOMAIN = r"(?:\s*\\in\s*\\mathbb\s*\{?[A-Z]\}?(?:\s*\^\s*\{?[+*]\}?|_\{?>\s*0\}?)?)"
_QUANTIFIER = re.compile(
    rf"[\s,(]*(?:where|with|for)\s+(?P<words>(?:{_HARMLESS}\s+|{_OF_ARGUMENTS}\s+)*)(?P<symbols>{_SYMBOLS})"
    rf"(?P<domain>{_DOMAIN})?(?P<after>(?:\s+(?:{_HARMLESS}|{_OF_ARGUMENTS}))*)\s*\)?$"
)
_FUNCTION = re.compile(rf"^({_LETTER})\s*\(\s*({_SYMBOLS})\s*\)\s*=\s*([^=].*)$")
_LETTERS_ONLY = re.compile(r"^(?:\\angle|\\triangle|\||[A-Za-z]|\\[A-Za-z]+|_\{?\w+\}?|\([^()]*\)|[{}'\s+/-])+$")
_NOT_READ = re.compile(r"\\ldots|\\[bp]?mod(?![A-Za-z])|\\approx|\\overline|\d\s+\d|\d[eE][+-]?\d")
"""Left out, remainders, rounded, periodic; numbers side by side and `1e3`, which the parser takes for products."""
_MIXED = re.compile(r"(?<=\d)(\s*)(?=\\frac\{(\d+)\}\{(\d+)\})")


class Unreadable(Exception):
    """The text is no formula that is understood."""


@dataclass(frozen=True)
class Item:
    """One item of an answer.

    `value` is a sympy expression, a `Tuple` (`(a, b)` too, which may be an open interval), a `Set`, a relational or an
    `And` of them; None where the item is words or is not understood."""

    text: str
    """Its plain text."""
    value: Any = None
    name: str | None = None
    """Of `x = 3` the `x`, of `f(x) = 3x` the `f`."""
    arguments: tuple[Any, ...] = ()
    """Of `f(x) = 3x` the `x`."""
    plain_name: bool = True
    """The name is a letter or what a letter may stand for, not an expression such as `AB / CD`."""


def read_answer(text: str) -> tuple[Item, ...]:
    """The items of a plain answer, in their order. One whose words join its parts is a single item without a value."""
    text = _without_quantifiers(text)
    if _CONNECTIVES.search(text):
        return (Item(text),)
    return tuple(item for part in parts(text) for item in _read_part(part))


def is_set_of_items(text: str) -> bool:
    """Whether all of the text is one pair of set braces."""
    return text.startswith(r"\{") and closing(text, 1) == len(text) - 1


def _without_quantifiers(text: str) -> str:
    """The text without an ending such as "for all real x" or "where c is any constant", which restricts nothing."""
    while (found := _QUANTIFIER.search(text)) is not None:
        words = f"{found['words']} {found['after']}".split()
        strict = [word for word in words if not re.fullmatch(_HARMLESS, word)]
        if strict or ((found["domain"] or "").count("R") == 0 and found["domain"]):
            functions = re.findall(rf"{_LETTER}\s*\(\s*({_SYMBOLS})\s*\)\s*=", text)
            arguments = {name.strip() for function in functions for name in function.split(",")}
            if not {name.strip() for name in found["symbols"].split(",")} <= arguments:
                return text
        text = text[: found.start()].strip(" ,;(")
    return text


def _read_part(text: str) -> list[Item]:
    if is_set_of_items(text):
        inside = text[2:-2]
        if not re.search(r"\\mid|:|\|", inside):
            return [item for part in parts(inside) for item in _read_part(part)]
    if text.count(r"\pm") == 1 and r"\mp" not in text:
        return [item for sign in "+-" for item in _read_part(text.replace(r"\pm", sign).lstrip("+ "))]
    try:
        return [_read_item(text)]
    except Unreadable:
        return [Item(text)]


def _read_item(text: str) -> Item:
    if _WORD.search(text):
        raise Unreadable
    function = _FUNCTION.match(text)
    if function is not None and "=" not in function[3]:
        arguments = [parse(name) for name in function[2].split(",")]
        if all(isinstance(argument, sympy.Symbol) for argument in arguments):
            return Item(text, _value(function[3]), function[1], tuple(arguments))
    member = re.match(rf"^({_LETTER}|\({_SYMBOLS}\))\s*\\in\s*(.*)$", text)
    if member is not None:
        return Item(text, _set(member[2]), literal(member[1]))
    if "=" in text and not re.search(r"\\(?:ne|le|ge)(?![A-Za-z])|[<>]", text):
        return _read_equation(text)
    return Item(text, _value(text))


def _read_equation(text: str) -> Item:
    sides = [side.strip() for side in text.split("=")]
    if not all(sides):
        raise Unreadable
    left = sides[0]
    if len(sides) == 2 and re.fullmatch(_LETTER, left):
        return Item(text, _value(sides[1]), literal(left))
    last = _value(sides[-1])
    values = [_value_or_none(side) for side in sides[:-1]]
    if all(is_number(value) for value in values) and is_number(last):
        if all(exactly_equal(value, last) for value in values):
            return Item(text, last)
        raise Unreadable
    if isinstance(last, sympy.Tuple) and isinstance(values[0], sympy.Tuple) and len(sides) == 2:
        return Item(text, last, literal(left))
    if _LETTERS_ONLY.match(left) and not getattr(last, "free_symbols", None):
        middle = [value for value in values[1:] if is_number(value)]
        if all(exactly_equal(value, last) for value in middle):
            return Item(text, last, literal(left), plain_name=False)
        raise Unreadable
    if len(sides) == 2 and isinstance(values[0], sympy.Expr) and isinstance(last, sympy.Expr):
        return Item(text, sympy.Eq(values[0], last, evaluate=False))
    raise Unreadable


def is_number(value: Any) -> bool:
    return isinstance(value, sympy.Expr) and not value.free_symbols


def exactly_equal(a: Any, b: Any) -> bool:
    return bool(a.equals(b))


def _value_or_none(text: str) -> Any:
    try:
        return _value(text)
    except Unreadable:
        return None


def _value(text: str) -> Any:
    bracket = _bracket(text)
    return parse(text) if bracket is None else bracket


def _set(text: str) -> Any:
    value = _value(text)
    if isinstance(value, sympy.Tuple) and len(value) == 2 and text.startswith("("):
        return sympy.Interval.open(*value)
    if is_set_of_items(text):
        return sympy.FiniteSet(*(_value(part) for part in parts(text[2:-2])))
    if not isinstance(value, sympy.Set):
        raise Unreadable
    return value


def _bracket(text: str) -> Any:
    """The tuple or the interval that the whole text is; None where it is none."""
    if text[:1] not in ("(", "[") or closing(text, 0) != len(text) - 1:
        return None
    inside = parts(text[1:-1])
    if len(inside) < 2:
        return None
    values = [_value(part) for part in inside]
    if text[0] == "(" and text[-1] == ")":
        return sympy.Tuple(*values)
    if len(values) != 2 or not all(isinstance(value, sympy.Expr) for value in values):
        raise Unreadable
    if all(is_number(value) for value in values):
        values = [value.doit() for value in values]
    return sympy.Interval(*values, text[0] == "(", text[-1] == ")")


def parse(text: str) -> Any:
    """The sympy object that LaTeX stands for, nothing in it evaluated yet. Raises `Unreadable`."""
    text = text.replace(r"\degree", "").strip()
    if not text or _NOT_READ.search(text):
        raise Unreadable
    text = _MIXED.sub(lambda found: "" if int(found[2]) < int(found[3]) else r"\cdot ", text)
    try:
        value = latex2sympy(
            text, is_real=True, convert_degrees=False, normalization_config=None, conversion_config=_PARSING
        )
    except Exception as error:  # of its parser, of sympy, RecursionError: all of them say that it was not understood
        raise Unreadable from error
    if "!!" in text and isinstance(value, sympy.Basic):
        inner = sympy.Wild("inner")
        value = value.replace(sympy.factorial(sympy.factorial(inner)), sympy.factorial2(inner))
    if isinstance(value, list | bool | str) or not isinstance(value, sympy.Basic):
        raise Unreadable
    if isinstance(value, Relational) and not all(isinstance(side, sympy.Expr) for side in value.args):
        raise Unreadable
    return value

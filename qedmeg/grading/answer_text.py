r"""Answers as text: the many ways to write one brought to few, and lists taken apart.

    plain(r"$\dfrac12$ or $0.5$.")  ->  r"\frac{1}{2} or \frac{5}{10}"
    parts(plain("{1, 2}, 3 and 4")) ->  ["{1, 2}", "3", "4"]

LaTeX stays LaTeX; `$` and spacing go, words stand as they are.
"""

import re
import unicodedata
from dataclasses import dataclass

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_CHARACTERS = {
    "−": "-", "–": "-", "⋅": r"\cdot ", "·": r"\cdot ", "×": r"\cdot ", "÷": "/", "⁄": "/",
    "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "∞": r"\infty ", "π": r"\pi ",
    "±": r"\pm ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∖": r"\setminus ", "∅": r"\emptyset ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda ", "ρ": r"\rho ", "φ": r"\varphi ",
    "θ": r"\theta ", "°": r"\degree ", "…": r"\ldots ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ",
    "⌉": r"\rceil ", "’": "'", "“": "", "”": "",
}  # fmt: skip
_TEXT = r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|mathop|operatorname\*?|mbox|emph|boxed|fbox|boldsymbol|bm)"  # noqa: E501
_SMALL_FONT = r"\\(?:displaystyle|textstyle|limits|nolimits|left|right|[bB]igg?[lrm]?|middle|thinspace)(?![A-Za-z])"
_ARGUMENT = r"(\{(?:[^{}]|\{[^{}]*\})*\}|\\[A-Za-z]+|[0-9A-Za-z])"
_STEPS: tuple[tuple[str, str], ...] = (
    (r"\\\\(?:\[[^\]]*\])?", " , "),
    (r"(?<=\d)(?:\\[,;!: ]|\{,\}|~)+(?=\d{3}(?!\d))", ""),  # thousands
    (r"\\[()\[\]]|\$|\\\$|`|\"", " "),
    (_SMALL_FONT + r"\s*\.?", ""),
    (r"\\!", ""),
    (r"\\[,;: ]|~|\\q?quad(?![A-Za-z])|&", " "),
    (_TEXT + r"\s*\{([^{}]*)\}", r" \1 "),
    (_TEXT + r"(?=\s*\{)", ""),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
    (r"\\leq(?:slant)?(?![A-Za-z])|<=|≦", r"\\le "),
    (r"\\geq(?:slant)?(?![A-Za-z])|>=|≧", r"\\ge "),
    (r"\\lt(?![A-Za-z])", "<"),
    (r"\\gt(?![A-Za-z])", ">"),
    (r"\\neq(?![A-Za-z])", r"\\ne "),
    (r"\\[lr]?dots[a-z]?(?![A-Za-z])|\\cdots(?![A-Za-z])|\.\.\.+", r"\\ldots "),
    (r"\\times(?![A-Za-z])", r"\\cdot "),
    (r"\\lbrace(?![A-Za-z])", r"\\{"),
    (r"\\rbrace(?![A-Za-z])", r"\\}"),
    (r"\\(?:backslash|smallsetminus)(?![A-Za-z])", r"\\setminus "),
    (r"\\varnothing(?![A-Za-z])", r"\\emptyset "),
    (r"\^\s*\{?\s*\\circ\s*\}?", r"\\degree "),
    (r"(?<=\d)\s*degrees?\b", r"\\degree "),
    (r"(?<=[\w)}])\*\*(?=[\w({])", "^"),
    (r"\*\*|__", ""),
    (r"\*", r"\\cdot "),
    (r"(?<![\\A-Za-z])(sqrt|log|ln|sin|cos|tan|gcd|lcm|max|min|floor|ceil|exp)(?=\s*[({_^\\\d]|$)", r"\\\1"),
    (r"(?<![\\A-Za-z])(?:infinity|infty|inf|oo)(?![A-Za-z])", r"\\infty "),
    (r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi "),
    (r"\\floor\s*\(([^()]*)\)", r"\\lfloor \1\\rfloor "),
    (r"\\ceil\s*\(([^()]*)\)", r"\\lceil \1\\rceil "),
    (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"\\sqrt\s*(\[[^\[\]]*\])?\s*([0-9A-Za-z])", r"\\sqrt\1{\2}"),
    (r"\\frac\s*" + _ARGUMENT + r"\s*" + _ARGUMENT, r"\\frac{\1}{\2}"),
    (r"\\binom\s*" + _ARGUMENT + r"\s*" + _ARGUMENT, r"\\binom{\1}{\2}"),
    (r"\^\s*(-?\d{2,})", r"^{\1}"),
    (r"\^\s*\(([^()]*)\)", r"^{\1}"),
)
_COMPILED = [(re.compile(pattern), replacement) for pattern, replacement in _STEPS]
_DOUBLE_BRACES = re.compile(r"\{\{((?:[^{}]|\{[^{}]*\})*)\}\}")
_DECIMAL = re.compile(r"(?<![\d.,])(\d*)\.(\d+)(?![\d.])")
_SEPARATOR = re.compile(r"\\[{}A-Za-z]|\\lfloor|[()\[\]{}]|[,;]|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])")


@dataclass(frozen=True)
class Comparison:
    """Whether two answers are the same; `same` is None where no rule says it."""

    same: bool | None
    reason: str


def plain(text: str) -> str:
    """The answer in the few ways of writing that the rest of the reading knows; decimals become exact fractions."""
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda found: "^{" + found[0].translate(_SUPERSCRIPTS) + "}", text)
    text = re.sub(r"[₀₁₂₃₄₅₆₇₈₉]+", lambda found: "_{" + found[0].translate(_SUBSCRIPTS) + "}", text)
    text = re.sub(r"√\s*(\([^()]*\)|\w+)", r"\\sqrt{\1}", text)
    for character, written in _CHARACTERS.items():
        text = text.replace(character, written)
    text = unicodedata.normalize("NFKC", text)
    for pattern, replacement in _COMPILED:
        text = pattern.sub(replacement, text)
    text = _DOUBLE_BRACES.sub(r"{\1}", text)
    text = _trimmed(text)
    return _DECIMAL.sub(_fraction, text)


def _fraction(decimal: re.Match[str]) -> str:
    return rf"{{\frac{{{int(decimal[1] + decimal[2])}}}{{{10 ** len(decimal[2])}}}}}"


def _trimmed(text: str) -> str:
    text = re.sub(r"\s+", " ", text).strip().rstrip(".,;: ").lstrip(",;: ")
    while text.startswith("{") and closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def literal(text: str) -> str:
    """What is left of a plain answer when spelling does not count: two with the same are the same answer."""
    text = re.sub(r"(?<![\\A-Za-z])[A-Z][a-z]+(?![A-Za-z])", lambda word: word[0].lower(), text)
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", text)
    text = re.sub(r"\s+", " ", text)
    return re.sub(r"(?<!\d) | (?!\d)", "", text)


def parts(text: str) -> list[str]:
    """The items of a list that stands in no bracket: between commas, semicolons, "and" and "or"."""
    found, depth, start = [], 0, 0
    for mark in _SEPARATOR.finditer(text):
        if mark[0] in ("(", "[", "{", r"\{"):
            depth += 1
        elif mark[0] in (")", "]", "}", r"\}"):
            depth -= 1
        elif depth == 0 and not mark[0].startswith("\\"):
            found.append(text[start : mark.start()])
            start = mark.end()
    found.append(text[start:])
    return [part for part in map(_trimmed, found) if part]


def closing(text: str, start: int) -> int:
    r"""Where the bracket that opens at `start` is closed, an escaped brace counted by its brace; -1 where it is not.

    Round and square brackets close each other: `[0, 1)`.
    """
    depth = 0
    for place in range(start, len(text)):
        if text[place] in "([{":
            depth += 1
        elif text[place] in ")]}":
            depth -= 1
            if depth == 0:
                return place
    return -1

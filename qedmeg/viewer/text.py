"""Long texts in parts, and parts in paragraphs small enough to have their mathematics set one at a time."""

import re
from dataclasses import dataclass

PART = 40_000  # characters
_PARAGRAPH = 4_000
_HEADLINE = 160
_BLANK_LINE = re.compile(r"\n[ \t]*\n\s*")
_ENVIRONMENT = re.compile(r"\\(begin|end)\{")


@dataclass(frozen=True)
class Part:
    """One part of a text."""

    paragraphs: list[str]
    number: int
    """From 1."""
    parts: int
    characters: int
    """Of the whole text."""


def part_of(text: str, number: int, size: int = PART) -> Part:
    """Part `number` of a text, or the last where there are fewer. Parts end at a blank line where one is near."""
    ends = _ends(text, size)
    number = min(max(number, 1), len(ends))
    begin = ends[number - 2] if number > 1 else 0
    return Part(paragraphs(text[begin : ends[number - 1]]), number, len(ends), len(text))


def _ends(text: str, size: int) -> list[int]:
    ends = []
    begin = 0
    while len(text) - begin > size:
        near = begin + size - size // 10
        blank = text.rfind("\n\n", near, begin + size)
        begin = blank + 2 if blank >= 0 else begin + size
        ends.append(begin)
    return [*ends, len(text)]


def paragraphs(text: str, longest: int = _PARAGRAPH) -> list[str]:
    """The text between blank lines; a blank line within a displayed formula divides nothing. What is longer than
    `longest` is divided all the same, at a line's end or a space where there is one."""
    joined: list[str] = []
    for piece in _BLANK_LINE.split(text):
        if joined and _open(joined[-1]) and len(joined[-1]) + len(piece) < longest:
            joined[-1] += "\n" + piece  # one line's end: a blank line would be an error in LaTeX
        elif piece.strip():
            joined.append(piece)
    return [short for piece in joined for short in _divided(piece.strip("\n"), longest)]


def _open(text: str) -> bool:
    """Whether a displayed formula begins in the text and does not end in it."""
    begun = [kind == "begin" for kind in _ENVIRONMENT.findall(text)]
    return text.count("$$") % 2 == 1 or text.count(r"\[") > text.count(r"\]") or sum(begun) * 2 > len(begun)


def _divided(text: str, longest: int) -> list[str]:
    pieces = []
    while len(text) > longest:
        near = (text.rfind(mark, longest // 2, longest) for mark in ("\n", " "))
        at = next((place for place in near if place > 0), longest)
        pieces.append(text[:at])
        text = text[at:].lstrip("\n")
    return [*pieces, text]


def headline(text: str) -> str:
    """The beginning of a text in one line, with its formulas within the line and none of them cut in two."""
    line = " ".join(text[: 4 * _HEADLINE].split()).replace("$$", "$")
    if len(line) <= _HEADLINE:
        return line
    cut = line[:_HEADLINE]
    return (cut[: cut.rfind("$")] if cut.count("$") % 2 else cut).rstrip() + " …"

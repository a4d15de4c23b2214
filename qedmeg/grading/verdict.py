"""Reading a judge's verdict. Whatever is not beyond doubt is refused: a verdict is never guessed.

The verdict carries a key that the author of the proof cannot know, so that one quoted from the proof is none. In text
it is a block of lines,

    <verdict KEY>
    item 1: 3 | reason
    item 2: 0 | reason
    points: 3
    </verdict KEY>

without the item lines where the rubric has no items; as structured output it is the JSON object of `json_schema`.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qedmeg.fence import sendable
from qedmeg.thinking import END_OF_THINK, THINK

MAX_REASON_CHARS = 1000
_SHOWN_CHARS = 60
_ITEM = re.compile(r"item ([0-9]{1,3})\s*:\s*([0-9]{1,4})\s*(?:\|(.*))?", re.IGNORECASE)
_POINTS = re.compile(r"points\s*:\s*([0-9]{1,4})\s*(?:\|(.*))?", re.IGNORECASE)


class NoVerdict(Exception):
    """The answer holds no verdict that counts; the message says why."""


class Ambiguous(NoVerdict):
    """The answer holds two different verdicts."""


@dataclass(frozen=True)
class Verdict:
    """Points for each item of the rubric (for the whole proof as one where it has none), and a reason for each."""

    points: tuple[int, ...]
    reasons: tuple[str, ...]


def read_text(content: str, key: str, of: Sequence[int], *, by_item: bool) -> Verdict:
    """The verdict in the text of a judge's final message: the last block that is well formed.

    `of` is the most that each item is worth. What stands before `</think>` is reasoning and is not read. A block that
    is not well formed may be followed by one that is, which then counts; the last must be well formed, and two that
    differ are `Ambiguous`. Raises `NoVerdict`. Takes time linear in the length of the text.
    """
    _, mark, final = content.rpartition(END_OF_THINK)
    if not mark and content.lstrip().startswith(THINK):
        raise NoVerdict("it ends within the reasoning")
    parts = final.split(f"<verdict {key}>")[1:]
    if not parts:
        raise NoVerdict("no verdict with the key in it")
    blocks = [body for body, end, _ in (part.partition(f"</verdict {key}>") for part in parts) if end]
    if f"</verdict {key}>" not in parts[-1]:
        raise NoVerdict("a verdict that does not end")
    verdicts = [_read_block(blocks[-1], of, by_item)]
    for block in blocks[:-1]:
        try:
            verdicts.append(_read_block(block, of, by_item))
        except NoVerdict:
            continue  # a draft, or the form restated
    if len({verdict.points for verdict in verdicts}) > 1:
        raise Ambiguous("two verdicts that differ")
    return verdicts[0]


def _read_block(block: str, of: Sequence[int], by_item: bool) -> Verdict:
    lines = [line.strip() for line in block.splitlines() if line.strip()]
    if len(lines) != (len(of) + 1 if by_item else 1):
        raise NoVerdict(f"{len(lines)} lines in the verdict, with {len(of)} items to grade")
    total = _POINTS.fullmatch(lines[-1])
    if total is None:
        raise NoVerdict(f"no whole number of points: {_shown(lines[-1])}")
    if not by_item:
        return _checked([int(total[1])], [total[2] or ""], int(total[1]), of)
    points, reasons = [], []
    for number, line in enumerate(lines[:-1], start=1):
        item = _ITEM.fullmatch(line)
        if item is None or int(item[1]) != number:
            raise NoVerdict(f"no whole number of points for item {number}: {_shown(line)}")
        points.append(int(item[2]))
        reasons.append(item[3] or "")
    return _checked(points, reasons, int(total[1]), of)


def _checked(points: Sequence[int], reasons: Sequence[str], total: int, of: Sequence[int]) -> Verdict:
    for number, (given, most) in enumerate(zip(points, of, strict=True), start=1):
        if not 0 <= given <= most:
            raise NoVerdict(f"{given} points for item {number}, which is worth 0 to {most}")
    if sum(points) != total:
        raise NoVerdict(f"the items add up to {sum(points)}, not to {total}")
    # JSON can write half of a surrogate pair, with which no grade could be kept
    return Verdict(tuple(points), tuple(sendable(reason.strip()[:MAX_REASON_CHARS]) for reason in reasons))


# --- structured output ----------------------------------------------------------------------------------------------


def json_schema(of: Sequence[int], *, by_item: bool) -> dict[str, Any]:
    """JSON schema of a verdict. The same for all proofs of a problem, so that a server compiles it once.

    Allowed points are listed one by one: not every server knows `minimum` and `maximum`.
    """
    text = {"type": "string"}
    if not by_item:
        return _object({"key": text, "reason": text, "points": _range(of[0])})
    items = {f"item_{i}": _object({"reason": text, "points": _range(most)}) for i, most in enumerate(of, start=1)}
    return _object({"key": text, **items, "points": _range(sum(of))})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def _range(most: int) -> dict[str, Any]:
    return {"type": "integer", "enum": [*range(most + 1)]}


def read_json(content: str, key: str, of: Sequence[int], *, by_item: bool) -> Verdict:
    """The verdict in a judge's structured output: the whole content is one object of the schema. Raises `NoVerdict`."""
    try:
        answer = json.loads(content, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise NoVerdict(f"not one JSON object: {_shown(content)}") from None
    names = ["key", *(f"item_{i}" for i in range(1, len(of) + 1)), "points"] if by_item else ["key", "reason", "points"]
    if not isinstance(answer, dict) or sorted(answer) != sorted(names):
        raise NoVerdict(f"not a verdict: {_shown(content)}")
    if answer["key"] != key:
        raise NoVerdict("a verdict with another key")
    items = [answer[name] for name in names[1:-1]] if by_item else [answer]
    points, reasons = [], []
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict) or type(item.get("points")) is not int or type(item.get("reason")) is not str:
            raise NoVerdict(f"no whole number of points and reason for item {number}")
        points.append(item["points"])
        reasons.append(item["reason"])
    if type(answer["points"]) is not int:
        raise NoVerdict(f"no whole number of points: {_shown(str(answer['points']))}")
    return _checked(points, reasons, answer["points"], of)


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name twice in one object")
    return dict(pairs)


def _shown(text: str) -> str:
    return repr(text[:_SHOWN_CHARS])

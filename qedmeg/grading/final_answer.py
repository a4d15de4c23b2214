"""The final answer that a response gives: what stands in its last box, or what its last lines call the answer."""

import re

from qedmeg.thinking import END_OF_THINK

LAST_LINES = 6
"""Lines at the end of a response in which an answer without a box is looked for."""

_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\[{}\\]|[{}]")
_JOINED = re.compile(r"[\s$.,;*]*(?:and|or)?[\s$,;*]*", re.IGNORECASE)
_NAMED = re.compile(
    r"^[\s>#*_-]*(?:(?:so|thus|hence|therefore)\b,?\s*)?(?:the |our |my )?(?:final )?answer"
    r"(?:[\s*_]*[:=][\s*_]*(?:is\s)?|\s+is\s*:?\s*|[\s*_]*$)(.*)$",
    re.IGNORECASE,
)


def final_answer(response: str) -> str | None:
    r"""The final answer of a response, as it is written there; None where none is marked.

    What stands before `</think>` is not read. The answer is the content of the last `\boxed{...}` whose braces are
    balanced, with those before it where only commas or "and" or "or" stand between; without any, what follows
    "answer:" or "the answer is" in one of the last lines. Takes time linear in the length of the response.
    """
    final = response.rpartition(END_OF_THINK)[2]
    return _boxed(final) or _named(final)


def _boxed(text: str) -> str | None:
    boxes: list[tuple[int, int, str]] = []
    opened: list[tuple[int, int] | None] = []
    for brace in _BRACE.finditer(text):
        if brace[0].startswith("\\") and brace[0].endswith("{") and len(brace[0]) > 2:
            opened.append((brace.start(), brace.end()))
        elif brace[0] == "{":
            opened.append(None)
        elif brace[0] == "}" and opened and (box := opened.pop()) is not None:
            while boxes and boxes[-1][0] > box[0]:  # a box in this one is a part of it
                boxes.pop()
            boxes.append((box[0], brace.end(), text[box[1] : brace.start()].strip()))
    boxes = [box for box in boxes if box[2]]
    if not boxes:
        return None
    start, _, last = boxes[-1]
    answers = [last]
    for before in boxes[-2::-1]:
        between = text[before[1] : start]
        if len(between) > 20 or "\n\n" in between or not between.strip(" \n$") or not _JOINED.fullmatch(between):
            break
        if before[2] not in answers:
            answers.insert(0, before[2])
        start = before[0]
    return " , ".join(answers)


def _named(text: str) -> str | None:
    lines = [line for line in text.splitlines() if line.strip()][-LAST_LINES:]
    for place in reversed(range(len(lines))):
        named = _NAMED.match(lines[place])
        if named is None:
            continue
        answer = named[1].strip(" \t*_")
        if not answer and place + 1 < len(lines):  # a heading
            answer = lines[place + 1].strip(" \t*_")
        if answer:
            return answer
    return None

"""A verdict is read when it is clear, and never otherwise."""

import json
import time

import pytest

from qedmeg.grading.verdict import Ambiguous, NoVerdict, json_schema, read_json, read_text

KEY = "0f1e2d3c4b5a6978"
OF = (2, 4, 1)


def block(*lines: str, key: str = KEY) -> str:
    return "\n".join([f"<verdict {key}>", *lines, f"</verdict {key}>"])


GOOD = block("item 1: 2 | set up", "item 2: 3 | a gap", "item 3: 0", "points: 5")


def points(text: str) -> tuple[int, ...]:
    return read_text(text, KEY, OF, by_item=True).points


READ = {
    "plain": GOOD,
    "prose round it": f"The proof is nearly right.\n{GOOD}\nThat is all.",
    "spaces": block("", "  item 1 :   2   | set up", "Item 2:3|", "\titem 3: 0 ", " Points :  5  ", " "),
    "said twice": f"{GOOD}\n{GOOD}",
    "after the form": block("item 1: N | reason", "item 2: N | reason", "item 3: N | reason", "points: N") + GOOD,
    "corrected": block("item 1: 2", "item 2: 3.5", "item 3: 0", "points: 5.5") + GOOD,
    "begun anew": f"<verdict {KEY}>\nitem 1: 2\n{GOOD}",
    "after the reasoning": "<think>" + block("item 1: 2", "item 2: 4", "item 3: 1", "points: 7") + "</think>" + GOOD,
    "reasoning without its beginning": block("item 1: 0", "item 2: 0", "item 3: 0", "points: 0") + "</think>" + GOOD,
    "another key before it": block("points: 7", key="0000000000000000") + GOOD,
}


@pytest.mark.parametrize("case", READ)
def test_a_clear_verdict_is_read(case: str) -> None:
    assert points(READ[case]) == (2, 3, 0)


def test_reasons_are_kept() -> None:
    assert read_text(GOOD, KEY, OF, by_item=True).reasons == ("set up", "a gap", "")


REFUSED = {
    "nothing": "",
    "prose": "I give 5 of 7 points. points: 5",
    "another key": block("item 1: 2", "item 2: 3", "item 3: 0", "points: 5", key="0000000000000000"),
    "key in capitals": GOOD.replace(KEY, KEY.upper()),
    "no end": GOOD.removesuffix(f"</verdict {KEY}>"),
    "a second one without end": f"{GOOD}\n<verdict {KEY}>\nitem 1: 0",
    "half a point": block("item 1: 2", "item 2: 3.5", "item 3: 0", "points: 5.5"),
    "half a point at the end": GOOD + block("item 1: 2", "item 2: 3.5", "item 3: 0", "points: 5.5"),
    "a fraction": block("item 1: 2/2", "item 2: 3/4", "item 3: 0/1", "points: 5/7"),
    "a sign": block("item 1: 2", "item 2: +3", "item 3: 0", "points: 5"),
    "negative": block("item 1: 2", "item 2: -1", "item 3: 0", "points: 1"),
    "other digits": block("item 1: ２", "item 2: ３", "item 3: ０", "points: ５"),
    "more than the item is worth": block("item 1: 3", "item 2: 3", "item 3: 0", "points: 6"),
    "a wrong sum": block("item 1: 2", "item 2: 3", "item 3: 0", "points: 6"),
    "an item missing": block("item 1: 2", "item 2: 3", "points: 5"),
    "an item twice": block("item 1: 2", "item 1: 2", "item 2: 3", "item 3: 0", "points: 5"),
    "items in another order": block("item 2: 2", "item 1: 2", "item 3: 0", "points: 4"),
    "no items": block("points: 5"),
    "only reasoning": f"<think>{GOOD}",
    "verdict before the end of the reasoning": f"{GOOD}</think> It is fine.",
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_unclear_verdict_is_refused(case: str) -> None:
    with pytest.raises(NoVerdict) as refusal:
        points(REFUSED[case])
    assert not isinstance(refusal.value, Ambiguous)


def test_two_verdicts_that_differ_are_ambiguous() -> None:
    with pytest.raises(Ambiguous):
        points(GOOD + block("item 1: 1", "item 2: 4", "item 3: 0", "points: 5"))


def test_a_rubric_in_words_has_one_line() -> None:
    assert read_text(block("points: 6 | nearly"), KEY, (7,), by_item=False).points == (6,)
    for wrong in (block("points: 8"), block("points: 6.5"), block("item 1: 6", "points: 6")):
        with pytest.raises(NoVerdict):
            read_text(wrong, KEY, (7,), by_item=False)


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize(
    "text", ["<verdict {k}>", "</verdict {k}>", "<verdict {k}>item 1: 3", "</think>", "<think>", " "]
)
def test_a_megabyte_is_read_at_once(text: str) -> None:
    piece = text.replace("{k}", KEY)
    started = time.process_time()
    with pytest.raises(NoVerdict):
        points(piece * (1_000_000 // len(piece)))
    assert time.process_time() - started < 0.5  # about 10 ms: linear


# --- structured output ----------------------------------------------------------------------------------------------


def answer(*given: object, total: object = None, **other: object) -> str:
    items = {f"item_{i}": {"reason": "shown", "points": one} for i, one in enumerate(given, start=1)}
    return json.dumps({"key": KEY, **items, "points": total} | other)


def test_a_structured_verdict_is_read() -> None:
    text = json.dumps(json.loads(answer(2, 3, 0, total=5)), indent=8)
    assert read_json(f"\n {text} \n", KEY, OF, by_item=True).points == (2, 3, 0)
    whole = json.dumps({"key": KEY, "reason": "nearly", "points": 6})
    assert read_json(whole, KEY, (7,), by_item=False).points == (6,)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "points: 5",
        "[" * 100_000,
        "null",
        "5",
        f"```json\n{answer(2, 3, 0, total=5)}\n```",
        answer(2, 3, 0, total=5) * 2,
        answer(2, 3, 0, total=5)[:-1] + ', "points": 5}',
        answer(2, 3, 0, total=5, key="0000000000000000"),
        answer(2, 3, 0, total=6),
        answer(3, 3, 0, total=6),
        answer(2, -1, 0, total=1),
        answer(2, 3.0, 0, total=5),
        answer(2, 3, 0, total=5.0),
        answer(2, "3", 0, total=5),
        answer(2, 3, False, total=5),
        answer(2, 3, 0, total=True),
        answer(2, 3, total=5),
        answer(2, 3, 0, total=5, more=1),
        answer(2, 3, 0, total=5, item_1=2),
        answer(2, 3, float("nan"), total=5),
    ],
)
def test_an_unclear_structured_verdict_is_refused(text: str) -> None:
    with pytest.raises(NoVerdict):
        read_json(text, KEY, OF, by_item=True)


def test_the_schema_asks_for_what_is_read() -> None:
    schema = json_schema(OF, by_item=True)
    assert schema["required"] == list(json.loads(answer(2, 3, 0, total=5)))
    assert schema["properties"]["item_2"]["properties"]["points"]["enum"] == [0, 1, 2, 3, 4]
    assert schema["properties"]["points"]["enum"] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert json_schema((7,), by_item=False)["required"] == ["key", "reason", "points"]

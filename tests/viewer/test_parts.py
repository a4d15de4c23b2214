"""What pages are made of, without a server: texts in parts, trees of calls, filters and sums, the plot."""

from xml.etree import ElementTree

import pytest
from multidict import MultiDict

from qedmeg.errors import UserError
from qedmeg.viewer.entry import CallBrief, Entry, Run, Score, ShownProblem
from qedmeg.viewer.filters import Filters, ordered, read_filters, select
from qedmeg.viewer.plot import Dot, scatter
from qedmeg.viewer.summary import summarise
from qedmeg.viewer.text import headline, paragraphs, part_of
from qedmeg.viewer.tree import DEEPEST, call_tree

RUN = Run("run", "run", "model", "single", "proofs", ("judge", "other"))
PROBLEM = ShownProblem("proofs", "p-1", None, "easy", "Algebra")


def entry(sample: int, *scores: Score, tokens: int = 10, ended: str = "done", run: Run = RUN) -> Entry:
    return Entry(run, PROBLEM, sample, ended, tokens, 0.5, scores)


# --- texts ----------------------------------------------------------------------------------------------------------


def test_parts_put_together_are_the_text() -> None:
    text = "\n\n".join(f"paragraph {number} " + "x" * (number % 7) for number in range(500))
    first = part_of(text, 1, 1000)
    parts = [part_of(text, number + 1, 1000) for number in range(first.parts)]
    assert [one.number for one in parts] == list(range(1, first.parts + 1))
    assert "\n\n".join(p for one in parts for p in one.paragraphs).split() == text.split()
    assert all(sum(map(len, one.paragraphs)) <= 1000 for one in parts)
    assert part_of(text, 10**9, 1000) == parts[-1]
    assert part_of(text, -3, 1000) == parts[0]
    assert first.characters == len(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n\nb", ["a", "b"]),
        ("$$a\n\nb$$\n\nc", ["$$a\nb$$", "c"]),
        ("\\[a\n \n\nb\\]\n\nc", ["\\[a\nb\\]", "c"]),
        ("\\begin{align}a\n\nb\\end{align}\n\nc", ["\\begin{align}a\nb\\end{align}", "c"]),
        ("$$ not closed\n\nb", ["$$ not closed\nb"]),
        ("\n\n  a\n\n\n\nb\n", ["a", "b"]),
        ("", []),
    ],
)
def test_paragraphs_end_at_blank_lines_but_not_within_a_displayed_formula(text: str, expected: list[str]) -> None:
    assert [one.strip() for one in paragraphs(text)] == expected


def test_no_paragraph_is_longer_than_it_may_be() -> None:
    for text in ("x" * 10_001, "word " * 5000, "line\n" * 5000, "$$" + "a\n\n" * 5000):
        divided = paragraphs(text, 4000)
        assert max(map(len, divided)) <= 4000
        assert "".join("".join(divided).split()) == "".join(text.split())


def test_a_headline_is_one_line_with_whole_formulas() -> None:
    assert headline("Let\n$a$ be.\n\n$$b$$") == "Let $a$ be. $b$"
    assert headline("word " * 25 + "$" + "x + " * 50 + "$") == ("word " * 25).rstrip() + " …"
    assert len(headline("x" * 10_000)) < 200


# --- calls ----------------------------------------------------------------------------------------------------------


def brief(id: int, path: str, tokens: int = 1) -> CallBrief:
    return CallBrief(id, path, "prover", "m", "stop", tokens, 0.0)


def test_calls_nest_by_their_paths() -> None:
    tree = call_tree(
        [brief(1, "round 1/prove", 5), brief(2, "round 1/verify 1"), brief(3, "sum"), brief(4, "sum/a", 9)]
    )
    assert [node.name for node in tree] == ["round 1", "sum"]
    assert [*tree[0].children] == ["prove", "verify 1"]
    assert (tree[0].calls, tree[0].below, tree[0].tokens) == ([], 2, 6)
    assert ([call.id for call in tree[1].calls], tree[1].below, tree[1].tokens) == ([3], 1, 1)


def test_a_path_of_a_thousand_steps_is_no_deeper_than_a_page_can_show() -> None:
    (node,) = call_tree([brief(1, "/".join("x" * 1000))])
    depth = 1
    while node.children:
        (node,) = node.children.values()
        depth += 1
    assert depth == DEEPEST
    assert [call.id for call in node.calls] == [1]


# --- filters and sums -----------------------------------------------------------------------------------------------


def test_filters_come_back_from_the_address_they_make() -> None:
    filters = Filters(
        ("a b", "c&d"), "proofs", "easy", "Algebra", "x = y", 1.5, 7.0, "graded", "done", "no", "j", "best"
    )
    pairs = [pair.split("=") for pair in filters.query(page=3).split("&")]
    from urllib.parse import unquote_plus

    query = MultiDict((unquote_plus(name), unquote_plus(value)) for name, value in pairs)
    assert query.pop("page") == "3"
    assert read_filters(query) == filters
    assert Filters().query() == ""


@pytest.mark.parametrize(
    ("name", "value"), [("low", "x"), ("low", "nan"), ("high", "8"), ("high", "-1"), ("state", "good"), ("order", "x")]
)
def test_a_filter_that_cannot_be_is_named(name: str, value: str) -> None:
    with pytest.raises(UserError, match=f"^{name}: '{value}'"):
        read_filters(MultiDict({name: value}))


GOOD, BAD = entry(0, Score("judge", 6.0), tokens=30), entry(1, Score("judge", 1.5), tokens=20, ended="length")
FAILED, UNGRADED = entry(2, Score("judge", None, "timeout")), entry(3, Score("other", 7.0))
ALL = [GOOD, BAD, FAILED, UNGRADED]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(), ALL),
        (Filters(run=("other run",)), []),
        (Filters(run=("run",), benchmark="proofs", level="easy", category="Algebra", q="P-1"), ALL),
        (Filters(level="hard"), []),
        (Filters(q="p-1 absent"), []),
        (Filters(state="failed"), [FAILED]),
        (Filters(state="ungraded"), [UNGRADED]),
        (Filters(state="graded", grader="other"), [UNGRADED]),
        (Filters(low=1.5), [GOOD, BAD]),
        (Filters(low=0, high=1.5), [BAD]),
        (Filters(high=7, grader="other"), [UNGRADED]),
        (Filters(ended="length"), [BAD]),
        (Filters(by_hand="yes"), [BAD]),
        (Filters(by_hand="no"), [GOOD, FAILED, UNGRADED]),
    ],
)
def test_filters_let_through_what_they_say(filters: Filters, expected: list[Entry]) -> None:
    assert select(filters, ALL, lambda one: one is BAD) == expected


@pytest.mark.parametrize(
    ("order", "expected"),
    [("", ALL), ("best", ALL), ("worst", [BAD, GOOD, FAILED, UNGRADED]), ("longest", ALL)],
)
def test_what_has_no_grade_comes_last_by_points(order: str, expected: list[Entry]) -> None:
    assert ordered(Filters(order=order), ALL) == expected


def test_what_is_failed_or_ungraded_is_counted_and_in_no_mean() -> None:
    summary = summarise(ALL)
    assert (summary.mean, summary.graded, summary.failed, summary.ungraded) == (3.75, 2, 1, 1)
    assert (summary.tokens, summary.money, summary.attempts) == (17.5, 2.0, 4)
    assert summarise([FAILED]).mean is None
    assert summarise([]).tokens is None
    assert summarise(ALL, "other").mean == 7.0


# --- the plot -------------------------------------------------------------------------------------------------------


def test_the_plot_is_whole_xml_of_links_with_points_where_they_belong() -> None:
    hostile = '"><script>alert(1)</script>'
    dots = [Dot(0, 0, 0, "a", "/a"), Dot(1000, 7, 1, hostile, f"/b?{hostile}"), Dot(500, None, 2, "c", "/c")]
    root = ElementTree.fromstring(scatter(dots, hostile))
    links = root.findall("a")
    circles = [link.find("circle") for link in links]
    assert [link.get("href") for link in links] == ["/a", f"/b?{hostile}", "/c"]
    assert not root.findall(".//script")
    x, y = ([float(circle.get(name)) for circle in circles] for name in ("cx", "cy"))  # type: ignore[union-attr]
    assert x[0] < x[2] < x[1]
    assert x[2] == (x[0] + x[1]) / 2
    assert y[1] < y[0] < y[2]  # SVG counts downwards; what has no points lies below 0
    assert "style" not in {name for element in root.iter() for name in element.keys()}  # noqa: SIM118
    assert scatter([Dot(0, 0, 0, "a", "/a")], "one") != ""

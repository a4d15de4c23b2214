"""The server: pages, filters, headers, and what it refuses."""

import asyncio
import re
import sqlite3
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from qedmeg.errors import UserError
from qedmeg.viewer.catalogue import Catalogue
from tests.viewer.made import PROBLEMS, Evaluation, attempt, evaluation, graded, whole
from tests.viewer.visits import ATTEMPT, HOSTILE, get, served, text_of

ALGEBRA, GEOMETRY = "/problem?b=proofs&p=algebra-1", "/problem?b=proofs&p=geometry%2F1"


# --- pages ----------------------------------------------------------------------------------------------------------


def test_runs_are_beside_each_other_with_failures_counted_apart(files: tuple[Path, Path]) -> None:
    @served(*files)
    async def _(client: TestClient[Any, Any]) -> None:
        page = text_of(await get(client, "/"))
        # (6 + 0 + 7) / 3, where the right answer is 1 of 1: 7 of 7
        assert "small-cache 4.33 3 1 1" in page
        assert "large 4.67 3 0 0" in page
        assert "grpo 4.50 4 2 0" in page
        assert "6, with 14 attempts" in page
        assert "no longer in" in page  # of the run's problems, one is not in its rows any more


@pytest.mark.parametrize(
    ("query", "problems", "attempts"),
    [
        ("benchmark=proofs", 4, 8),
        ("level=IMO-easy", 1, 3),
        ("category=Algebra", 1, 3),
        ("q=ALTITUDES+triangle", 1, 3),
        ("low=6&high=6", 2, 2),
        ("state=failed", 3, 3),
        ("state=ungraded", 1, 1),
        ("ended=length", 1, 1),
        ("run=large&run=grpo", 5, 9),
        ("run=large&grader=judge-v2&state=graded", 1, 1),
        ("by_hand=yes", 0, 0),
    ],
)
def test_filters_are_in_the_address(files: tuple[Path, Path], query: str, problems: int, attempts: int) -> None:
    @served(*files)
    async def _(client: TestClient[Any, Any]) -> None:
        page = await get(client, f"/?{query}")
        assert f"Problems {problems}, with {attempts} attempts" in text_of(page)
        assert page.count("<tr data-item>") == problems
        for link in re.findall(r'href="(/problem[^"]*)"', page):  # the filters go along
            assert query.split("=")[0] in link
            await get(client, unescape(link))


def test_a_problem_shows_its_attempts_with_every_item_and_reason(files: tuple[Path, Path]) -> None:
    @served(*files)
    async def _(client: TestClient[Any, Any]) -> None:
        page = await get(client, ALGEBRA)
        text = text_of(page)
        assert "Put $x = 1/a$" in text  # the reference
        assert "Says when equality holds, and why." in text  # the rubric
        assert page.count("<article data-item") == 3
        assert [page.count(f'<li class="{kind}">') for kind in ("earned", "part", "lost")] == [2 + 3 + 2, 1, 3 + 1]
        assert "It is there: $x^2 \\ge 0$." in text
        assert "tokens 5,200" in text
        assert "5 calls" in text
        assert len(re.findall(r'<a href="/attempt[^"]*" aria-label=', page)) == 3  # the plot's points
        failed = text_of(await get(client, GEOMETRY))
        assert "grading failed" in failed
        assert "no answer in 600 s" in failed
        assert "Not graded yet." in failed


def test_an_attempt_has_all_of_its_grades_and_its_calls_as_a_tree(files: tuple[Path, Path]) -> None:
    @served(*files)
    async def _(client: TestClient[Any, Any]) -> None:
        page = await get(client, f"/attempt?{ATTEMPT}")
        assert page.count('class="call"') == 5
        assert "round 1 3 calls" in text_of(page)
        first, *_ = re.findall(r'data-call="([^"]*)"', page)
        async with client.get(unescape(first)) as response:
            assert response.content_type == "application/json"
            told = await response.json()
        assert [section["title"] for section in told["sections"]] == [
            "prompt, system",
            "prompt, user",
            "thinking",
            "reply",
        ]
        assert told["sections"][2]["paragraphs"] == ["Let me think: $b$."]
        assert "Let me think" in await get(client, unescape(first).replace("call.json", "call"))
        await get(client, unescape(first).replace("n=0", "n=1"), 404)  # the call is another attempt's
        both = text_of(await get(client, "/attempt?r=large&p=algebra-1&n=0"))
        assert "judge-v2" in both
        assert "judge-v1" in both


def test_a_rollout_shows_its_step_and_weights(files: tuple[Path, Path]) -> None:
    @served(*files)
    async def _(client: TestClient[Any, Any]) -> None:
        page = text_of(await get(client, "/problem?b=training%3A+grpo&p=known"))
        assert "Prove that $1 < 2$." in page
        assert "step 0 group 0, place 1 weights 0 to 1" in page
        assert "unreadable answer" in page
        assert "known by its id alone" in await get(client, "/problem?b=training%3A+grpo&p=gone")


def test_any_two_attempts_are_compared(files: tuple[Path, Path]) -> None:
    @served(*files)
    async def _(client: TestClient[Any, Any]) -> None:
        def chosen(page: str) -> list[str]:
            return re.findall(r'<option value="([^"]*)" selected', page)

        address = ALGEBRA.replace("problem", "compare")
        assert chosen(await get(client, address)) == ["0.large", "1.small-cache"]  # the best and the worst
        both = await get(client, f"{address}&pick=1.small-cache&pick=0.small-cache")
        assert chosen(both) == ["1.small-cache", "0.small-cache"]
        assert both.count("<article") == 2
        assert chosen(await get(client, f"{address}&pick=0.nobody&pick=x"))[0] == "0.large"
        await get(client, f"{address}&level=none", 404)


def test_pages_and_parts_follow_each_other(tmp_path: Path) -> None:
    made = Evaluation(tmp_path / "results.sqlite")
    made.run("run", "m", PROBLEMS)
    long = "".join(f"Line {number}.\n\n" for number in range(20_000))
    texts = [long, *(f"Short {number}." for number in range(1, 20))]
    made.add("run", [(attempt("algebra-1", n, text, 1), graded(1, 1, 1)) for n, text in enumerate(texts)])
    made.results.close()

    @served(tmp_path / "results.sqlite")
    async def _(client: TestClient[Any, Any]) -> None:
        seen: list[str] = []
        for number in range(1, 4):
            page = await get(client, f"{ALGEBRA}&page={number}")
            assert f"page {number} of 3, 20 attempts" in page
            seen += re.findall(r"<h3>.*sample (\d+)</a>", page)
        assert seen == [str(number) for number in range(20)]
        first = await get(client, ALGEBRA)
        assert len(first) < 60_000
        more = unescape(re.search(r'<a href="(/text[^"]*)">Read on', first)[1])  # type: ignore[index]
        words: list[str] = []
        for number in range(1, 100):
            page = await get(client, more.replace("part=2", f"part={number}"))
            words += re.findall(r"Line \d+\.", page)
            if 'rel="next"' not in page:
                break
        assert words == [f"Line {number}." for number in range(20_000)]


def test_what_is_written_meanwhile_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qedmeg.viewer.catalogue._SHARE_OF_LOADING", 1e9)  # look at once
    made = Evaluation(tmp_path / "results.sqlite")
    made.run("run", "m", PROBLEMS)
    made.add("run", [(attempt("algebra-1", 0, "One.", 1), graded(0, 0, 0))])

    @served(tmp_path / "results.sqlite")
    async def _(client: TestClient[Any, Any]) -> None:
        assert "run 0.00 1 0 0" in text_of(await get(client, "/"))
        more = [(attempt("algebra-1", 1, "Two.", 1), graded(3, 3, 1)), (attempt("geometry/1", 0, "Three.", 1), None)]
        await asyncio.get_running_loop().run_in_executor(None, made.add, "run", more)
        assert "run 3.50 2 0 1" in text_of(await get(client, "/"))
        assert "Two." in await get(client, "/attempt?r=run&p=algebra-1&n=1")

    made.results.close()


def test_runs_of_one_name_are_told_apart_by_their_files(tmp_path: Path) -> None:
    one, other = evaluation(tmp_path / "a" / "results.sqlite"), evaluation(tmp_path / "b" / "results.sqlite")

    @served(one, other)
    async def _(client: TestClient[Any, Any]) -> None:
        page = text_of(await get(client, "/"))
        assert f"large ({one})" in page
        assert f"large ({other})" in page
        assert "Problems 4, with 16 attempts" in page  # the same problems


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["/", ALGEBRA, f"/attempt?{ATTEMPT}", "/grade", "/none", "/static/viewer.js"])
def test_every_answer_has_the_headers_that_let_nothing_run(files: tuple[Path, Path], address: str) -> None:
    @served(*files)
    async def _(client: TestClient[Any, Any]) -> None:
        async with client.get(address) as response:
            policy = response.headers["Content-Security-Policy"]
            assert "default-src 'none'; script-src 'self'; style-src 'self';" in policy
            assert "unsafe" not in policy
            for directive in (
                "form-action 'self'",
                "frame-ancestors 'none'",
                "base-uri 'none'",
                "trusted-types 'none'",
            ):
                assert directive in policy
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Referrer-Policy"] == ("same-origin" if address == "/grade" else "no-referrer")
            assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:99", 200),
        ("localhost", 200),
        ("[::1]:99", 200),
        ("evil.example", 403),
        ("evil.example:80", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example:1", 403),
        ("", 403),
    ],
)
def test_a_page_under_another_name_gets_nothing(files: tuple[Path, Path], host: str, status: int) -> None:
    @served(*files)
    async def _(client: TestClient[Any, Any]) -> None:
        for address in ("/", f"/attempt?{ATTEMPT}", "/static/viewer.js"):
            page = await get(client, address, status, headers={"Host": host})
            assert status == 200 or "small-cache" not in page


@pytest.mark.parametrize(
    "address",
    [
        "/none",
        "/problem?b=proofs&p=none",
        "/attempt?r=none&p=algebra-1&n=0",
        f"/attempt?{ATTEMPT[:-1]}-1",
        f"/attempt?{ATTEMPT[:-1]}{'9' * 40}",
        f"/attempt?{ATTEMPT[:-1]}%C2%B2",
        f"/text?{ATTEMPT}&what=reason-0-99",
        f"/text?{ATTEMPT}&what=__class__",
        f"/call?{ATTEMPT}&call=99",
        "/static/../server.py",
        "/static/%2e%2e/server.py",
    ],
)
def test_what_is_not_there_is_said_so(files: tuple[Path, Path], address: str) -> None:
    @served(*files)
    async def _(client: TestClient[Any, Any]) -> None:
        page = await get(client, address, 404)
        assert "Traceback" not in page
        assert "asyncio" not in page


def test_a_filter_that_cannot_be_is_named(files: tuple[Path, Path]) -> None:
    @served(*files)
    async def _(client: TestClient[Any, Any]) -> None:
        assert "low: 'x': expected points from 0 to 7" in text_of(await get(client, "/?low=x", 400))


def test_what_models_and_judges_wrote_is_text_alone(tmp_path: Path) -> None:
    made = Evaluation(tmp_path / "results.sqlite")
    made.run(HOSTILE, HOSTILE, PROBLEMS, HOSTILE)
    made.add(HOSTILE, [(attempt("geometry/1", n, HOSTILE, 1, HOSTILE), whole(3, HOSTILE)) for n in (0, 1)], HOSTILE)
    made.results.close()

    @served(tmp_path / "results.sqlite")
    async def _(client: TestClient[Any, Any]) -> None:
        links = ["/"]
        for address in links:  # grows
            page = await get(client, address)
            assert not re.search(r"<script>|<img|href=.javascript:| onerror=\w+>", page), address
            assert "\x00" not in page
            assert "49" not in text_of(page)
            assert re.findall(r"<script[^>]*>", page) == [
                '<script src="/static/katex/katex.min.js" defer>',
                '<script src="/static/katex/auto-render.min.js" defer>',
                '<script type="module" src="/static/viewer.js">',
            ]
            found = [unescape(link) for link in re.findall(r'href="(/[^"]*)"', page)]
            links += [link for link in found if link not in links and not link.startswith("/static")]
        assert {link.split("?")[0] for link in links} >= {"/", "/problem", "/attempt", "/grade", "/compare"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text" * 1000, "cannot be read as a file of results"),
        (None, "no such file or folder"),
        (b"", "no table 'runs'"),
    ],
)
def test_what_is_no_file_of_results_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "x.sqlite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        Catalogue([path])
    with pytest.raises(UserError, match="holds neither"):
        Catalogue([tmp_path])


def test_the_files_stay_as_they_are(files: tuple[Path, Path]) -> None:
    before = [path.read_bytes() for path in (files[0], files[1] / "rollouts.sqlite")]

    @served(*files)
    async def _(client: TestClient[Any, Any]) -> None:
        for address in ("/", ALGEBRA, f"/attempt?{ATTEMPT}"):
            await get(client, address)

    assert [path.read_bytes() for path in (files[0], files[1] / "rollouts.sqlite")] == before
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        Catalogue([files[0]])._sources[0]._reader._database.execute("DELETE FROM runs")  # type: ignore[attr-defined]

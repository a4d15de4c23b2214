"""Grades by hand: forms that only this server's pages may send, and files that the calibration reads back."""

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from qedmeg.grading.rated import load_rated
from qedmeg.viewer.hand import HAND_FILE
from tests.viewer.made import GRADER, PROBLEMS, PROOF, evaluation
from tests.viewer.visits import ATTEMPT, get, served, text_of


def form_of(page: str) -> tuple[str, dict[str, str]]:
    """Where the form goes, and its token."""
    action = unescape(re.search(r'<form method="post" action="([^"]*)"', page)[1])  # type: ignore[index]
    token = re.search(r'name="token" value="([^"]*)"', page)[1]  # type: ignore[index]
    return action, {"token": token}


def origin(client: TestClient[Any, Any]) -> dict[str, str]:
    return {"Origin": str(client.make_url("/")).rstrip("/")}


def test_grades_by_hand_are_read_by_the_calibration(tmp_path: Path) -> None:
    path = evaluation(tmp_path / "eval" / "results.sqlite")
    kept = path.parent / HAND_FILE
    theirs = {"question": "Q", "problem_idx": "PB-1", "model_prediction": {"proof": "P", "human_rating": 7}}
    kept.write_text(json.dumps(theirs) + "\n")

    @served(path)
    async def _(client: TestClient[Any, Any]) -> None:
        async def save(address: str, **fields: str) -> str:
            action, token = form_of(await get(client, address))
            data = {**token, **fields}
            async with client.post(action, data=data, headers=origin(client), allow_redirects=False) as response:
                assert response.status == 303, text_of(await response.text())
                return str(response.headers["Location"])

        following = await save(
            f"/grade?{ATTEMPT}", **{"item-0": "3", "item-1": "1", "item-2": "0", "note": "a\r\nb $x$"}
        )
        assert "n=1" in following  # on to what nobody has graded
        await save("/grade?r=small-cache&p=geometry%2F1&n=0", points="5", note="")
        await save("/grade?r=small-cache&p=answer-1&n=0", points="7", note="")
        await save(f"/grade?{ATTEMPT}", **{"item-0": "0", "item-1": "0", "item-2": "1", "note": "again"})

        page = await get(client, f"/attempt?{ATTEMPT}")
        assert "1 of 7 by hand" in text_of(page)
        assert "again" in page
        assert "Problems 3, with 3 attempts" in text_of(await get(client, "/?by_hand=yes"))
        assert "Saving replaces it" in await get(client, f"/grade?{ATTEMPT}")

    rated = load_rated(kept)
    assert [(one.problem.id, one.points) for one in rated] == [
        ("PB-1", 7),
        ("algebra-1", 1),
        ("geometry/1", 5),
        ("answer-1", 7),
    ]
    assert rated[1].proof == PROOF
    assert rated[1].problem.statement == PROBLEMS[0].statement
    assert "equality (3 points): Says when equality holds" in str(rated[1].problem.rubric)
    assert json.loads(kept.read_text().splitlines()[0]) == theirs
    assert sorted(one.name for one in path.parent.iterdir()) == [HAND_FILE, "results.sqlite"]


def test_the_machine_s_grade_is_hidden_until_it_is_asked_for(files: tuple[Path, Path]) -> None:
    @served(*files)
    async def _(client: TestClient[Any, Any]) -> None:
        blind = text_of(await get(client, f"/grade?{ATTEMPT}"))
        assert "Substitute $x = 1/a$" in blind
        assert GRADER not in blind
        assert "small-cache" not in blind
        assert "It is there" not in blind
        shown = text_of(await get(client, f"/grade?{ATTEMPT}&machine=1"))
        assert "small-cache, sample 0" in shown
        assert "6 of 7 judge-v1" in shown


@pytest.mark.parametrize(
    ("headers", "fields", "status", "message"),
    [
        ({}, {}, 403, "not sent from a page of this server"),
        ({"Origin": "http://evil.example"}, {}, 403, "not sent from a page of this server"),
        ({"Origin": "null"}, {}, 403, "not sent from a page of this server"),
        ({"Origin": "right", "Host": "evil.example"}, {}, 403, "by a name that is not its own"),
        ({"Origin": "right"}, {"token": "x"}, 403, "of another start"),
        ({"Origin": "right"}, {"token": "é"}, 403, "of another start"),
        ({"Origin": "right"}, {"item-1": "4"}, 400, "item-1: '4': expected whole points from 0 to 3"),
        ({"Origin": "right"}, {"item-0": "-1"}, 400, "item-0: '-1'"),
        ({"Origin": "right"}, {"item-2": ""}, 400, "choose one for every item"),
        ({"Origin": "right"}, {"note": "x" * 20_001}, 400, "note: 20,001 characters"),
        ({"Origin": "right"}, {"note": "x" * 300_000}, 413, "Entity Too Large"),
    ],
)
def test_only_a_form_of_this_server_writes(
    tmp_path: Path, headers: dict[str, str], fields: dict[str, str], status: int, message: str
) -> None:
    path = evaluation(tmp_path / "results.sqlite")

    @served(path)
    async def _(client: TestClient[Any, Any]) -> None:
        action, token = form_of(await get(client, f"/grade?{ATTEMPT}"))
        data = {"item-0": "1", "item-1": "1", "item-2": "1", "note": "", **token, **fields}
        sent = {name: value if value != "right" else origin(client)["Origin"] for name, value in headers.items()}
        async with client.post(action, data=data, headers=sent, allow_redirects=False) as response:
            assert response.status == status
            assert message in text_of(await response.text())
        for method in ("PUT", "DELETE", "PATCH"):
            async with client.request(method, action, headers=origin(client)) as response:
                assert response.status == 405

    assert [one.name for one in tmp_path.iterdir()] == ["results.sqlite"]


def test_a_damaged_file_of_grades_is_named_and_left_alone(tmp_path: Path) -> None:
    path = evaluation(tmp_path / "results.sqlite")
    (tmp_path / HAND_FILE).write_text("{}\nnot json\n")

    @served(path)
    async def _(client: TestClient[Any, Any]) -> None:
        page = text_of(await get(client, f"/grade?{ATTEMPT}", 400))
        assert f"{tmp_path / HAND_FILE}: line 2: not JSON" in page

    assert (tmp_path / HAND_FILE).read_text() == "{}\nnot json\n"

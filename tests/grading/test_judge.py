"""The judge: what goes wrong is retried by kind, given up on by name, and paid for; what is graded is right."""

import asyncio
import email.utils
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pydantic import ValidationError

from qedmeg.chat.endpoint import Endpoint, _retry_after
from qedmeg.chat.message import RequestFailed
from qedmeg.config import GraderConfig, JudgeConfig, JudgeServerConfig
from qedmeg.errors import UserError
from qedmeg.grading.cache import GradeCache
from qedmeg.grading.grade import Cost, Failed, Grade, Graded
from qedmeg.grading.grader import ProofProblem
from qedmeg.grading.judge import Judge
from qedmeg.grading.rubric import Rubric, RubricItem
from qedmeg.settings import load_config, save_config
from tests.grading.judge_server import FAILURES, RIGHT, JudgeServer, right_points

ITEMS = ProofProblem("items", "Show it.", Rubric((RubricItem("idea", 5, "Has it."), RubricItem("end", 2, "Ends."))))
WORDS = ProofProblem("words", "Show it.", "7 points for the idea.")
KINDS = {
    "time-out": "timeout",
    "hang": "timeout",
    "429": "rate limit",
    "500": "server error",
    "cut connection": "connection",
    "empty": "empty answer",
    "two verdicts": "ambiguous answer",
}
T = TypeVar("T")


def config(server: JudgeServer, **settings: Any) -> JudgeConfig:
    quick = {"timeout_seconds": 5.0, "deadline_seconds": 20.0, "backoff_seconds": 0.0, "model": "scripted"}
    return JudgeConfig(**quick | {"base_url": server.url} | settings)


def with_judge(settings: JudgeConfig, work: Callable[[Judge], Awaitable[T]], cache: Path | None = None) -> T:
    async def run() -> T:
        kept = None if cache is None else GradeCache(cache)
        judge = Judge(settings, kept)
        try:
            return await work(judge)
        finally:
            await judge.close()
            if kept is not None:
                kept.close()

    return asyncio.run(run())


def script(*fates: str) -> Callable[[str, int], str]:
    """What becomes of the requests about each proof, the last for all that follow."""
    return lambda proof, nth: fates[min(nth, len(fates) - 1)]


def points(grade: Grade) -> tuple[float, ...]:
    assert isinstance(grade, Graded), grade
    assert (grade.points, grade.of) == (sum(item.points for item in grade.items), 7)
    return tuple(item.points for item in grade.items)


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("fate", RIGHT)
def test_a_right_answer_is_read(fate: str, structured: bool) -> None:
    with JudgeServer(script(fate)) as server:
        settings = config(server, structured=structured)
        items = with_judge(settings, lambda judge: judge.grade(ITEMS, "Proof."))
        words = with_judge(settings, lambda judge: judge.grade(WORDS, "Proof."))
    assert points(items) == right_points("Proof.", (5, 2))
    assert points(words) == right_points("Proof.", (7,))
    assert [served.structured for served in server.served] == [structured] * 2


@pytest.mark.parametrize(
    ("fate", "structured"),
    [(fate, way) for fate in FAILURES for way in (True, False) if way or KINDS.get(fate) != "timeout"],
)
def test_a_failure_is_retried_and_named_when_given_up_on(fate: str, structured: bool) -> None:
    kind = KINDS.get(fate, "unreadable answer")
    if fate == "two verdicts" and structured:
        kind = "unreadable answer"  # not one JSON object
    seconds = 0.4 if kind == "timeout" else 10.0
    settings = {"structured": structured, "timeout_seconds": seconds, "attempts": 2}
    with JudgeServer(script(fate, "right")) as server:
        judges: list[Judge] = []

        async def once(judge: Judge) -> Grade:
            judges.append(judge)
            return await judge.grade(ITEMS, "Proof.")

        assert points(with_judge(config(server, **settings), once)) == right_points("Proof.", (5, 2))
        account = judges[0].account
        assert (account.requests, account.retries, account.graded, account.failed.total()) == (2, 1, 1, 0)
        assert account.outcomes == {kind: 1, "answered": 1}
    with JudgeServer(script(fate)) as server:
        failed = with_judge(config(server, **settings), once)
        assert isinstance(failed, Failed)
        assert (failed.kind, failed.cost.requests) == (kind, 2)
        assert failed.of_grader == (kind in ("timeout", "rate limit", "server error", "connection"))
        assert judges[1].account.failed == {kind: 1}
        told = [served for served in server.served if served.written]
        assert failed.cost.completion_tokens == sum(served.completion_tokens for served in told)
        assert failed.cost == judges[1].account.cost


@pytest.mark.parametrize(
    ("fate", "kind"),
    [
        *((status, "refused") for status in ("400", "413", "422")),
        *((status, "no access") for status in ("401", "402", "403", "404", "quota")),
    ],
)
def test_what_the_server_refuses_is_not_retried(fate: str, kind: str) -> None:
    with JudgeServer(script(fate, "right")) as server:
        failed = with_judge(config(server), lambda judge: judge.grade(ITEMS, "Proof."))
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.of_grader) == (kind, kind == "no access")  # which is so whatever is asked
    assert (failed.cost.requests, len(server.served)) == (1, 1)


def test_the_key_is_sent_and_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("JUDGE_KEY", "sk-judge-5417")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other-9983")  # of another server
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "sk-other-9983")
    with JudgeServer(script("401")) as server:  # repeats the key in its error

        async def work(judge: Judge) -> list[str]:
            grade = await judge.grade(ITEMS, "Proof.")
            return [repr(grade), repr(judge), repr(judge.__dict__), repr(judge.config), str(judge.account)]

        shown = with_judge(config(server, api_key_env="JUDGE_KEY"), work)
        assert "your key was Bearer [key]" in shown[0]
        shown += with_judge(config(server), work)
    assert [served.authorization for served in server.served] == ["Bearer sk-judge-5417", "Bearer none"]
    text = "\n".join([*shown, caplog.text, *capfd.readouterr()])
    assert "sk-judge" not in text
    assert "sk-other" not in text
    endpoint = Endpoint(config(server, api_key_env="JUDGE_KEY"))
    with pytest.raises(RequestFailed) as failure:  # a long answer is cut, and not in the middle of the key
        endpoint._answer(b"x" * 273 + b"sk-judge-5417" * 2)
    # "no chat completion: " takes 20 of 300 characters: 273 x and "[key][k" of the key that is cut.
    assert str(failure.value) == "no chat completion: " + "x" * 273 + "[key][k"
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(UserError, match="api_key_env: the environment variable 'JUDGE_KEY' is not set"):
        Judge(config(server, api_key_env="JUDGE_KEY"))


def test_retry_after_is_kept_to() -> None:
    with JudgeServer(script("429", "right"), retry_after="0.4") as server:
        started = time.monotonic()
        assert isinstance(with_judge(config(server), lambda judge: judge.grade(ITEMS, "Proof.")), Graded)
        assert time.monotonic() - started >= 0.4
    with JudgeServer(script("429", "right"), retry_after="3600") as server:
        started = time.monotonic()
        failed = with_judge(config(server), lambda judge: judge.grade(ITEMS, "Proof."))
        assert time.monotonic() - started < 5  # not until the deadline, when it would come too late
    assert isinstance(failed, Failed)
    assert failed.kind == "rate limit"


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ("2.5", 2.5, 2.5),
        ("-3", 0, 0),
        ("inf", 0, 0),
        ("nan", 0, 0),
        ("soon", 0, 0),
        ("", 0, 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
    ],
)
def test_retry_after_is_a_number_or_a_date(header: str, low: float, high: float) -> None:
    assert low <= _retry_after({"retry-after": header}) <= high


def test_retry_after_may_be_a_date_to_come() -> None:
    header = email.utils.formatdate(time.time() + 3600, usegmt=True)
    assert 3590 <= _retry_after({"retry-after": header}) <= 3600


def test_backoff_grows_and_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, float]] = []

    async def work(judge: Judge) -> Grade:
        monkeypatch.setattr(judge.client._jitter, "uniform", lambda low, high: drawn.append((low, high)) or 0.0)
        return await judge.grade(ITEMS, "Proof.")

    with JudgeServer(script("500")) as server:
        with_judge(config(server, attempts=6, backoff_seconds=0.01, backoff_max_seconds=0.05), work)
    assert drawn == [(0, 0.01), (0, 0.02), (0, 0.04), (0, 0.05), (0, 0.05)]


def test_the_deadline_ends_a_grade_by_name() -> None:
    with JudgeServer(script("500", "hang")) as server:
        started = time.monotonic()
        settings = config(server, timeout_seconds=0.5, deadline_seconds=0.9, attempts=100)
        judges: list[Judge] = []

        async def once(judge: Judge) -> Grade:
            judges.append(judge)
            return await judge.grade(ITEMS, "Proof.")

        failed = with_judge(settings, once)
    assert time.monotonic() - started < 3
    assert isinstance(failed, Failed)
    last = "last failure: timeout: no answer within 0.5 s"
    assert (failed.kind, failed.reason) == (
        "deadline",
        f"judge scripted at {server.url}: no answer of use within 0.9 s; {last}",
    )
    assert failed.of_grader
    assert failed.cost == judges[0].account.cost == Cost(requests=3)
    assert judges[0].account.outcomes == {"server error": 1, "timeout": 1, "cancelled": 1}


def test_a_deadline_that_unclear_answers_have_used_up_is_no_trouble_of_the_grader() -> None:
    with JudgeServer(script("no verdict", "hang")) as server:
        settings = config(server, timeout_seconds=0.9, deadline_seconds=0.9)
        failed = with_judge(settings, lambda judge: judge.grade(ITEMS, "Proof."))
    assert isinstance(failed, Failed)
    assert "last failure: unreadable answer" in failed.reason
    assert (failed.kind, failed.of_grader) == ("deadline", False)


def test_a_grade_that_nobody_waits_for_any_more_keeps_no_place() -> None:
    async def work(judge: Judge) -> None:
        async with asyncio.timeout(10):
            for i in range(3):  # cancelled while two requests are under way, and once more while these are ended
                task = asyncio.create_task(judge.grade(ITEMS, f"Proof {i}."))
                while len(server.served) < 2 * (i + 1):
                    await asyncio.sleep(0.01)
                task.cancel()
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    with JudgeServer(script("hang")) as server:
        with_judge(config(server, timeout_seconds=20.0, concurrency=2, hedge_seconds=0.02), work)
    assert len(server.served) == 6


def test_concurrency_is_bounded_and_the_queue_is_no_part_of_the_deadline() -> None:
    with JudgeServer(script("time-out"), slow_seconds=0.2) as server:  # slow, and within the time
        settings = config(server, concurrency=3, timeout_seconds=0.9, deadline_seconds=1.0, hedge_seconds=0.1)
        grades = with_judge(
            settings, lambda judge: asyncio.gather(*(judge.grade(ITEMS, f"Proof {i}.") for i in range(24)))
        )
    # 24 grades, three at a time, take 1.6 s: longer than a grade may take, were the queue counted.
    assert [points(grade) for grade in grades] == [right_points(f"Proof {i}.", (5, 2)) for i in range(24)]
    assert server.most_at_once == 3


def test_a_hedge_is_sent_when_an_answer_takes_long() -> None:
    async def work(judge: Judge) -> tuple[Grade, Any]:
        return await judge.grade(ITEMS, "Proof."), judge.account

    with JudgeServer(script("time-out", "right"), slow_seconds=3) as server:
        started = time.monotonic()
        grade, account = with_judge(config(server, hedge_seconds=0.1), work)
        assert time.monotonic() - started < 2
    assert points(grade) == right_points("Proof.", (5, 2))
    assert account.outcomes == {"answered": 1, "cancelled": 1}
    assert (account.requests, account.hedges, account.retries, account.tokens_unknown) == (2, 1, 0, 1)
    assert grade.cost == account.cost


def test_a_hedge_that_fails_leaves_the_first_request_alone_and_is_paid_for() -> None:
    async def work(judge: Judge) -> tuple[Grade, Any]:
        return await judge.grade(ITEMS, "Proof."), judge.account

    with JudgeServer(script("time-out", "no verdict", "hang"), slow_seconds=0.6) as server:
        grade, account = with_judge(config(server, hedge_seconds=0.1, price_prompt=0.15, price_completion=0.6), work)
    assert points(grade) == right_points("Proof.", (5, 2))
    assert account.outcomes == {"answered": 1, "unreadable answer": 1}
    prompt, completion = sum(s.prompt_tokens for s in server.served), sum(s.completion_tokens for s in server.served)
    money = (15 * prompt + 60 * completion) * Decimal("1e-8")  # 0.15 and 0.6 for a million
    assert grade.cost == account.cost == Cost(2, prompt, completion, money)


def test_the_breaker_spares_a_server_that_is_down(caplog: pytest.LogCaptureFixture) -> None:
    down = threading.Event()
    down.set()

    async def work(judge: Judge) -> list[Grade]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(judge.grade(ITEMS, f"Proof {i}.")) for i in range(20)]
            await asyncio.sleep(0.5)
            sent = judge.account.requests
            assert sent <= 3 + 4 + 3  # until it opened, what was under way then, and a probe for each pause
            down.clear()
        assert judge.account.outcomes["server error"] <= sent + 1
        return [task.result() for task in tasks]

    with JudgeServer(lambda proof, nth: "500" if down.is_set() else "right") as server:
        settings = config(server, breaker_failures=3, breaker_pause_seconds=0.2, concurrency=4, attempts=50)
        grades = with_judge(settings, work)
    assert all(isinstance(grade, Graded) for grade in grades)
    assert f"judge scripted at {server.url}: 3 requests failed in a row (server error: status 500" in caplog.text


def test_a_verdict_is_kept_and_a_failure_is_not(tmp_path: Path) -> None:
    cache = tmp_path / "grades.sqlite"

    async def work(judge: Judge) -> tuple[Grade, int]:
        return await judge.grade(ITEMS, "Proof."), judge.account.cached

    with JudgeServer(script("401", "right", "401")) as server:
        assert isinstance(with_judge(config(server), work, cache)[0], Failed)
        graded, cached = with_judge(config(server), work, cache)
        assert (points(graded), cached) == (right_points("Proof.", (5, 2)), 0)
        known, cached = with_judge(config(server, timeout_seconds=4.0, concurrency=2), work, cache)
        assert (points(known), known.cost, cached, len(server.served)) == (points(graded), Cost(), 1, 2)
        # Another model, another way to ask, another vote and another problem are other grades.
        for settings in ({"model": "other"}, {"temperature": 0.0}, {"structured": True}, {"reasoning_effort": "high"}):
            assert isinstance(with_judge(config(server, **settings), work, cache)[0], Failed)
        assert isinstance(with_judge(config(server), lambda j: j.grade(ITEMS, "Proof.", vote=1), cache), Failed)
        assert isinstance(with_judge(config(server), lambda j: j.grade(WORDS, "Proof."), cache), Failed)


def test_a_blank_proof_earns_nothing_unasked() -> None:
    with JudgeServer() as server:
        grade = with_judge(config(server), lambda judge: judge.grade(ITEMS, " \n\t"))
    assert points(grade) == (0, 0)
    assert (grade.cost, server.served) == (Cost(), [])


def test_settings_come_from_a_file_and_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "grader.yaml"
    file.write_text(
        "cache: grades.sqlite\ncombine: mean\njudges:\n"
        "  - {base_url: http://localhost:8000/v1, model: judge, price_prompt: 0.15, votes: 3}\n"
    )
    loaded = load_config(GraderConfig, file)
    assert (loaded.judges[0].price_prompt, loaded.votes, loaded.cache) == (0.15, 3, Path("grades.sqlite"))
    save_config(loaded, file)
    assert load_config(GraderConfig, file) == loaded
    for settings, says in (
        ({"base_url": "localhost:8000"}, "an address such as"),
        ({"base_url": "http://me:secret@localhost/v1"}, "holds a user, a password or a query"),
        ({"timeout_seconds": 60.0, "deadline_seconds": 30.0}, "timeout_seconds 60 is greater"),
        ({"hedge_seconds": 600.0}, "there would never be a second request"),
    ):
        with pytest.raises(ValidationError, match=says):
            JudgeConfig(**{"base_url": "http://localhost/v1", "model": "judge"} | settings)
    served = {"base_url": "", "model": "", "serve": {"folder": "judge"}}
    for settings, says in (
        ({"base_url": ""}, "give either base_url, the address of a server, or serve, a model folder"),
        ({"serve": {"folder": "judge"}}, "give either base_url, the address of a server, or serve, a model folder"),
        ({"model": ""}, "model: missing: the name of the model at base_url"),
        (served | {"model": "judge"}, "model and api_key_env are of a server at base_url; leave them out"),
        (served | {"serve": {"folder": "judge", "devices": (1,), "tp": 2}}, r"devices \[1\] are not as many"),
    ):
        with pytest.raises(ValidationError, match=says):
            JudgeConfig(**{"base_url": "http://localhost/v1", "model": "judge"} | settings)
    file.write_text("judges: [{serve: {folder: judges/mine, devices: [3]}, votes: 2}]\n")
    folder = load_config(GraderConfig, file)
    assert folder.judges[0].serve == JudgeServerConfig(folder=Path("judges/mine"), devices=(3,))
    save_config(folder, file)
    assert load_config(GraderConfig, file) == folder
    with pytest.raises(ValidationError, match="min_votes 4 is greater than the 3 votes"):
        GraderConfig(judges=loaded.judges, min_votes=4)

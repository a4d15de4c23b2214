"""The store of rollouts: what goes in comes out, once it is written nothing undoes it, and nothing is used twice."""

import asyncio
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from qedmeg.config import GraderConfig, JudgeConfig
from qedmeg.errors import UserError
from qedmeg.grading.grade import Cost, Failed, Grade, Graded, ItemGrade
from qedmeg.grading.grader import ProofProblem
from qedmeg.grading.panel import Panel
from qedmeg.rollout import store as store_module
from qedmeg.rollout.sample import Sample
from qedmeg.rollout.store import Store, read_batch
from tests.grading.judge_server import JudgeServer

IDENTITY = {"data.seed": "5"}
COST = Cost(2, 100, 7, Decimal("0.00012"))
GRADE = Graded(4.5, 7, (ItemGrade("idea", 2.5, 5, "so so"), ItemGrade("end", 2, 2, "")), "judge/1", COST, (4.0, 5.0))
PROMPT = np.array([1, 2, 3], dtype=np.int32)


def sample(length: int = 4, version: int = 0, finish_reason: str = "stop") -> Sample:
    draw = np.random.default_rng(length)
    tokens_T = draw.integers(0, 2**31 - 1, length).astype(np.int32)
    spans = ((version, 0),) if length < 3 else ((version, 0), (version + 1, 2))
    return Sample(PROMPT, tokens_T, -draw.random(length, dtype=np.float32), spans, finish_reason)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "rollouts.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store(path, IDENTITY)
    yield store
    store.close()


def fill(store: Store, group: int, grades: list[Graded | Failed]) -> list[int]:
    """A group of these grades, a rollout each; the rollouts' ids."""
    store.begin_group(group, f"problem {group}", PROMPT, len(grades))
    rollouts = [store.add_sample(group, place, 0, sample(3 + place), "Proof.") for place in range(len(grades))]
    for rollout, grade in zip(rollouts, grades, strict=True):
        store.add_grade(rollout, grade)
    return rollouts


def test_a_batch_is_what_was_put_in(store: Store, path: Path) -> None:
    rollouts = fill(store, 0, [GRADE, Failed("timeout", "no answer", COST), GRADE])
    again = store.add_sample(0, 1, 1, sample(9, finish_reason="length"), "lone \ud800 surrogate")
    store.add_grade(again, replace(GRADE, points=1, votes=()))
    store.assign(0, [0], {"seconds": 1.5})
    batch = read_batch(path, 0)
    assert (batch.step, batch.stats["seconds"], batch.groups[0].problem) == (0, 1.5, "problem 0")
    got = batch.groups[0].rollouts
    assert [(rollout.id, rollout.attempt) for rollout in got] == [(rollouts[0], 0), (again, 1), (rollouts[2], 0)]
    assert [rollout.grade for rollout in got] == [GRADE, replace(GRADE, points=1, votes=()), GRADE]
    assert got[1].reward == pytest.approx(1 / 7)
    for rollout, right in zip(got, [sample(3), sample(9, finish_reason="length"), sample(5)], strict=True):
        for name in ("prompt_P", "tokens_T", "logprobs_T"):
            array, expected = getattr(rollout.sample, name), getattr(right, name)
            assert array.dtype == expected.dtype
            np.testing.assert_array_equal(array, expected)
        assert (rollout.sample.versions, rollout.sample.finish_reason) == (right.versions, right.finish_reason)


def test_what_a_server_says_with_half_a_character_can_be_kept(store: Store, tmp_path: Path) -> None:
    problem = ProofProblem("p", "Show it.", "7 points for the idea.")

    async def grade(url: str) -> list[Grade]:
        judge = JudgeConfig(base_url=url, model="scripted", structured=True)
        panel = Panel(GraderConfig(judges=(judge,), cache=tmp_path / "grades.sqlite"))
        try:
            return [await panel.grade(problem, proof) for proof in ("Proof.", "Proof.", "Too long.")]
        finally:
            await panel.close()

    with JudgeServer(lambda proof, nth: "400" if proof == "Too long." else "half a character") as server:
        graded, known, refused = asyncio.run(grade(server.url))
    assert isinstance(graded, Graded)
    assert graded.items[0].reason == "shown for ?"
    assert known == replace(graded, cost=Cost())
    assert isinstance(refused, Failed)
    assert "your key was Bearer none, ? (attempt 1" in refused.reason
    fill(store, 0, [graded, refused])
    assert [rollout.grade for rollout in store.groups()[0].rollouts] == [graded, refused]


def test_a_group_is_used_once_and_a_step_is_given_its_groups_once(store: Store, path: Path) -> None:
    for group in range(3):
        fill(store, group, [GRADE, GRADE])
    store.assign(0, [0, 1], {})
    with pytest.raises(ValueError, match="group 1 is used already"):
        store.assign(1, [2, 1], {})
    with pytest.raises(sqlite3.IntegrityError):
        store.assign(0, [2], {})
    assert [group.id for group in store.groups()] == [2]  # neither has taken it
    assert store.next_step == 1
    with pytest.raises(UserError, match="step 1 has been given no groups"):
        read_batch(path, 1)
    store.assign(1, [2], {})
    assert [[group.id for group in read_batch(path, step).groups] for step in (0, 1)] == [[0, 1], [2]]


def test_a_rollout_is_graded_once(store: Store) -> None:
    (rollout, _) = fill(store, 0, [GRADE, GRADE])
    store.add_grade(rollout, Failed("timeout", "in an outage", COST), counts=False)
    with pytest.raises(sqlite3.IntegrityError):
        store.add_grade(rollout, GRADE)
    with pytest.raises(sqlite3.IntegrityError):
        store.add_sample(0, 1, 0, sample(), "again")


def test_grades_of_another_grader_are_withdrawn_where_no_step_has_used_them(store: Store) -> None:
    other, no_proof = replace(GRADE, grader="judge/2"), replace(GRADE, grader="no proof")
    for group in range(3):
        fill(store, group, [GRADE, other, no_proof, Failed("timeout", "", COST)])
    store.make_ready(1)
    store.make_ready(2)
    store.assign(0, [2], {})
    assert store.withdraw_grades("judge/2", "no proof") == 2
    for group in store.groups():
        assert [one.grade for one in group.rollouts] == [None, other, no_proof, Failed("timeout", "", COST)]
    assert len(read_batch(store.path, 0).groups[0].rollouts) == 3
    assert store.withdraw_grades("judge/2", "no proof") == 0
    assert store.counts(1)["grader_requests"] == 0


def test_what_is_too_old_is_left_out(store: Store, path: Path) -> None:
    rollouts = fill(store, 0, [GRADE, GRADE, GRADE])
    store.mark_too_old(rollouts[1], 0)
    store.assign(0, [0], {})
    assert [rollout.id for rollout in read_batch(path, 0).groups[0].rollouts] == [rollouts[0], rollouts[2]]


def test_counts_are_of_one_step(store: Store) -> None:
    fill(store, 0, [GRADE, GRADE])
    fill(store, 1, [GRADE, Failed("timeout", "", COST)])
    store.drop(1, "too few grades", 0)
    store.assign(0, [0], {})
    (late, *_) = fill(store, 2, [GRADE, Failed("refused", "", Cost(1)), Failed("refused", "", Cost(1))])
    store.add_grade(late, Failed("timeout", "", COST), counts=False)
    store.mark_too_old(late, 1)
    store.drop(2, "too old", 1)
    counts = store.counts(1)
    assert {name: value for name, value in counts.items() if value} == {
        "rollouts_generated": 3,
        "tokens_generated": 3 + 4 + 5,
        "grader_requests": 2 + 1 + 1 + 2,
        "grader_prompt_tokens": 200,
        "grader_completion_tokens": 14,
        "grader_money": pytest.approx(0.00024),
        "grades_failed": 3,
        "grades_failed/refused": 2,
        "grades_failed/timeout": 1,
        "groups_dropped/too old": 1,
        "rollouts_too_old": 1,
    }


def test_another_run_is_refused(store: Store, path: Path) -> None:
    store.close()
    with pytest.raises(UserError, match=r"rollouts.sqlite: data.seed: the rollouts .* were made with 5, not 6; set it"):
        Store(path, {"data.seed": "6"})
    Store(path, IDENTITY).close()


def test_there_is_one_writer(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LOCK_SECONDS", 0.2)
    with pytest.raises(UserError, match=f"pid {os.getpid()}. is writing the rollouts of this run"):
        Store(path, IDENTITY)
    monkeypatch.setattr(store_module, "LOCK_SECONDS", 10.0)
    threading.Timer(0.3, store._lock.close).start()  # the one before it ends, a little later
    begin = time.monotonic()
    Store(path, IDENTITY).close()
    assert time.monotonic() - begin > 0.2


def test_what_was_written_outlives_a_kill(path: Path) -> None:
    child = os.fork()
    if child == 0:
        store = Store(path, IDENTITY)
        fill(store, 0, [GRADE, GRADE])
        store.assign(0, [0], {})
        store.begin_group(1, "problem 1", PROMPT, 3)
        store.add_grade(store.add_sample(1, 2, 0, sample(), "Proof."), GRADE)
        store.add_sample(1, 0, 0, sample(), None)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    store = Store(path, IDENTITY)
    (group,) = store.groups()
    assert (group.id, group.size) == (1, 3)
    assert [(rollout.place, rollout.grade, rollout.proof) for rollout in group.rollouts] == [
        (0, None, None),
        (2, GRADE, "Proof."),
    ]
    assert (store.next_step, store.next_group) == (1, 2)
    assert len(read_batch(path, 0).groups[0].rollouts) == 2
    store.close()


def test_a_full_disk_is_told_in_one_line(store: Store, path: Path) -> None:
    fill(store, 0, [GRADE, GRADE])
    store._database.execute("PRAGMA max_page_count = 30")
    full = r"rollouts.sqlite: database or disk is full: rollouts cannot be kept; make room"
    with pytest.raises(UserError, match=full):
        _fill_the_disk(store)
    store.close()
    store = Store(path, IDENTITY)
    store.assign(0, [0], {})
    store.close()
    assert len(read_batch(path, 0).groups[0].rollouts) == 2


def _fill_the_disk(store: Store) -> None:
    for place in range(50):
        store.add_sample(0, 2 + place, 0, sample(2000), "Proof.")


def test_what_is_no_store_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("no database " * 100)
    with pytest.raises(UserError, match="file is not a database"):
        Store(path, IDENTITY)

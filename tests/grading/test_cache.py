"""The cache of grades: what was put in comes out, whoever put it there, and trouble with it costs no grade."""

import asyncio
import multiprocessing
from decimal import Decimal
from pathlib import Path

import pytest

from qedmeg.errors import UserError
from qedmeg.grading.cache import GradeCache
from qedmeg.grading.grade import Cost, Graded, ItemGrade

GRADED = Graded(
    3.5, 7, (ItemGrade("idea", 3.5, 7, "½ of it"),), "judge/1", Cost(2, 10, 20, Decimal("0.0000135")), (3, 4)
)


def put(path: Path, start: int, count: int) -> None:
    async def work() -> None:
        cache = GradeCache(path)
        for i in range(start, start + count):
            await cache.put(f"key {i}", Graded(i % 8, 7, (), "judge/1"))
        cache.close()

    asyncio.run(work())


def get(path: Path, *keys: str) -> list[Graded | None]:
    async def work() -> list[Graded | None]:
        cache = GradeCache(path)
        found = [await cache.get(key) for key in keys]
        cache.close()
        return found

    return asyncio.run(work())


def test_a_grade_comes_back_as_it_was_and_the_first_stays(tmp_path: Path) -> None:
    async def work() -> None:
        cache = GradeCache(tmp_path / "folder" / "grades.sqlite")
        await cache.put("a", GRADED)
        await cache.put("a", Graded(0, 7, (), "judge/1"))
        cache.close()

    asyncio.run(work())
    assert get(tmp_path / "folder" / "grades.sqlite", "a", "b") == [GRADED, None]


def test_several_processes_write_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "grades.sqlite"
    context = multiprocessing.get_context("spawn")
    # Half of the keys are written by both.
    writers = [context.Process(target=put, args=(path, 20 * i, 40)) for i in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert get(path, *(f"key {i}" for i in range(60))) == [Graded(i % 8, 7, (), "judge/1") for i in range(60)]


def test_trouble_with_the_file_is_said_once_and_costs_no_grade(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        cache = GradeCache(tmp_path / "grades.sqlite")
        cache._database.execute("PRAGMA max_page_count = 3")  # a disk that is full
        for i in range(50):
            await cache.put(f"key {i}", GRADED)
        assert await cache.get("key 0") == GRADED
        assert await cache.get("key 49") is None
        cache.close()

    asyncio.run(work())
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'grades.sqlite'}: grades are not kept: database or disk is full"
    ]


def test_a_row_of_another_kind_is_no_grade(tmp_path: Path) -> None:
    async def work() -> None:
        cache = GradeCache(tmp_path / "grades.sqlite")
        with cache._database:
            cache._database.execute("INSERT INTO grades VALUES ('a', '{\"points\": 7}')")
        assert await cache.get("a") is None
        cache.close()

    asyncio.run(work())


def test_a_file_that_is_no_cache_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no database, and longer than a header of one would have to be. " * 10)
    with pytest.raises(UserError, match=r"notes\.txt: cannot be used as a cache of grades"):
        GradeCache(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="cannot be used as a cache"):
        GradeCache(tmp_path / "notes.txt" / "grades.sqlite")

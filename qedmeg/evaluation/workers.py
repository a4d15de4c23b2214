"""Many pieces of work, so many at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TypeVar

from qedmeg.errors import first_error

T = TypeVar("T")


async def work_through(items: Iterable[T], concurrency: int, do: Callable[[T], Awaitable[None]]) -> None:
    """Do all items, `concurrency` at a time, in their order; what goes wrong first is raised and ends the rest."""

    async def work(mine: Iterator[T]) -> None:
        for item in mine:
            await do(item)

    shared = iter(items)
    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(concurrency):
                tasks.create_task(work(shared))
    except BaseExceptionGroup as group:
        raise first_error(group) from None

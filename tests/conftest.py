"""Fixtures of all tests: gloo ranks shared by the session, small checkpoints made once."""

import gc
import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.ranks import RankPool


def pytest_collection_finish() -> None:
    """What was imported stays: to look through it takes most of a second, of tests and of the times that they ask."""
    gc.collect()
    gc.freeze()


# Their files take longest: two workers are done together when these are begun with.
LONG = ("training", "distributed", "rollout", "conversion", "release")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long are run first."""
    items.sort(key=lambda item: LONG.index(item.path.parent.name) if item.path.parent.name in LONG else len(LONG))


@pytest.fixture
def no_collection() -> Iterator[None]:
    """No garbage is collected meanwhile: for tests that take the time of what takes milliseconds."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPool]:
    """`ranks(function, world_size, *arguments)`: what `function` returned on each rank of a real gloo world."""
    pool = RankPool()
    yield pool
    pool.close()

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

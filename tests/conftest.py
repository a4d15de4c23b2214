"""Fixtures of all tests: gloo ranks shared by the session, small checkpoints made once."""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.ranks import RankPool


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPool]:
    """`ranks(function, world_size, *arguments)`: what `function` returned on each rank of a real gloo world."""
    pool = RankPool()
    yield pool
    pool.close()

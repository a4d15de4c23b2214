"""The order of the documents and the position in it."""

import json

import pytest

from qedmeg.data.sampler import DataPosition, documents_at, permutation
from qedmeg.errors import UserError


def test_the_order_is_the_same_for_ever() -> None:
    # Written down once: Philox's raw output is stable across numpy versions, and so must this be.
    assert permutation(0, 0, 10).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert permutation(1, 0, 10).tolist() == [3, 5, 2, 9, 7, 0, 8, 6, 1, 4]
    assert permutation(0, 1, 10).tolist() == [5, 3, 7, 8, 2, 4, 1, 0, 6, 9]


@pytest.mark.parametrize("count", [1, 3, 7, 10, 25])
def test_every_document_exactly_once_an_epoch(count: int) -> None:
    stream = [document for step in range(60) for document in documents_at(5, 10, step * count, count)]
    for epoch in range(len(stream) // 10):
        assert sorted(stream[epoch * 10 : epoch * 10 + 10]) == list(range(10))
    assert stream[:10] != stream[10:20]


def test_the_stream_does_not_depend_on_the_step_size() -> None:
    assert documents_at(3, 7, 0, 30) == documents_at(3, 7, 0, 11) + documents_at(3, 7, 11, 19)


def test_state_survives_json_and_a_round_trip() -> None:
    position = DataPosition(seed=4, size=10, fingerprint="f" * 64, consumed=23)
    state = json.loads(json.dumps(position.state_dict()))
    assert state == {"seed": 4, "epoch": 2, "position": 3, "size": 10, "fingerprint": "f" * 64}
    assert DataPosition(4, 10, "f" * 64).resumed(state) == position


def test_resuming_on_other_documents_or_another_seed_is_refused() -> None:
    state = DataPosition(4, 10, "a" * 64, 3).state_dict()
    with pytest.raises(UserError, match=r"data.train: .*11 documents, fingerprint aaaaaaaaaaaa; then 10"):
        DataPosition(4, 11, "a" * 64).resumed(state)
    with pytest.raises(UserError, match=r"data.train: .*fingerprint bbbbbbbbbbbb; then 10, aaaaaaaaaaaa"):
        DataPosition(4, 10, "b" * 64).resumed(state)
    with pytest.raises(UserError, match=r"data.seed: 5: .*trained with 4"):
        DataPosition(5, 10, "a" * 64).resumed(state)

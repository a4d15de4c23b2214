"""When vLLM is given a parameter where it was received, and when it must make a copy."""

import pytest
import torch

from qedmeg.rollout.gloo_engine import _as_received

Q, K, V = torch.arange(24, dtype=torch.float32).view(12, 2).split([6, 3, 3])
META = torch.nn.Parameter(torch.empty(12, 2, device="meta"))
META.output_dim = 0


def parts(*tensors: torch.Tensor, shards: tuple[object, ...] = ("q", "k", "v")) -> list[dict[str, object]]:
    return [
        {"param": META, "loaded_weight": tensor, "loaded_shard_id": shard}
        for tensor, shard in zip(tensors, shards, strict=True)
    ]


def test_neighbours_in_memory_are_one_parameter():
    view = _as_received(META, parts(Q, K, V))
    assert view.data_ptr() == Q.data_ptr()
    assert torch.equal(view, torch.cat([Q, K, V]))
    assert (type(view), view.output_dim) == (torch.nn.Parameter, 0)


def test_a_whole_tensor_is_its_parameter():
    whole = torch.ones(12, 2)
    assert _as_received(META, [{"loaded_weight": whole}]).data_ptr() == whole.data_ptr()


@pytest.mark.parametrize(
    "given",
    [
        parts(K, Q, V),  # in another order in memory
        parts(Q, K, V, shards=("k", "q", "v")),  # of another order in the parameter
        parts(Q, K, V.clone()),  # kept from an earlier buffer
        parts(Q, K, shards=("q", "k")),  # not all of it
        parts(Q[::2], K, V),  # a rank's share
        parts(Q.double(), K, V),
        [],
    ],
    ids=["memory", "shards", "kept", "part", "share", "dtype", "none"],
)
def test_all_else_is_copied(given):
    assert _as_received(META, given) is None


def test_what_is_there_already_is_not_replaced():
    assert _as_received(torch.nn.Parameter(torch.ones(12, 2)), parts(Q, K, V)) is None
    assert _as_received(None, parts(Q, K, V)) is None

"""What goes to vLLM's nccl engine is cut as that engine cuts it; the rest needs GPUs."""

import torch

from qedmeg.model.export import Bucket
from qedmeg.rollout.nccl_link import cut, packed


def _bucket(*sizes: int) -> Bucket:
    tensors = tuple((f"{size}", torch.full((size,), size, dtype=torch.uint8)) for size in sizes)
    return Bucket(torch.cat([tensor for _, tensor in tensors]), tensors)


def test_cut_after_the_tensor_that_exceeds_the_limit():
    """vLLM 0.32, packed_nccl_broadcast_consumer: it adds tensors up until their bytes are more than the limit."""
    buckets = [_bucket(60, 4), _bucket(1, 10), _bucket(200), None, _bucket(30)]
    parts = cut([60, 4, 1, 10, 200, 30], limit=64)
    assert parts == [(3, 65), (2, 210), (1, 30)]
    chunks = list(packed(buckets, parts))
    sizes = [None if chunk is None else chunk.unique_consecutive().tolist() for chunk in chunks]
    assert sizes == [[60, 4, 1], [10, 200], None, [30]]
    assert torch.equal(torch.cat([c for c in chunks if c is not None]), torch.cat([b.buffer for b in buckets if b]))
    assert cut([60, 4, 1], limit=64) == [(3, 65)]  # and no empty one after it


def test_tensors_of_other_types_go_as_bytes():
    weight = torch.randn(3, 4).bfloat16()
    bucket = Bucket(weight.view(-1).view(torch.uint8), (("weight", weight),))
    (chunk,) = packed([bucket], cut([24]))
    assert torch.equal(chunk.view(torch.bfloat16).view(3, 4), weight)

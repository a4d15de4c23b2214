"""Every exported tensor is bit-equal to the checkpoint that the ranks were filled from, whatever the layout."""

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.checkpoints import make_checkpoint

SMALL_BUCKET = 40_000  # the models below take 0.5 to 1 MB: several buckets, some of a single tensor


def _build(folder: Path, sizes: dict[str, int], dtype: torch.dtype):
    """This rank's model, filled from a Hugging Face folder."""
    from qedmeg import parallel
    from qedmeg.model import build, families, weights

    model, parallelism = families.read_architecture(folder), parallel.Parallelism(**sizes)
    parallel.check(parallelism, model, world_size=torch.distributed.get_world_size())
    parallel.initialize(parallelism, seed=1)
    chunks = build.build_model(model, parallelism, build.Compute(dtype=dtype))
    for chunk in chunks:
        chunk.to(dtype)
    weights.load_hf(chunks, model, folder)
    return model, chunks


def _export(folder: Path, sizes: dict[str, int], dtype: torch.dtype, bucket_bytes: int):
    """What this rank gets: the tensors, sent and by shared memory; what was announced; and the buckets' sizes."""
    from qedmeg.model.export import Export
    from qedmeg.rollout import gloo_link

    model, chunks = _build(folder, sizes, dtype)
    export = Export(chunks, model, bucket_bytes)
    tensors = {name: tensor.clone() for name, tensor in export}
    buckets = [None if bucket is None else len(bucket.buffer) for bucket in export.stream()]
    announced = [(tensor.name, tensor.dtype, tensor.shape) for tensor in export.tensors]
    slots = gloo_link.Slots([size for _, size in export.buckets]) if torch.distributed.get_rank() == 0 else None
    memory = gloo_link.of_all_ranks(slots)
    assert memory is not None
    filled = [pair for bucket in export.stream(memory.allocate, shared=True) for pair in _copied(bucket)]
    return tensors, dict(filled), announced, list(export.buckets), buckets


def _copied(bucket) -> list[tuple[str, torch.Tensor]]:
    return [] if bucket is None else [(name, tensor.clone()) for name, tensor in bucket.tensors]


LAYOUTS = [
    ("qwen3", True, {"tp": 2, "pp": 2}),
    ("qwen3", False, {"tp": 1, "pp": 2, "vpp": 2}),
    ("qwen3", True, {"tp": 4}),
    ("llama", False, {"pp": 4}),
    ("qwen2", True, {"tp": 2, "cp": 2}),
    ("qwen2", False, {"tp": 2, "sp": True}),  # DP 2
    ("qwen3_moe", False, {"tp": 2, "ep": 2, "sp": True}),
    ("qwen3_moe", True, {"tp": 1, "pp": 2, "ep": 2}),
    ("qwen3_moe", False, {"ep": 4}),
]


@pytest.mark.parametrize(("family", "tied", "sizes"), LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_tensor_is_the_checkpoints(ranks, tmp_path, family, tied, sizes, dtype):
    make_checkpoint(tmp_path, family, dtype, tie_word_embeddings=tied)
    stored = load_file(tmp_path / "model.safetensors")
    first, *others = ranks(_export, 4, tmp_path, sizes, dtype, SMALL_BUCKET)
    sent, filled, announced, planned, buckets = first
    for tensors in (sent, filled):
        assert tensors.keys() == stored.keys()
        for name, tensor in stored.items():
            assert tensors[name].dtype == tensor.dtype
            assert torch.equal(tensors[name], tensor), name
    assert announced == [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in sent.items()]
    assert buckets == [size for _, size in planned]
    assert sum(buckets) == sum(tensor.nbytes for tensor in stored.values())
    for (count, size), (following, _) in itertools.pairwise(planned):
        assert size <= SMALL_BUCKET or count in (1, 3)  # q, k and v are one tensor of Megatron's
        assert following
    assert len(buckets) > 10
    for received, shared, names, plan, seen in others:
        assert (received, shared, names, plan) == ({}, {}, announced, planned)
        assert seen == [None] * len(buckets)


def _traffic(folder: Path, sizes: dict[str, int]):
    """Bytes of each sending rank, as rank 0 and the sender count them, and the most memory that a bucket was given."""
    from qedmeg.model import export

    sent, received = [], []
    p2p = export.dist.P2POp

    def counting(operation, tensor, peer):
        (sent if operation is export.dist.isend else received).append((peer, tensor.nbytes))
        return p2p(operation, tensor, peer)

    export.dist.P2POp = counting
    try:
        model, chunks = _build(folder, sizes, torch.float32)
        for _ in export.Export(chunks, model).stream():
            pass
    finally:
        export.dist.P2POp = p2p
    held = sum(parameter.nbytes for chunk in chunks for parameter in chunk.parameters())
    return sum(size for _, size in sent), sum(size for _, size in received), held


def test_replicas_stay_silent(ranks, tmp_path):
    make_checkpoint(tmp_path, "qwen3")
    results = ranks(_traffic, 4, tmp_path, {"tp": 2})  # DP 2: ranks 2 and 3 hold what 0 and 1 hold
    sent, received, _ = zip(*results, strict=True)
    assert sent[0] == sent[2] == sent[3] == 0
    assert 0 < sent[1] < results[1][2]
    assert received == (sent[1], 0, 0, 0)


def test_a_training_step_shows(ranks, tmp_path):
    """The export reads the parameters as they are at each pass."""
    make_checkpoint(tmp_path, "qwen3")
    first, second = ranks(_export_twice, 2, tmp_path)[0]
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(second[name], tensor * 2), name


def _export_twice(folder: Path):
    from qedmeg.model.export import Export

    model, chunks = _build(folder, {"tp": 2}, torch.float32)
    export = Export(chunks, model)
    first = {name: tensor.clone() for name, tensor in export}
    with torch.no_grad():
        for chunk in chunks:
            for parameter in chunk.parameters():
                parameter *= 2
    return first, dict(export)

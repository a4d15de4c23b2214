"""Training over any parallelism equals transformers and torch's AdamW, step by step."""

from pathlib import Path

import pytest
import torch

from tests import parity
from tests.checkpoints import make_checkpoint

FEW_STEPS = 8
"""Of settings beside the matrix of `test_packed_and_dense_training`, which is held to all `parity.STEPS`."""
MODELS = {
    "plain": ("qwen3", {}),
    "tied": ("qwen3", {"tie_word_embeddings": True}),
    "five layers": ("qwen3", {"num_hidden_layers": 5}),
    "biases": ("qwen2", {}),
    "experts": ("qwen3_moe", {}),
}


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Path:
    return parity.write_documents(tmp_path_factory.mktemp("parity") / "documents")


@pytest.fixture(scope="session")
def expected(store, tmp_path_factory):
    """`expected(name)`: the model's folder and transformers' course in fp32, computed once a session."""
    found = {}

    def compute(name: str) -> tuple[Path, parity.Course]:
        if name not in found:
            family, config = MODELS[name]
            folder = tmp_path_factory.mktemp(name)
            make_checkpoint(folder, family, **config)
            found[name] = folder, parity.reference(folder, store)
        return found[name]

    return compute


def _differences(ranks, expected, store, model, sizes, world_size, compute, packed=True, steps=FEW_STEPS):
    folder, theirs = expected(model)
    courses = ranks(parity.train_policy, world_size, folder, store, sizes, compute, packed, steps)
    assert all(course == courses[0] for course in courses)
    assert theirs.losses[-1] < 0.9 * theirs.losses[0]  # there is something to compare
    found = parity.differences(courses[0], theirs)
    print(
        f"\n{model}, {sizes}, {world_size} ranks, {compute}, {'packed' if packed else 'dense'}: first loss "
        f"{found.first_loss:.1e}, first gradient norm {found.first_grad_norm:.1e}, last loss {found.last_loss:.1e}"
    )
    return found


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "dense"])
@pytest.mark.parametrize(
    ("sizes", "world_size"),
    [
        ({}, 1),
        ({"tp": 2}, 2),
        ({"pp": 2}, 2),
        ({}, 2),  # DP2
        ({"tp": 2, "sp": True}, 2),
        ({"cp": 2}, 2),
        ({"pp": 2, "vpp": 2}, 2),
        ({"tp": 2, "pp": 2}, 4),
    ],
)
def test_packed_and_dense_training(ranks, expected, store, sizes, world_size, packed):
    found = _differences(ranks, expected, store, "plain", sizes, world_size, {}, packed, parity.STEPS)
    assert found.first_loss <= 1e-6
    assert found.first_grad_norm <= 1e-6
    assert found.last_loss <= 1e-4


@pytest.mark.parametrize(
    ("model", "sizes", "world_size", "compute"),
    [
        ("plain", {"pp": 3}, 3, {}),  # layers 2, 1, 1
        ("plain", {"tp": 4}, 4, {}),  # more ranks than KV heads
        ("plain", {"tp": 2}, 4, {}),  # TP2 × DP2
        ("plain", {"tp": 2, "cp": 2, "sp": True}, 4, {}),
        ("plain", {"tp": 2, "pp": 2, "sp": True}, 4, {}),
        ("plain", {"pp": 2, "cp": 2}, 4, {}),
        ("plain", {"pp": 2, "vpp": 2}, 2, {"recompute": "full"}),
        ("plain", {"tp": 2, "sp": True}, 2, {"recompute": "full"}),
        ("plain", {"tp": 2}, 2, {"recompute": "selective"}),
        ("tied", {}, 1, {}),
        ("tied", {"pp": 2}, 2, {}),
        ("five layers", {"pp": 2, "vpp": 2}, 2, {}),  # layers 2, 1, 1, 1
        ("biases", {"tp": 2, "sp": True}, 2, {}),
        ("experts", {"ep": 2}, 2, {"recompute": "selective"}),
        ("experts", {"tp": 2, "sp": True}, 2, {}),
        ("experts", {"ep": 2, "cp": 2}, 2, {}),
        ("experts", {}, 2, {}),  # DP2
        ("experts", {"pp": 2}, 2, {"recompute": "selective"}),
    ],
)
def test_other_models_and_settings(ranks, expected, store, model, sizes, world_size, compute):
    found = _differences(ranks, expected, store, model, sizes, world_size, compute)
    assert found.first_loss <= 1e-6
    assert found.first_grad_norm <= 1e-6
    assert found.last_loss <= 1e-4


@pytest.mark.parametrize(
    ("sizes", "world_size"), [({}, 1), ({}, 2), ({"tp": 2, "sp": True}, 2), ({"cp": 2}, 2), ({"pp": 2, "vpp": 2}, 2)]
)
def test_bf16_stays_near_fp32(ranks, expected, store, sizes, world_size):
    """bf16 keeps 8 bits of mantissa, 4e-3 a number; the reference is in fp32, weights included."""
    found = _differences(ranks, expected, store, "plain", sizes, world_size, {"dtype": torch.bfloat16})
    assert found.first_loss <= 2e-3
    assert found.first_grad_norm <= 1e-2
    assert found.last_loss <= 5e-3

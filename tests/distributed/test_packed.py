"""Documents packed into one sequence are computed as if each were alone, and padding is not computed at all."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from qedmeg.data.chat import Document
from qedmeg.data.documents import DocumentStore, StoreWriter
from tests.checkpoints import make_checkpoint

BUDGET = 48
FIRST, OTHER, SECOND = range(3)
STEPS = ([FIRST, SECOND], [OTHER, SECOND], [SECOND])
"""Documents of each step: only `SECOND` is trained on, whatever stands before it."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    """A model folder and a store of three documents."""
    folder = tmp_path_factory.mktemp("packed")
    make_checkpoint(folder / "model")
    random = np.random.default_rng(0)
    writer = StoreWriter(folder / "store")
    for length, trained in ((17, False), (19, False), (11, True)):
        mask_T = np.full(length, trained)
        mask_T[:4] = False
        writer.add(Document(random.integers(0, 300, length).astype(np.int32), mask_T))
    writer.finish("three documents")
    return folder / "model", folder / "store"


def _losses(model_folder: Path, store_folder: Path, sizes: dict[str, int]) -> list[float]:
    """Validation loss of each step, and of the last with NaN in all padding of the vocabulary."""
    import torch.distributed as dist

    from qedmeg import parallel
    from qedmeg.data.loader import build_step
    from qedmeg.model import families, weights
    from qedmeg.model.build import Compute
    from qedmeg.training.policy import Policy, placement

    model, parallelism = families.read_architecture(model_folder), parallel.Parallelism(**sizes)
    parallel.check(parallelism, model, dist.get_world_size())
    parallel.initialize(parallelism, seed=1)
    policy = Policy(model, parallelism, Compute(), prompts_per_step=2)
    weights.load_hf(policy.chunks, model, model_folder)
    store = DocumentStore(store_folder)
    steps = [build_step(store, documents, BUDGET, 0, placement(parallelism)) for documents in STEPS]
    policy.prepare_for_validation_step()
    with torch.no_grad():
        losses = [policy.get_loss_and_metrics(step, forward_only=True)[0] for step in steps]
        rank = parallel.parallel_state.get_tensor_model_parallel_rank()
        for chunk in policy.chunks:
            for layer in ("embedding.word_embeddings", "output_layer"):
                if (layer == "output_layer" and chunk.post_process) or (layer != "output_layer" and chunk.pre_process):
                    rows_VH = chunk.get_submodule(layer).weight
                    rows_VH[max(model.vocabulary - rank * len(rows_VH), 0) :] = torch.nan
        return [*losses, policy.get_loss_and_metrics(steps[-1], forward_only=True)[0]]


@pytest.mark.parametrize(
    ("sizes", "world_size"),
    [
        ({}, 1),
        ({}, 2),  # one rank of two has no document in a step of one
        ({"tp": 2, "sp": True}, 2),
        ({"tp": 4}, 4),
        ({"cp": 2}, 2),  # 11 and 17 tokens, each padded to a multiple of 4
        ({"pp": 2, "vpp": 2}, 2),
    ],
)
def test_each_document_is_alone(ranks, inputs, sizes, world_size):
    model_folder, store_folder = inputs
    document = DocumentStore(store_folder)[SECOND]
    tokens_T = torch.from_numpy(document.tokens_T.astype(np.int64))
    with torch.no_grad():
        logits_TV = AutoModelForCausalLM.from_pretrained(model_folder)(tokens_T[None]).logits[0]
    mask_T = torch.from_numpy(document.mask_T[1:].copy())
    expected = F.cross_entropy(logits_TV[:-1][mask_T], tokens_T[1:][mask_T]).item()
    for losses in ranks(_losses, world_size, model_folder, store_folder, sizes):
        assert losses == pytest.approx([expected] * 4, rel=1e-6)

"""The same model on a GPU: NCCL, Transformer Engine's layers, and its FP8 recipes."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from qedmeg.model.spec import has_transformer_engine
from tests.checkpoints import make_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
needs_transformer_engine = pytest.mark.skipif(not has_transformer_engine(), reason="needs Transformer Engine")

# widths of which FP8's tiles make whole numbers
SIZES = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "vocab_size": 512}


@pytest.fixture
def model(tmp_path):
    """Builds a policy on one GPU over a fresh checkpoint in `tmp_path`."""
    from qedmeg import parallel
    from qedmeg.model import families, weights
    from qedmeg.model.build import Compute
    from qedmeg.training.policy import Policy

    make_checkpoint(tmp_path, dtype=torch.bfloat16, **SIZES)
    architecture, parallelism = families.read_architecture(tmp_path), parallel.Parallelism()
    parallel.initialize(parallelism, seed=1)

    def build(**compute):
        policy = Policy(architecture, parallelism, Compute(dtype=torch.bfloat16, **compute), prompts_per_step=4)
        weights.load_hf(policy.chunks, architecture, tmp_path)
        return policy

    yield build
    parallel.destroy()


def _step(seed=0):
    from qedmeg.data.chat import Document
    from qedmeg.data.loader import Step
    from qedmeg.data.packing import make_batch

    generator = torch.Generator().manual_seed(seed)
    documents = []
    for length in (100, 60, 90):
        tokens = torch.randint(0, 512, (length,), generator=generator)
        documents.append(Document(tokens.numpy().astype("int32"), (torch.arange(length) > 10).numpy()))
    batch = make_batch(documents, 256)
    trained = float(batch.mask_T.sum())
    return Step((batch,), (0, 1, 2), 250, int(trained), trained, 0.0, 0.97)


@pytest.mark.parametrize("transformer_engine", [False, pytest.param(True, marks=needs_transformer_engine)])
def test_loss_equals_transformers(model, tmp_path, transformer_engine):
    step = _step()
    loss, _ = model(transformer_engine=transformer_engine).get_loss_and_metrics(step, forward_only=True)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    batch, total = step.microbatches[0], 0.0
    with torch.no_grad():
        for start, end in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
            logits = reference(batch.tokens_T[None, start:end]).logits[0]
            losses = torch.nn.functional.cross_entropy(logits, batch.labels_T[start:end], reduction="none")
            total += float((losses * batch.mask_T[start:end]).sum())
    assert loss == pytest.approx(total / step.loss_divisor, rel=1e-2)


@needs_transformer_engine
@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise"])
def test_fp8_stays_near_bf16(model, recipe):
    step = _step()
    losses = {}
    for fp8 in (None, recipe):
        policy = model(transformer_engine=True, fp8=fp8)
        policy.prepare_for_training_step()
        losses[fp8], _ = policy.get_loss_and_metrics(step, forward_only=False)
    assert losses[recipe] == pytest.approx(losses[None], rel=3e-2)

"""A model that starts from a Hugging Face folder has transformers' logits, however it is spread."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.checkpoints import make_checkpoint

TOKENS_BS = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(1))


def _logits(folder: Path, sizes: dict[str, int]) -> torch.Tensor | None:
    """Logits [b, s, vocabulary] on the last stage, None on others."""
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    from qedmeg import parallel
    from qedmeg.model import build, families, weights

    model, parallelism = families.read_architecture(folder), parallel.Parallelism(**sizes)
    parallel.check(parallelism, model, world_size=torch.distributed.get_world_size())
    parallel.initialize(parallelism, seed=1)
    chunks = build.build_model(model, parallelism, build.Compute())
    weights.load_hf(chunks, model, folder)

    def forward(iterator, chunk):
        tokens_BS = next(iterator)
        positions_BS = torch.arange(tokens_BS.shape[1]).expand_as(tokens_BS)
        return chunk(tokens_BS, positions_BS, None), lambda logits, non_loss_data=True: logits

    iterators = [iter([TOKENS_BS] * 2) for _ in chunks]
    with torch.no_grad():
        outputs = get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=iterators if len(chunks) > 1 else iterators[0],
            model=chunks if len(chunks) > 1 else chunks[0],
            num_microbatches=2,
            seq_length=TOKENS_BS.shape[1],
            micro_batch_size=TOKENS_BS.shape[0],
            forward_only=True,
            collect_non_loss_data=True,
        )
    return gather_from_tensor_model_parallel_region(outputs[0])[..., : model.vocabulary] if outputs else None


@pytest.mark.parametrize(
    ("family", "config", "sizes", "world_size"),
    [
        ("qwen3", {}, {}, 1),
        ("qwen3", {"tie_word_embeddings": True}, {"tp": 2, "pp": 2}, 4),
        ("qwen3", {}, {"tp": 4}, 4),  # more ranks than KV heads
        ("qwen3", {"num_hidden_layers": 5}, {"pp": 3}, 3),
        ("qwen3", {}, {"tp": 2, "sp": True}, 2),
        ("qwen3", {}, {"pp": 2, "vpp": 2}, 2),
        ("qwen2", {}, {"tp": 2}, 2),
        ("llama", {}, {"tp": 2, "pp": 2}, 4),
        ("qwen3_moe", {}, {}, 1),
        ("qwen3_moe", {"norm_topk_prob": False}, {"ep": 2}, 2),
        ("qwen3_moe", {}, {"tp": 2, "ep": 2, "sp": True}, 4),
    ],
)
def test_logits_equal_transformers(ranks, tmp_path, family, config, sizes, world_size):
    make_checkpoint(tmp_path, family, **config)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(tmp_path)(TOKENS_BS).logits
    found = [logits for logits in ranks(_logits, world_size, tmp_path, sizes) if logits is not None]
    assert found
    for logits in found:
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)

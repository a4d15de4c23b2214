"""Megatron-core loads what conversion wrote, with transformers' logits; conversion reads what Megatron-core saved."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qedmeg.conversion.convert import hf_to_megatron, megatron_to_hf
from tests.checkpoints import make_checkpoint

TOKENS_BS = torch.randint(0, 300, (1, 24), generator=torch.Generator().manual_seed(1))


def _start(folder: Path, sizes: dict[str, int], megatron: bool) -> tuple[object, list]:
    """This rank's model, filled from a folder of either format."""
    from qedmeg import parallel
    from qedmeg.model import build, families, weights

    model, parallelism = (
        families.read_architecture(folder / "hf" if megatron else folder),
        parallel.Parallelism(**sizes),
    )
    parallel.check(parallelism, model, world_size=torch.distributed.get_world_size())
    parallel.initialize(parallelism, seed=1)
    chunks = build.build_model(model, parallelism, build.Compute())
    if megatron:
        weights.load_megatron(chunks, folder)
    else:
        weights.load_hf(chunks, model, folder)
    return model, chunks


def _logits(folder: Path, sizes: dict[str, int]) -> torch.Tensor | None:
    """Logits [b, s, vocabulary] on the last stage, None on others."""
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    model, chunks = _start(folder, sizes, megatron=True)
    positions_BS = torch.arange(TOKENS_BS.shape[1]).expand_as(TOKENS_BS)

    def forward(iterator, chunk):
        return chunk(next(iterator), positions_BS, None), lambda logits, non_loss_data=True: logits

    with torch.no_grad():
        outputs = get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=iter([TOKENS_BS]),
            model=chunks[0],
            num_microbatches=1,
            seq_length=TOKENS_BS.shape[1],
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
    return gather_from_tensor_model_parallel_region(outputs[0])[..., : model.vocabulary] if outputs else None


@pytest.mark.parametrize(
    ("family", "tied", "written", "loaded"),
    [
        ("qwen3", False, {"tp": 1, "pp": 3}, {"tp": 2, "pp": 2}),
        ("llama", True, {"tp": 4}, {"tp": 2, "pp": 2}),
        ("qwen2", False, {"tp": 2, "pp": 2}, {"tp": 2, "pp": 2}),
        ("qwen3_moe", False, {"tp": 2, "pp": 2, "ep": 4}, {"tp": 2, "ep": 2, "sp": True}),
    ],
)
def test_megatron_loads_it(ranks, tmp_path, family, tied, written, loaded):
    reference = make_checkpoint(tmp_path / "hf", family, tie_word_embeddings=tied)
    hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", **written, checks=("tensors",))
    with torch.no_grad():
        expected = reference(TOKENS_BS).logits
    found = [logits for logits in ranks(_logits, 4, tmp_path / "megatron", loaded) if logits is not None]
    assert found
    for logits in found:
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def _save(hf: Path, out: Path, sizes: dict[str, int]) -> None:
    """Megatron's own save, of weights and, under the names that Megatron gives them, tensors of an optimizer."""
    from megatron.core import dist_checkpointing, parallel_state

    from qedmeg.model import checkpoint_folder, weights

    model, chunks = _start(hf, sizes, megatron=False)
    partial = out.with_name(out.name + ".partial")
    if torch.distributed.get_rank() == 0:
        partial.mkdir()
    torch.distributed.barrier()
    state = {"model": chunks[0].sharded_state_dict(metadata=weights.checkpoint_metadata())}
    momenta = chunks[0].sharded_state_dict(metadata=weights.checkpoint_metadata())
    for shard in momenta.values():
        shard.key = f"optimizer.state.exp_avg.{shard.key}"
    dist_checkpointing.save(state | {"optimizer": momenta}, str(partial), content_metadata=weights.CONTENT_METADATA)
    if torch.distributed.get_rank() == 0:
        info = checkpoint_folder.CheckpointInfo(
            architecture=model.name,
            dtype="float32",
            vocabulary=model.vocabulary,
            tp=parallel_state.get_tensor_model_parallel_world_size(),
            pp=parallel_state.get_pipeline_model_parallel_world_size(),
            ep=parallel_state.get_expert_model_parallel_world_size(),
        )
        checkpoint_folder.write_description(partial, info, hf)
        checkpoint_folder.publish(partial, out)


@pytest.mark.parametrize(
    ("family", "tied", "sizes"),
    [
        ("qwen3", True, {"tp": 2, "pp": 2}),
        ("qwen2", False, {"pp": 3}),
        ("qwen3_moe", False, {"tp": 2, "ep": 2, "sp": True}),
    ],
)
def test_what_megatron_saved_is_exported(ranks, hf_folder, tmp_path, family, tied, sizes):
    source = hf_folder(family, tie_word_embeddings=tied)
    ranks(_save, 3 if sizes.get("pp") == 3 else 4, source, tmp_path / "megatron", sizes)
    assert megatron_to_hf(tmp_path / "megatron", tmp_path / "back", checks=("tensors", "config")).equal
    expected, found = load_file(source / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())

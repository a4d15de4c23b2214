"""What the settings become in Megatron-core's config and layer spec, with Transformer Engine and apex absent."""

import pytest
import torch
import torch.nn.functional as F
from megatron.core.models.gpt import gpt_layer_specs

from qedmeg.errors import UserError
from qedmeg.model import build, spec
from qedmeg.model.build import Compute, transformer_config
from qedmeg.model.families import read_architecture
from qedmeg.model.layers import RMSNorm, SDPAttention
from qedmeg.parallel import Parallelism
from tests.checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_checkpoint(folder)
    return read_architecture(folder)


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (Compute(transformer_engine=True), "the package transformer_engine is not installed"),
        (Compute(transformer_engine=True, fp8="delayed"), "the package transformer_engine is not installed"),
        (Compute(fp8="delayed"), "needs compute.transformer_engine: true"),
        (Compute(gradient_accumulation_fusion=True), "the package apex is not installed"),
    ],
)
def test_what_is_asked_for_and_missing(model, compute, message):
    with pytest.raises(UserError, match=message):
        transformer_config(model, Parallelism(), compute)


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise"])
def test_fp8_recipes(model, monkeypatch, recipe):
    monkeypatch.setattr(build, "has_transformer_engine", lambda: True)
    config = transformer_config(model, Parallelism(), Compute(torch.bfloat16, transformer_engine=True, fp8=recipe))
    assert (config.fp8, config.fp8_recipe) == ("hybrid", recipe)
    # the delayed recipe scales by the largest magnitude that it has seen over many steps; Megatron's default is one
    assert config.fp8_amax_history_len == (1024 if recipe == "delayed" else 1)
    assert config.fp8_amax_compute_algo == ("max" if recipe == "delayed" else "most_recent")


def test_transformer_engine_brings_its_fusions_and_the_cpu_does_without(model, monkeypatch):
    cpu = transformer_config(model, Parallelism(), Compute())
    assert (cpu.fp8, cpu.apply_rope_fusion, cpu.persist_layer_norm) == (None, False, False)
    assert cpu.activation_func is F.silu
    monkeypatch.setattr(build, "has_transformer_engine", lambda: True)
    engine = transformer_config(model, Parallelism(), Compute(torch.bfloat16, transformer_engine=True))
    assert (engine.apply_rope_fusion, engine.persist_layer_norm) == (True, True)


def test_apex_is_asked_for_by_its_setting(model, monkeypatch):
    monkeypatch.setattr(build, "has_gradient_accumulation_fusion", lambda: True)
    assert transformer_config(
        model, Parallelism(), Compute(gradient_accumulation_fusion=True)
    ).gradient_accumulation_fusion
    assert not transformer_config(model, Parallelism(), Compute()).gradient_accumulation_fusion


def test_the_spec_asks_megatron_for_the_engines_layers(model, monkeypatch):
    """The engine's own modules cannot be imported here: Megatron-core is asked for them, and what it gives is kept."""
    asked = {}
    given = gpt_layer_specs.get_gpt_decoder_block_spec(
        transformer_config(model, Parallelism(), Compute()), use_transformer_engine=False, normalization="RMSNorm"
    )

    def record(config, **options):
        asked.update(options)
        return given

    monkeypatch.setattr(spec, "get_gpt_decoder_block_spec", record)
    before = given.layer_specs[0].submodules.self_attention.submodules.core_attention
    config = transformer_config(model, Parallelism(), Compute())
    assert spec.block_spec(config, transformer_engine=True, vp_stage=None) is given
    assert asked == {"use_transformer_engine": True, "normalization": "RMSNorm", "vp_stage": None}
    assert given.layer_specs[0].submodules.self_attention.submodules.core_attention is before

    ours = spec.block_spec(config, transformer_engine=False, vp_stage=None)
    assert ours.layer_norm is RMSNorm
    assert all(layer.submodules.self_attention.submodules.core_attention is SDPAttention for layer in ours.layer_specs)

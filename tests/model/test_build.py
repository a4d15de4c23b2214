"""What the settings become in Megatron-core's config and layer spec, with Transformer Engine and apex absent."""

from types import SimpleNamespace

import pytest
import torch
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
        (Compute(gradient_accumulation_fusion=True), "or the package apex with its CUDA extensions"),
    ],
)
def test_what_is_asked_for_and_missing(model, compute, message):
    with pytest.raises(UserError, match=message):
        transformer_config(model, Parallelism(), compute)


@pytest.fixture
def with_engine(monkeypatch):
    """`with_engine(model, compute)`: what Megatron-core's config would be given where Transformer Engine is there.

    Megatron-core's own checks of the config import the engine, so that it is not made here.
    """
    monkeypatch.setattr(build, "has_transformer_engine", lambda: True)
    monkeypatch.setattr(build, "TransformerConfig", lambda **given: given)
    return lambda model, compute: transformer_config(model, Parallelism(), compute)


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise"])
def test_fp8_recipes(model, with_engine, recipe):
    given = with_engine(model, Compute(torch.bfloat16, transformer_engine=True, fp8=recipe))
    assert (given["fp8"], given["fp8_recipe"]) == ("hybrid", recipe)
    # the delayed recipe scales by the largest magnitude that it has seen over many steps
    history = {"fp8_amax_history_len": 1024, "fp8_amax_compute_algo": "max"}
    assert {name: value for name, value in given.items() if "amax" in name} == (history if recipe == "delayed" else {})


def test_transformer_engine_brings_its_fusions_and_the_cpu_does_without(model, with_engine):
    fusions = ("apply_rope_fusion", "persist_layer_norm")
    engine = with_engine(model, Compute(torch.bfloat16, transformer_engine=True))
    assert [engine[name] for name in fusions] == [True, True]
    assert "fp8" not in engine
    cpu = with_engine(model, Compute())
    assert [cpu[name] for name in fusions] == [False, False]


def test_apex_is_asked_for_by_its_setting(model, monkeypatch):
    monkeypatch.setattr(build, "has_gradient_accumulation_fusion", lambda: True)
    assert transformer_config(
        model, Parallelism(), Compute(gradient_accumulation_fusion=True)
    ).gradient_accumulation_fusion
    assert not transformer_config(model, Parallelism(), Compute()).gradient_accumulation_fusion


def test_the_spec_asks_megatron_for_the_engines_layers_and_keeps_them(model, monkeypatch):
    """The engine's own modules cannot be imported here: Megatron-core is asked for them, and gives its local ones."""
    asked = {}

    def local_spec(config, **options):
        asked.update(options)
        layer = gpt_layer_specs.get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization="RMSNorm")
        return SimpleNamespace(layer_specs=[layer] * config.num_layers, layer_norm=None)

    monkeypatch.setattr(spec, "get_gpt_decoder_block_spec", local_spec)
    config = transformer_config(model, Parallelism(), Compute())
    engine = spec.block_spec(config, transformer_engine=True, vp_stage=None)
    assert asked == {"use_transformer_engine": True, "normalization": "RMSNorm", "vp_stage": None}
    assert engine.layer_norm is None
    assert engine.layer_specs[0].submodules.self_attention.submodules.core_attention is not SDPAttention

    ours = spec.block_spec(config, transformer_engine=False, vp_stage=None)
    assert asked["use_transformer_engine"] is False
    assert ours.layer_norm is RMSNorm
    assert ours.layer_specs[0].submodules.self_attention.submodules.core_attention is SDPAttention

"""The layer spec seam: which implementation each layer has, here and on GPUs."""

import importlib.util
from functools import cache

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from qedmeg.model.layers import RMSNorm, SDPAttention


@cache
def has_transformer_engine() -> bool:
    """Whether Transformer Engine is installed. Its meta package without the torch part does not count."""
    try:
        return importlib.util.find_spec("transformer_engine.pytorch") is not None
    except (ImportError, RuntimeError):
        return False


@cache
def has_gradient_accumulation_fusion() -> bool:
    """Whether apex is installed with the kernel that adds a weight's gradient straight into its buffer."""
    return importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None


def block_spec(config: TransformerConfig, transformer_engine: bool, vp_stage: int | None) -> TransformerBlockSubmodules:
    """Megatron-core's spec of this rank's layers: Transformer Engine's modules, or torch's with ours where it lacks.

    Ours are RMSNorm (fit for sequence parallelism) and attention (packed, context parallel, SDPA kernels).
    """
    spec = get_gpt_decoder_block_spec(
        config, use_transformer_engine=transformer_engine, normalization="RMSNorm", vp_stage=vp_stage
    )
    if transformer_engine:
        return spec
    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None  # Megatron-core 0.16.1 asks for the name, and binds it with the package only
    spec.layer_norm = RMSNorm
    for layer in spec.layer_specs:
        layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = RMSNorm
        attention = layer.submodules.self_attention.submodules
        attention.core_attention = SDPAttention
        if config.num_moe_experts:
            # the norm before the experts keeps its own name in checkpoints, as it does in Transformer Engine's spec
            layer.submodules.sharded_state_dict_keys_map.pop("pre_mlp_layernorm.", None)
        if config.qk_layernorm:
            attention.q_layernorm = attention.k_layernorm = RMSNorm
    return spec

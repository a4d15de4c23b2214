"""Small Hugging Face checkpoints of every family, with random weights."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_MAKERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 32}),
    "qwen3_moe": (
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
        {
            "head_dim": 32,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
        },
    ),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "llama": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": _LLAMA3_ROPE}),
}
FAMILIES = tuple(_MAKERS)


def make_checkpoint(
    folder: Path, family: str = "qwen3", dtype: torch.dtype = torch.float32, shard_size: str = "1GB", **config: Any
) -> PreTrainedModel:
    """Write a checkpoint with 4 layers, hidden size 64 and a vocabulary of 300 (which no TP above 4 divides)."""
    torch.manual_seed(0)
    config_class, model_class, extra = _MAKERS[family]
    sizes = {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 16384,
        "tie_word_embeddings": False,
    }
    model: PreTrainedModel = model_class(config_class(**(sizes | extra | config)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # larger than an initialisation's: attention and norms then show in the logits
            parameter.copy_(torch.randn_like(parameter) * 0.1 + ("norm" in name))
        model.tie_weights()
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    return model

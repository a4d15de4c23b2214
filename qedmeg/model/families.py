"""Which architectures are known, how their tensors are named on both sides, and how each tensor is split.

To add a family, add a row to `FAMILIES`: the names of one layer's tensors in Megatron's checkpoint and in Hugging
Face's, and the settings for which the row is right. Nothing else in qedmeg knows a parameter's name.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qedmeg.errors import UserError, near_miss

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Rule:
    """One tensor of Megatron's checkpoint, made of one Hugging Face tensor, or of q, k and v interleaved by group.

    Each source is a name and its shape in letters: H hidden, F feed-forward, X an expert's feed-forward, Q all query
    heads, K all key or value heads, D one head, E experts, V vocabulary. `split` is the dimension that tensor
    parallelism cuts, None for a tensor that every rank holds whole. `{e}` stands for an expert. The SwiGLU pair is two
    checkpoint tensors, `_w` (gate) and `_v` (up), though it is one parameter of the model.
    """

    key: str
    sources: tuple[tuple[str, str], ...]
    split: int | None = None


_ATTENTION = (
    Rule("self_attention.linear_qkv.layer_norm_weight", (("input_layernorm.weight", "H"),)),
    Rule(
        "self_attention.linear_qkv.weight",
        (("self_attn.q_proj.weight", "QH"), ("self_attn.k_proj.weight", "KH"), ("self_attn.v_proj.weight", "KH")),
        split=0,
    ),
    Rule("self_attention.linear_proj.weight", (("self_attn.o_proj.weight", "HQ"),), split=1),
)
_QK_NORM = (
    Rule("self_attention.q_layernorm.weight", (("self_attn.q_norm.weight", "D"),)),
    Rule("self_attention.k_layernorm.weight", (("self_attn.k_norm.weight", "D"),)),
)
_QKV_BIAS = (
    Rule(
        "self_attention.linear_qkv.bias",
        (("self_attn.q_proj.bias", "Q"), ("self_attn.k_proj.bias", "K"), ("self_attn.v_proj.bias", "K")),
        split=0,
    ),
)
_DENSE_MLP = (
    Rule("mlp.linear_fc1.layer_norm_weight", (("post_attention_layernorm.weight", "H"),)),
    Rule("mlp.linear_fc1.weight_w", (("mlp.gate_proj.weight", "FH"),), split=0),
    Rule("mlp.linear_fc1.weight_v", (("mlp.up_proj.weight", "FH"),), split=0),
    Rule("mlp.linear_fc2.weight", (("mlp.down_proj.weight", "HF"),), split=1),
)
_MOE_MLP = (
    Rule("pre_mlp_layernorm.weight", (("post_attention_layernorm.weight", "H"),)),
    Rule("mlp.router.weight", (("mlp.gate.weight", "EH"),)),
    Rule("mlp.experts.experts.{e}.linear_fc1.weight_w", (("mlp.experts.{e}.gate_proj.weight", "XH"),), split=0),
    Rule("mlp.experts.experts.{e}.linear_fc1.weight_v", (("mlp.experts.{e}.up_proj.weight", "XH"),), split=0),
    Rule("mlp.experts.experts.{e}.linear_fc2.weight", (("mlp.experts.{e}.down_proj.weight", "HX"),), split=1),
)

EMBEDDING = Rule("embedding.word_embeddings.weight", (("model.embed_tokens.weight", "VH"),), split=0)
FINAL_NORM = Rule("decoder.final_layernorm.weight", (("model.norm.weight", "H"),))
OUTPUT = Rule("output_layer.weight", (("lm_head.weight", "VH"),), split=0)


@dataclass(frozen=True)
class Family:
    """One architecture: the tensors of a layer, and the config fields it needs at fixed values."""

    layer: tuple[Rule, ...]
    requires: tuple[tuple[str, Any], ...] = ()
    qk_norm: bool = False
    qkv_bias: bool = False
    moe: bool = False


_NO_WINDOW = (("use_sliding_window", False), ("hidden_act", "silu"))

FAMILIES: dict[str, Family] = {
    "Qwen3ForCausalLM": Family(
        layer=(*_ATTENTION, *_QK_NORM, *_DENSE_MLP),
        requires=(*_NO_WINDOW, ("attention_bias", False)),
        qk_norm=True,
    ),
    "Qwen3MoeForCausalLM": Family(
        layer=(*_ATTENTION, *_QK_NORM, *_MOE_MLP),
        requires=(*_NO_WINDOW, ("attention_bias", False), ("decoder_sparse_step", 1), ("mlp_only_layers", [])),
        qk_norm=True,
        moe=True,
    ),
    "Qwen2ForCausalLM": Family(
        layer=(*_ATTENTION, *_QKV_BIAS, *_DENSE_MLP),
        requires=_NO_WINDOW,
        qkv_bias=True,
    ),
    "LlamaForCausalLM": Family(
        layer=(*_ATTENTION, *_DENSE_MLP),
        requires=(("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)),
    ),
}


@dataclass(frozen=True)
class Experts:
    """A mixture-of-experts layer: how many experts, how many a token visits, their width, how weights are scaled."""

    count: int
    per_token: int
    hidden: int
    normalised: bool


@dataclass(frozen=True)
class Architecture:
    """What a `config.json` says of a model, as far as building and splitting it needs. Sizes in elements."""

    name: str
    layers: int
    hidden: int
    ffn_hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    max_positions: int
    norm_eps: float
    rope_base: float
    rope_factor: float | None
    """Llama 3's frequency scaling, None for plain RoPE."""
    tied: bool
    dtype: torch.dtype
    experts: Experts | None = None

    @property
    def family(self) -> Family:
        return FAMILIES[self.name]

    def size(self, letters: str) -> tuple[int, ...]:
        """The shape that a `Rule`'s letters stand for."""
        sizes = {
            "H": self.hidden,
            "F": self.ffn_hidden,
            "X": self.experts.hidden if self.experts else 0,
            "E": self.experts.count if self.experts else 0,
            "Q": self.heads * self.head_dim,
            "K": self.kv_heads * self.head_dim,
            "D": self.head_dim,
            "V": self.vocabulary,
        }
        return tuple(sizes[letter] for letter in letters)

    def padded_vocabulary(self, tp: int) -> int:
        """Rows of the embedding on all TP ranks together: a multiple of 128, and of `tp`.

        The same number for every power of two up to 128, so that a checkpoint with its optimizer state loads at
        another TP.
        """
        multiple = math.lcm(128, tp)
        return -(-self.vocabulary // multiple) * multiple


_LLAMA3_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a Hugging Face folder.

    Raises:
        UserError: there is no such folder or file, or it is not JSON.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a folder that holds a Hugging Face model")
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); fetch it again") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a JSON object; fetch it again")
    return config


def read_architecture(folder: Path) -> Architecture:
    """What the model in a Hugging Face folder looks like.

    Raises:
        UserError: the architecture is unknown, or a field has a value that its family's table does not cover.
    """
    config, path = read_config(folder), folder / "config.json"
    name = (config.get("architectures") or ["none"])[0]
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(f"{path}: architectures: '{name}' is not supported{near_miss(name, FAMILIES)}; known: {known}")
    family = FAMILIES[name]
    for field, value in family.requires:
        found = config.get(field, value)
        if found != value and not (not found and not value):
            raise UserError(f"{path}: {field}: {found!r} is not supported for {name}; it must be {value!r}")

    def need(*fields: str) -> int:
        for field in fields:
            if config.get(field) is not None:
                value = config[field]
                if type(value) is not int or value < 1:
                    raise UserError(f"{path}: {field}: {value!r} is not a whole number of 1 or more; fetch it again")
                return value
        raise UserError(f"{path}: {fields[0]}: missing; a {name} config has it")

    heads = need("num_attention_heads")
    return Architecture(
        name=name,
        layers=need("num_hidden_layers"),
        hidden=need("hidden_size"),
        ffn_hidden=need("intermediate_size"),
        heads=heads,
        kv_heads=need("num_key_value_heads", "num_attention_heads"),
        head_dim=need("head_dim") if config.get("head_dim") is not None else need("hidden_size") // heads,
        vocabulary=need("vocab_size"),
        max_positions=need("max_position_embeddings"),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_base=_rope(config, path)[0],
        rope_factor=_rope(config, path)[1],
        tied=bool(config.get("tie_word_embeddings", False)),
        dtype=_dtype(config, path),
        experts=Experts(
            count=need("num_experts", "num_local_experts"),  # transformers 5 writes the latter
            per_token=need("num_experts_per_tok"),
            hidden=need("moe_intermediate_size"),
            normalised=bool(config.get("norm_topk_prob", False)),
        )
        if family.moe
        else None,
    )


def _rope(config: dict[str, Any], path: Path) -> tuple[float, float | None]:
    """Base and scaling factor. transformers 5 writes `rope_parameters`; older ones `rope_theta` and `rope_scaling`."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    base = float(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return base, None
    if kind != "llama3":
        raise UserError(f"{path}: rope_parameters.rope_type: '{kind}' is not supported; known: default, llama3")
    for field, value in _LLAMA3_SCALING.items():
        if rope.get(field, value) != value:
            # Megatron-core's RotaryEmbedding has these three built in.
            raise UserError(f"{path}: rope_parameters.{field}: {rope[field]} is not supported; it must be {value}")
    if not isinstance(rope.get("factor"), int | float):
        raise UserError(f"{path}: rope_parameters.factor: {rope.get('factor')!r} is not a number; llama3 needs it")
    return base, float(rope["factor"])


def _dtype(config: dict[str, Any], path: Path) -> torch.dtype:
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    if name not in DTYPES:
        raise UserError(
            f"{path}: dtype: '{name}' is not supported{near_miss(name, DTYPES)}; known: {', '.join(DTYPES)}"
        )
    return DTYPES[name]

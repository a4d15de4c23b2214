"""From an architecture and a parallelism to this rank's Megatron-core model chunks."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import layers as tensor_parallel_layers
from megatron.core.tensor_parallel import mappings
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from qedmeg import device
from qedmeg.errors import UserError
from qedmeg.model.families import Architecture
from qedmeg.model.layers import SegmentedSequence, multiply_in
from qedmeg.model.output_logprobs import token_logprobs
from qedmeg.model.output_loss import summed_cross_entropy
from qedmeg.model.spec import block_spec, has_gradient_accumulation_fusion, has_transformer_engine
from qedmeg.parallel import Parallelism, stage_layers

Recompute = Literal["none", "selective", "full"]
Fp8Recipe = Literal["delayed", "tensorwise", "blockwise"]


@dataclass(frozen=True)
class Compute:
    """How the model computes: precision, layer implementation, what is recomputed in backward."""

    dtype: torch.dtype = torch.float32
    transformer_engine: bool = False
    fp8: Fp8Recipe | None = None
    recompute: Recompute = "none"
    gradient_accumulation_fusion: bool = False


@dataclass(frozen=True)
class LogprobHead:
    """What the last stage gives of labels in place of a loss: their log-probabilities, and entropies if asked for."""

    temperature: float = 1.0
    entropy: bool = False


class LanguageModel(GPTModel):
    """Megatron-core's GPT whose loss is taken in chunks, without logits of [tokens, vocabulary] in memory."""

    def __init__(self, *args: Any, real_vocabulary: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.real_vocabulary = real_vocabulary
        self.logprob_head: LogprobHead | None = None
        """Set by whoever runs the model; None: the loss."""

    def _preprocess(self, input_ids: torch.Tensor, position_ids: torch.Tensor, **kwargs: Any) -> tuple[Any, ...]:
        """Megatron's, with rotary angles by each token's position where segments go on from others: Megatron counts
        from 0 in every segment, but takes angles [T, 1, 1, d] of all tokens of a batch as they are."""
        found: tuple[Any, ...] = super()._preprocess(input_ids, position_ids, **kwargs)
        packed = kwargs.get("packed_seq_params")
        if isinstance(packed, SegmentedSequence) and any(before.tokens for before in packed.follows):
            return (found[0], found[1][position_ids[0]], *found[2:])
        return found

    def _postprocess(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Hidden states on inner stages; logits [b, s, vocabulary / TP] without labels; with labels the summed loss,
        or with a `logprob_head` log-probabilities [1, T], and entropies as a second row."""
        labels, mask = kwargs.get("labels"), kwargs.get("loss_mask")
        if not self.post_process or labels is None or mask is None:
            output: torch.Tensor = super()._postprocess(hidden_states, **kwargs)
            return output
        tp_group = self.pg_collection.tp
        if self.config.sequence_parallel:
            hidden_states = mappings.gather_from_sequence_parallel_region(hidden_states, group=tp_group)
        hidden_TH = hidden_states.transpose(0, 1).reshape(-1, hidden_states.shape[-1])
        if not self.config.sequence_parallel:
            # After the transposition, not before: of a gradient that is not contiguous, Megatron sums a copy over the
            # ranks, and goes on with what was not summed.
            hidden_TH = mappings.copy_to_tensor_model_parallel_region(hidden_TH, group=tp_group)
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        arguments = (
            hidden_TH,
            self.output_layer.weight if weight is None else weight,
            labels.reshape(-1),
            mask.reshape(-1),
            self.real_vocabulary,
            tp_group,
        )
        if self.logprob_head is None:
            return summed_cross_entropy(*arguments)
        logprobs_T, entropy_T = token_logprobs(
            *arguments, temperature=self.logprob_head.temperature, entropy=self.logprob_head.entropy
        )
        return torch.stack([logprobs_T] if entropy_T is None else [logprobs_T, entropy_T])


class ValueModel(LanguageModel):
    """The same layers under a value head: hidden size to one number, in place of the output layer. Zero at first.

    Every TP rank holds the whole head.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"share_embeddings_and_output_weights": False})
        if not self.post_process:
            return
        del self.output_layer
        config = self.config
        here = None if config.use_cpu_initialization else device.current()
        self.value_head = torch.nn.Linear(config.hidden_size, 1, device=here, dtype=config.params_dtype)
        for parameter in self.value_head.parameters():
            torch.nn.init.zeros_(parameter)
            # Under sequence parallelism each rank sees a part of the tokens: Megatron sums the gradients over TP.
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def _postprocess(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Hidden states on inner stages; on the last one values [T], fp32, equal on all TP ranks."""
        if not self.post_process:
            return hidden_states
        head = self.value_head
        values_T1 = F.linear(hidden_states.float(), head.weight.float(), head.bias.float()).reshape(-1, 1)
        if self.config.sequence_parallel:
            # What follows is the same on all TP ranks: each takes its own part of the gradient, and nothing is summed.
            values_T1 = mappings.gather_from_sequence_parallel_region(
                values_T1, tensor_parallel_output_grad=False, group=self.pg_collection.tp
            )
        return values_T1.squeeze(1)

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Megatron's for any module: that of its language models looks for an output layer."""
        state: dict[str, Any] = MegatronModule.sharded_state_dict(self, *args, **kwargs)
        return state


def check(compute: Compute) -> None:
    """Refuse what this installation cannot compute. Megatron-core alone ignores FP8 in silence.

    Raises:
        UserError: Transformer Engine, FP8 or apex is asked for and not there.
    """
    if compute.fp8 and not compute.transformer_engine:
        raise UserError(f"compute.fp8: {compute.fp8} needs compute.transformer_engine: true")
    if compute.transformer_engine and not has_transformer_engine():
        raise UserError(
            "compute.transformer_engine: true, but the package transformer_engine is not installed; install "
            "requirements-gpu.txt on a machine with a GPU, or set it to false"
        )
    fusion = compute.gradient_accumulation_fusion and not compute.transformer_engine
    if fusion and not has_gradient_accumulation_fusion():
        raise UserError(
            "compute.gradient_accumulation_fusion: true needs compute.transformer_engine: true, or the package apex "
            "with its CUDA extensions, which is not installed; build it as requirements-gpu.txt says on a machine with "
            "a GPU, or set it to false"
        )


def transformer_config(model: Architecture, parallelism: Parallelism, compute: Compute) -> TransformerConfig:
    """Megatron-core's settings for a model.

    Raises:
        UserError: see `check`.
    """
    check(compute)
    fused = compute.transformer_engine
    options: dict[str, Any] = {}
    if parallelism.vpp > 1:
        # Batched point-to-point exchange and deallocated outputs give wrong gradients over gloo, silently.
        options |= {"overlap_p2p_comm": True, "batch_p2p_comm": False}
    if model.layers % (parallelism.pp * parallelism.vpp):
        options["pipeline_model_parallel_layout"] = _layout(model.layers, parallelism)
    elif parallelism.vpp > 1:
        options["virtual_pipeline_model_parallel_size"] = parallelism.vpp
    if compute.recompute == "full":
        options |= {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    elif compute.recompute == "selective":
        modules = ["core_attn", "mlp" if model.experts is None else "moe"]
        options |= {"recompute_granularity": "selective", "recompute_modules": modules}
    if compute.fp8:
        options |= {"fp8": "hybrid", "fp8_recipe": compute.fp8}
        if compute.fp8 == "delayed":
            options |= {"fp8_amax_history_len": 1024, "fp8_amax_compute_algo": "max"}
    if model.experts is not None:
        options |= {
            "num_moe_experts": model.experts.count,
            "moe_router_topk": model.experts.per_token,
            "moe_ffn_hidden_size": model.experts.hidden,
            # softmax over the chosen experts alone equals softmax over all, then normalised over the chosen
            "moe_router_pre_softmax": not model.experts.normalised,
            "moe_router_load_balancing_type": "none",
            # gloo exchanges equal parts only, and experts are not visited equally: there every rank gathers all tokens
            "moe_token_dispatcher_type": "alltoall" if device.has_gpu() else "allgather",
            "moe_grouped_gemm": fused,
            "expert_model_parallel_size": parallelism.ep,
        }
    return TransformerConfig(
        num_layers=model.layers,
        hidden_size=model.hidden,
        ffn_hidden_size=model.ffn_hidden,
        num_attention_heads=model.heads,
        num_query_groups=model.kv_heads,
        kv_channels=model.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_eps,
        qk_layernorm=model.family.qk_norm,
        add_qkv_bias=model.family.qkv_bias,
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=F.silu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=compute.dtype,
        pipeline_dtype=compute.dtype,
        bf16=compute.dtype == torch.bfloat16,
        fp16=compute.dtype == torch.float16,
        tensor_model_parallel_size=parallelism.tp,
        pipeline_model_parallel_size=parallelism.pp,
        context_parallel_size=parallelism.cp,
        sequence_parallel=parallelism.sp,
        calculate_per_token_loss=True,
        use_cpu_initialization=not device.has_gpu(),
        # weights always come from a checkpoint: filling them with random numbers first would be wasted
        perform_initialization=False,
        masked_softmax_fusion=False,
        # one saved tensor a layer in place of three; written in plain torch, it needs no GPU
        bias_activation_fusion=True,
        bias_dropout_fusion=False,
        apply_rope_fusion=fused,
        persist_layer_norm=fused,
        gradient_accumulation_fusion=compute.gradient_accumulation_fusion,
        **options,
    )


def _layout(layers: int, parallelism: Parallelism) -> list[list[str]]:
    """Megatron-core's layer layout by (virtual) stage, for layer counts that the stages do not divide."""
    stages = [["decoder"] * len(held) for held in stage_layers(layers, parallelism.pp * parallelism.vpp)]
    return [["embedding", *stages[0]], *stages[1:-1], [*stages[-1], "loss"]]


def build_model(
    model: Architecture, parallelism: Parallelism, compute: Compute, kind: type[LanguageModel] = LanguageModel
) -> list[LanguageModel]:
    """This rank's model chunks (one, or VPP of them), with weights not yet filled in."""
    config = transformer_config(model, parallelism, compute)
    if compute.transformer_engine and compute.gradient_accumulation_fusion:
        # Transformer Engine's layers need no apex for it. The output layer asks for apex when it is made, though its
        # gradient is computed with the loss, and it never uses it.
        tensor_parallel_layers._grad_accum_fusion_available = True
    chunks = []
    for chunk in range(parallelism.vpp):
        stage = chunk if parallelism.vpp > 1 else None
        chunks.append(
            kind(
                config=config,
                transformer_layer_spec=block_spec(config, compute.transformer_engine, stage),
                vocab_size=model.padded_vocabulary(parallelism.tp),
                real_vocabulary=model.vocabulary,
                max_sequence_length=model.max_positions,
                pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage),
                post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage),
                share_embeddings_and_output_weights=model.tied,
                position_embedding_type="rope",
                rotary_base=model.rope_base,
                rope_scaling=model.rope_factor is not None,
                rope_scaling_factor=model.rope_factor or 1.0,
                vp_stage=stage,
            )
        )
        _mark_split_weights(chunks[-1])
        dtype = device.product_dtype(compute.dtype)
        if dtype != compute.dtype:
            for module in chunks[-1].modules():
                if isinstance(module, ColumnParallelLinear | RowParallelLinear):
                    multiply_in(module, dtype)
    return chunks


def _mark_split_weights(chunk: LanguageModel) -> None:
    """Mark the weights that TP cuts: without it the gradient norm counts those of the first rank only.

    Megatron-core marks them while it fills them with random numbers, which is left out here.
    """
    for module in chunk.modules():
        if isinstance(module, ColumnParallelLinear | VocabParallelEmbedding):
            split = [(module.weight, 0), (getattr(module, "bias", None), 0)]
        elif isinstance(module, RowParallelLinear):
            split = [(module.weight, 1)]
        else:
            continue
        for weight, dimension in split:
            if weight is not None and not getattr(weight, "tensor_model_parallel", False):
                set_tensor_model_parallel_attributes(weight, is_parallel=True, dim=dimension, stride=1)

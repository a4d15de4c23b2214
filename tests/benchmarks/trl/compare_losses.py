"""The policy loss and the advantages against those of TRL's GRPOTrainer, on the same tensors.

PYTHONPATH=. tests/benchmarks/trl/.venv/bin/python tests/benchmarks/trl/compare_losses.py

A real GRPOTrainer is built for each variant from a model of a few hundred weights. Its rollout function returns given
tokens and engine log-probabilities, its reward function given rewards; its forward pass, the one method that is
replaced, given log-probabilities and entropies. Advantages, importance weights, loss and gradients are TRL's own.
The exit status is 1 if anything differs by more than 1e-6.

Not compared, since TRL has other or no such variants: KL by k1 and k2; the correction of sequences by the mean; masked
truncated rollouts, which in TRL stay in the baseline; the leave-one-out baseline; the lower clip of CISPO. Not here are
TRL's corrections that leave out what is beyond the cap (token_mask and sequence_mask), and its lower bound of a weight.
"""

import argparse
import logging
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar
from trl import GRPOConfig, GRPOTrainer

from qedmeg.config_rl import AdvantageConfig, LossConfig
from qedmeg.training.advantages import group_advantages
from qedmeg.training.losses import loss_weights, policy_loss

TOLERANCE = 1e-6
GROUP, LONGEST = 4, 6
LENGTHS = [6, 4, 1, 5, 3, 6, 2, 4]
REWARDS = [1.0, 0.0, 3 / 7, 3 / 7, 0.2, 0.9, 0.9, 0.0]
PROMPT = [2, 3]
MASK_BC = torch.arange(LONGEST) < torch.tensor(LENGTHS)[:, None]


@dataclass(frozen=True)
class Variant:
    """One loss, in TRL's settings and in ours."""

    name: str
    trl: dict[str, Any]
    loss: dict[str, Any]
    advantages: dict[str, Any] = field(default_factory=dict)
    divisor: int = 1
    """What TRL's loss is divided by beyond ours: Dr. GRPO's constant length."""


MEAN, SEQUENCES = {"normalisation": "token_mean"}, {"normalisation": "sequence_mean"}
CISPO = {"objective": "cispo", "clip_low": 1.0, "clip_high": 0.3} | MEAN
TRUNCATED = {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": 1.2}
CORRECTED = {"correction": "token", "correction_cap": 1.2}
BY_PRODUCT = TRUNCATED | {"vllm_importance_sampling_mode": "sequence_truncate"}
CORRECTED_BY_PRODUCT = CORRECTED | {"correction": "sequence_product"}
VARIANTS = [
    Variant("GRPO", {"loss_type": "grpo"}, SEQUENCES),
    Variant("GRPO by deviation", {"loss_type": "grpo", "scale_rewards": "group"}, SEQUENCES, {"divide_by_std": True}),
    Variant("DAPO, higher clip", {"loss_type": "dapo", "epsilon_high": 0.28}, {"clip_high": 0.28} | MEAN),
    Variant("token mean (bnpo)", {"loss_type": "bnpo"}, MEAN),
    Variant("Dr. GRPO, token sum", {"loss_type": "dr_grpo"}, {"normalisation": "token_sum"}, divisor=LONGEST),
    Variant("QED-Nano's clip", {"loss_type": "dapo", "epsilon": 4.0}, {"clip_low": 4.0, "clip_high": 4.0} | MEAN),
    Variant("dual clip", {"loss_type": "dapo", "delta": 1.25}, {"dual_clip": 1.25} | MEAN),
    Variant(
        "GSPO",
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.03, "epsilon_high": 0.04},
        {"ratio": "sequence", "clip_low": 0.03, "clip_high": 0.04} | SEQUENCES,
    ),
    Variant(
        "GSPO, token mean, dual",
        {"loss_type": "dapo", "importance_sampling_level": "sequence", "epsilon": 0.03, "delta": 1.05},
        {"ratio": "sequence", "clip_low": 0.03, "clip_high": 0.03, "dual_clip": 1.05} | MEAN,
    ),
    Variant("CISPO", {"loss_type": "cispo", "epsilon_high": 1.3}, CISPO),
    Variant("CISPO, corrected", {"loss_type": "cispo", "epsilon_high": 1.3} | TRUNCATED, CISPO | CORRECTED),
    Variant("correction of tokens", {"loss_type": "dapo"} | TRUNCATED, CORRECTED | MEAN),
    Variant("correction by product", {"loss_type": "dapo"} | BY_PRODUCT, CORRECTED_BY_PRODUCT | MEAN),
    Variant(
        "GSPO, corrected by product",
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.03} | BY_PRODUCT,
        {"ratio": "sequence", "clip_low": 0.03, "clip_high": 0.03} | CORRECTED_BY_PRODUCT | SEQUENCES,
    ),
    Variant(
        "k3 as published",
        {"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": False},
        {"kl_coef": 0.1, "kl_importance": False} | SEQUENCES,
    ),
    Variant("k3 with ratio", {"loss_type": "grpo", "beta": 0.1}, {"kl_coef": 0.1} | SEQUENCES),
    Variant("k3, corrected", {"loss_type": "dapo", "beta": 0.1} | TRUNCATED, {"kl_coef": 0.1} | CORRECTED | MEAN),
    Variant("entropy bonus", {"loss_type": "dapo", "entropy_coef": 0.05}, {"entropy_coef": 0.05} | MEAN),
]


def main() -> int:
    """Compare every variant and print a table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    logging.disable(logging.WARNING)
    disable_progress_bar()
    tensors = _tensors()
    print(f"{'variant':<28}{'TRL':>12}{'qedmeg':>12}   greatest difference of advantage, loss, gradient")
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        _save_model(Path(folder))
        for variant in VARIANTS:
            theirs, ours = _trl(variant, tensors, folder), _qedmeg(variant, tensors)
            differences = [(their - our).abs().max().item() for their, our in zip(theirs, ours, strict=True)]
            loss_differences = [differences[0], differences[1], max(differences[2:])]
            worst = max(worst, *differences)
            row = f"{variant.name:<28}{theirs[1].item():>12.7f}{ours[1].item():>12.7f}   "
            print(row + "  ".join(f"{difference:.1e}" for difference in loss_differences), flush=True)
    print(f"greatest difference {worst:.1e}, allowed {TOLERANCE:.0e}")
    return int(not worst <= TOLERANCE)


def _tensors() -> dict[str, torch.Tensor]:
    """Log-probabilities that differ enough for every clip to matter; NaN where there is no token."""
    generator = torch.Generator().manual_seed(0)
    base_BC = -3 * torch.rand(len(LENGTHS), LONGEST, generator=generator)
    names = ("logprobs", "old", "engine", "reference")
    tensors = {name: base_BC + 0.3 * torch.randn(base_BC.shape, generator=generator) for name in names}
    tensors["entropy"] = torch.rand(base_BC.shape, generator=generator)
    return tensors


def _save_model(folder: Path) -> None:
    words = {word: number for number, word in enumerate(["<pad>", "<end>", "a", "b", "c", "d"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="a"))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
    fast.save_pretrained(folder)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)


def _trl(variant: Variant, tensors: dict[str, torch.Tensor], folder: str) -> tuple[torch.Tensor, ...]:
    """Advantages, loss, and its gradients to log-probabilities and entropies where there are tokens."""
    logprobs_BC, entropy_BC = (tensors[name].clone().requires_grad_() for name in ("logprobs", "entropy"))

    def rollout(prompts: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
        return {
            "prompt_ids": [PROMPT] * len(prompts),
            "completion_ids": [[4] * (length - 1) + [1] for length in LENGTHS],
            "logprobs": [row[:length].tolist() for row, length in zip(tensors["engine"], LENGTHS, strict=True)],
        }

    settings = {"scale_rewards": "none", "beta": 0.0, "epsilon": 0.2} | variant.trl
    arguments = GRPOConfig(
        output_dir=f"{folder}/out",
        use_cpu=True,
        bf16=False,
        report_to="none",
        per_device_train_batch_size=len(LENGTHS),
        num_generations=GROUP,
        max_completion_length=LONGEST,
        num_iterations=2,  # so that it asks for the old log-probabilities
        **settings,
    )
    trainer = GRPOTrainer(
        model=folder,
        reward_funcs=lambda completions, **_: REWARDS,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["a b"] * 2}),
        processing_class=PreTrainedTokenizerFast.from_pretrained(folder),
        rollout_func=rollout,
    )

    def forward(model: torch.nn.Module, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor, None]:
        if model is trainer.ref_model:
            return tensors["reference"], tensors["entropy"], None
        if torch.is_grad_enabled():
            return logprobs_BC, entropy_BC, None
        return tensors["old"], tensors["entropy"], None

    trainer._get_per_token_logps_and_entropies = forward
    # after construction, which would look for a server; the weights are taken to be in it
    trainer.use_vllm = "vllm_importance_sampling_mode" in settings
    trainer._last_loaded_step = trainer.state.global_step
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    inputs = trainer._generate_and_score_completions([{"prompt": "a b"}] * len(LENGTHS))
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    return inputs["advantages"], loss.detach(), *_gradients(logprobs_BC, entropy_BC, MASK_BC)


def _qedmeg(variant: Variant, tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The same, of the same rows packed: each behind its prompt, padding at the end, NaN where nothing is trained."""
    config = LossConfig(**({"correction": "none"} | variant.loss))
    groups = [
        group_advantages(
            torch.tensor(REWARDS[start : start + GROUP]),
            torch.tensor(LENGTHS[start : start + GROUP]),
            torch.zeros(GROUP, dtype=torch.bool),
            LONGEST,
            AdvantageConfig(**variant.advantages),
        )
        for start in range(0, len(LENGTHS), GROUP)
    ]
    advantages_B = torch.cat([group.advantages_G for group in groups])
    mask_T = torch.cat([torch.tensor([0.0] * len(PROMPT) + [1.0] * length) for length in LENGTHS] + [torch.zeros(3)])
    ends = torch.tensor([len(PROMPT) + length for length in LENGTHS]).cumsum(0).tolist()

    def pack(values_BC: torch.Tensor) -> torch.Tensor:
        values_T = torch.full(mask_T.shape, torch.nan)
        values_T[mask_T > 0] = values_BC[MASK_BC]
        return values_T

    bounds = torch.tensor([0, *ends, len(mask_T)], dtype=torch.int32)
    logprobs_T, entropy_T = pack(tensors["logprobs"]).requires_grad_(), pack(tensors["entropy"]).requires_grad_()
    loss, _ = policy_loss(
        config,
        logprobs_T=logprobs_T,
        old_logprobs_T=pack(tensors["old"]),
        engine_logprobs_T=pack(tensors["engine"]),
        advantages_T=pack(advantages_B[:, None].expand(-1, LONGEST)),
        mask_T=mask_T,
        weights_T=loss_weights(config, mask_T, bounds, len(LENGTHS) * variant.divisor, sum(LENGTHS)),
        cu_seqlens=bounds,
        reference_logprobs_T=pack(tensors["reference"]),
        entropy_T=entropy_T,
    )
    loss.backward()
    return advantages_B, loss.detach(), *_gradients(logprobs_T, entropy_T, mask_T > 0)


def _gradients(logprobs: torch.Tensor, entropy: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    of_entropy = torch.zeros_like(entropy) if entropy.grad is None else entropy.grad
    return logprobs.grad[mask], of_entropy[mask]


if __name__ == "__main__":
    sys.exit(main())

"""The critic of PPO: a model of the policy's architecture with a value head, and a step on its value loss."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from qedmeg import device
from qedmeg.config import OptimizerConfig
from qedmeg.data.packing import PackedBatch
from qedmeg.model.build import ValueModel
from qedmeg.parallel import from_last_stage
from qedmeg.training.checkpoint import TrainedModel
from qedmeg.training.logprobs import on_every_rank
from qedmeg.training.optimizer import Optimizer, build_scheduler
from qedmeg.training.policy import Policy, report
from qedmeg.training.rollout_rows import PackedRows
from qedmeg.training.start import Start


@dataclass(frozen=True)
class PackedReturns(PackedBatch):
    """Prompts with their answers end to end, and what their tokens turned out to be worth."""

    old_values_T: torch.Tensor
    """float32: of the critic before the step."""
    returns_T: torch.Tensor
    """float32: what the values should be."""
    weights_T: torch.Tensor
    """float32: 1 / the step's tokens over all ranks where the mask is 1, else 0."""


def new_critic(start: Start, config: OptimizerConfig, prompts_per_step: int, optimizer_steps: int) -> TrainedModel:
    """A critic beside the policy, on the same ranks; `begin_from` or a checkpoint fills it."""
    critic = Policy(start.model, start.parallelism, start.compute, prompts_per_step, kind=ValueModel)
    optimizer = Optimizer(critic.ddp, config, start.compute.dtype)
    return TrainedModel(critic, optimizer, build_scheduler(optimizer, config, optimizer_steps))


@torch.no_grad()
def begin_from(policy: Policy, critic: TrainedModel) -> None:
    """The policy's weights under a value head that is zero."""
    for theirs, ours in zip(policy.chunks, critic.policy.chunks, strict=True):
        weights = dict(theirs.named_parameters())
        for name, parameter in ours.named_parameters():
            if not name.startswith("value_head."):
                parameter.copy_(weights[name])
    critic.optimizer.megatron.reload_model_params()


def value_loss(
    values_T: torch.Tensor,
    old_values_T: torch.Tensor,
    returns_T: torch.Tensor,
    weights_T: torch.Tensor,
    clip: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ weight · ½ max((v − R)², (v_old + clip(v − v_old) − R)²), a scalar; and where the clip took the gradient.

    The clip is that of PPO's published implementation (github.com/openai/baselines, ppo2).
    """
    error_T = (values_T - returns_T).square()
    if clip is None:
        return (weights_T * error_T).sum() / 2, torch.zeros_like(values_T, dtype=torch.bool)
    # Not v_old + clip(v - v_old): inside the clip that differs from v by rounding, and would count as clipped.
    clipped_T = (values_T.clamp(old_values_T - clip, old_values_T + clip) - returns_T).square()
    return (weights_T * torch.maximum(error_T, clipped_T)).sum() / 2, clipped_T > error_T


@torch.no_grad()
def row_values(critic: Policy, rows: PackedRows, width: int) -> torch.Tensor:
    """The values [B, width] of rows by a forward pass, on every rank of the model. All of them call it."""
    critic.prepare_for_validation_step()
    found = critic.run(rows.batches, lambda values_T, _: report(values_T, values_T), forward_only=True)
    critic.finish_validation_step()
    return rows.take_back(on_every_rank(critic, rows.batches, found), width)


def value_gradients(critic: Policy, microbatches: Sequence[PackedReturns], clip: float | None) -> tuple[float, float]:
    """Gradients of the value loss over a step's micro-batches; the loss, and the share of tokens that the clip took
    the gradient of. The same on every rank."""
    critic.prepare_for_training_step()

    def loss(values_T: torch.Tensor, batch: PackedReturns) -> Any:
        total, clipped_T = value_loss(values_T, batch.old_values_T, batch.returns_T, batch.weights_T, clip)
        return report(total, torch.stack([total.detach(), batch.weights_T[clipped_T].sum()]))

    zero = torch.zeros(2, device=device.current())
    sums = sum(critic.run(microbatches, loss, forward_only=False), zero).double()
    critic.finish_training_step()
    dist.all_reduce(sums, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    total, clipped = from_last_stage(sums).tolist()
    return total, clipped


def pack_returns(
    rows: PackedRows, values_BL: torch.Tensor, returns_BL: torch.Tensor, step_tokens: float
) -> list[PackedReturns]:
    """The micro-batches of a value loss that is the mean over `step_tokens` tokens of all ranks."""
    return [
        PackedReturns(
            **{field.name: getattr(batch, field.name) for field in fields(batch)},
            old_values_T=old_T,
            returns_T=returns_T,
            weights_T=batch.mask_T / step_tokens,
        )
        for batch, old_T, returns_T in zip(rows.batches, rows.lay_out(values_BL), rows.lay_out(returns_BL), strict=True)
    ]

"""The gradients of one step on packed rollouts, and the log-probabilities that it is measured by."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from qedmeg import device
from qedmeg.config_rl import LossConfig
from qedmeg.data.packing import PackedBatch
from qedmeg.model.build import LogprobHead
from qedmeg.parallel import from_last_stage
from qedmeg.training.losses import LossSums, policy_loss
from qedmeg.training.policy import Policy
from qedmeg.training.rollout_batch import PackedRollouts

LogprobsT = list[torch.Tensor]
"""Of each micro-batch the log-probabilities [T] of its labels, as this rank holds them; empty but on the last stage."""


@dataclass(frozen=True)
class Baselines:
    """What the new log-probabilities are compared with, besides the engine's."""

    old: LogprobsT | None = None
    """The trainer's before the step. None: the step is the first on its rollouts, which are its own new ones."""
    reference: LogprobsT | None = None
    """The frozen reference's."""


@torch.no_grad()
def token_logprobs(policy: Policy, microbatches: Sequence[PackedBatch], temperature: float) -> LogprobsT:
    """The log-probabilities of all labels with mask 1, by a forward pass. Every rank of the model calls it."""
    policy.prepare_for_validation_step()
    found = policy.run(
        microbatches, lambda output, _: report(output, output[0]), forward_only=True, head=LogprobHead(temperature)
    )
    policy.finish_validation_step()
    return found


def on_every_rank(policy: Policy, microbatches: Sequence[PackedBatch], found: LogprobsT) -> list[torch.Tensor]:
    """Numbers of each micro-batch's tokens [T], whole and on every rank of the model, from what each of them has."""
    whole = []
    for number, batch in enumerate(microbatches):
        numbers_T = torch.zeros(batch.tokens_T.numel(), device=device.current())
        if found:
            numbers_T[policy.places(batch)] = found[number]
        if policy.parallelism.cp > 1:
            dist.all_reduce(numbers_T, group=parallel_state.get_context_parallel_group())
        whole.append(from_last_stage(numbers_T))
    return whole


def rollout_gradients(
    policy: Policy,
    microbatches: Sequence[PackedRollouts],
    config: LossConfig,
    temperature: float,
    baselines: Baselines = Baselines(),
) -> LossSums:
    """Gradients of the policy loss over a step's micro-batches; its sums over all ranks, the same on each of them."""
    policy.prepare_for_training_step()
    cp = parallel_state.get_context_parallel_group() if policy.parallelism.cp > 1 else None
    old, reference = _in_turn(baselines.old), _in_turn(baselines.reference)

    def loss(output: torch.Tensor, batch: PackedRollouts) -> Any:
        logprobs_T = output[0]
        old_logprobs_T = next(old)
        if old_logprobs_T is None:
            old_logprobs_T = logprobs_T.detach() if config.ratio_against == "trainer" else batch.engine_logprobs_T
        total, sums = policy_loss(
            config,
            logprobs_T=logprobs_T,
            old_logprobs_T=old_logprobs_T,
            engine_logprobs_T=batch.engine_logprobs_T,
            advantages_T=batch.advantages_T,
            mask_T=batch.mask_T,
            weights_T=batch.weights_T,
            cu_seqlens=batch.cu_seqlens,
            reference_logprobs_T=next(reference),
            entropy_T=output[1],
            cp_group=cp,
        )
        return report(total, sums)

    head = LogprobHead(temperature, entropy=True)  # people want to see it, whether it has a bonus or not
    sums = sum(policy.run(microbatches, loss, forward_only=False, head=head), LossSums.zero(device.current()))
    policy.finish_training_step()
    sums = sums.over_ranks(parallel_state.get_data_parallel_group(with_context_parallel=True))
    stacked = torch.stack([getattr(sums, field.name) for field in fields(sums)])
    return LossSums(*from_last_stage(stacked))


def report(output: torch.Tensor, what: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """As Megatron wants it. No number of tokens: the weights of the tokens are the whole normalisation."""
    return output, torch.tensor(0, dtype=torch.int, device=output.device), what


def _in_turn(tensors: LogprobsT | None) -> Iterator[torch.Tensor | None]:
    """One for each micro-batch; None for each where there are none."""
    while tensors is None:
        yield None
    yield from tensors

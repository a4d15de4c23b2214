"""The gradients of the policy loss over a step's packed rollouts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from megatron.core import parallel_state

from qedmeg import device
from qedmeg.config_rl import LossConfig
from qedmeg.model.build import LogprobHead
from qedmeg.parallel import from_last_stage
from qedmeg.training.logprobs import LogprobsT
from qedmeg.training.losses import LossSums, policy_loss
from qedmeg.training.policy import Policy, report
from qedmeg.training.prefix_sharing import SharedRollouts
from qedmeg.training.rollout_batch import PackedRollouts


@dataclass(frozen=True)
class Baselines:
    """What the new log-probabilities are compared with, besides the engine's."""

    old: LogprobsT | None = None
    """The trainer's before the step. None: the step is the first on its rollouts, which are its own new ones."""
    reference: LogprobsT | None = None
    """The frozen reference's."""


def rollout_gradients(
    policy: Policy,
    microbatches: Sequence[PackedRollouts] | Sequence[SharedRollouts],
    config: LossConfig,
    temperature: float,
    baselines: Baselines = Baselines(),
) -> LossSums:
    """Gradients of the policy loss over a step's micro-batches; its sums over all ranks, the same on each of them."""
    policy.prepare_for_training_step()
    cp = parallel_state.get_context_parallel_group() if policy.parallelism.cp > 1 else None
    old, reference = _in_turn(baselines.old), _in_turn(baselines.reference)

    def loss(output: torch.Tensor, batch: PackedRollouts | SharedRollouts) -> Any:
        before_T, reference_T, terms = next(old), next(reference), batch.loss_terms()
        logprobs_T = batch.of_answers(output[0])
        if before_T is not None:
            old_logprobs_T = batch.of_answers(before_T)
        else:
            old_logprobs_T = logprobs_T.detach() if config.ratio_against == "trainer" else terms["engine_logprobs_T"]
        total, sums = policy_loss(
            config,
            logprobs_T=logprobs_T,
            old_logprobs_T=old_logprobs_T,
            reference_logprobs_T=None if reference_T is None else batch.of_answers(reference_T),
            entropy_T=batch.of_answers(output[1]),
            cp_group=cp,
            **terms,
        )
        return report(total, sums)

    head = LogprobHead(temperature, entropy=True)  # people want to see it, whether it has a bonus or not
    sums = sum(policy.run(microbatches, loss, forward_only=False, head=head), LossSums.zero(device.current()))
    policy.finish_training_step()
    sums = sums.over_ranks(parallel_state.get_data_parallel_group(with_context_parallel=True))
    stacked = torch.stack([getattr(sums, field.name) for field in fields(sums)])
    return LossSums(*from_last_stage(stacked))


def _in_turn(tensors: LogprobsT | None) -> Iterator[torch.Tensor | None]:
    """One for each micro-batch; None for each where there are none."""
    while tensors is None:
        yield None
    yield from tensors

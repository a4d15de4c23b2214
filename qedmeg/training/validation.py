"""Validation as a trainer sees it: when it is due, of which weights, and where its numbers go."""

import hashlib
import json

import torch
import torch.distributed as dist

from qedmeg.config_rl import RLConfig
from qedmeg.config_validation import ValidationConfig
from qedmeg.data.tokenizer import Tokenizer
from qedmeg.evaluation.plan import Plan
from qedmeg.monitor.budget import VALIDATE, TimeBudget
from qedmeg.monitor.metrics import VALIDATION_PREFIX, MetricsLogger
from qedmeg.rollout.validation_plan import read_validation
from qedmeg.training.policy import Policy
from qedmeg.training.rollout_source import RolloutSource
from qedmeg.training.start import Start


def check_validation(config: RLConfig, start: Start, tokenizer: Tokenizer) -> Plan | None:
    """What is validated, where anything is.

    Raises:
        UserError: it cannot be asked, or not be graded.
    """
    if config.validation is None:
        return None
    context = start.model.max_positions
    return read_validation(config.validation, config.rollout, config.grader, tokenizer, context)[0]


def announce_validation(config: ValidationConfig | None, plan: Plan | None) -> None:
    """Print what is validated and how often, where anything is."""
    if config is not None and plan is not None:
        attempts = len(plan.problems) * (config.samples + config.greedy)
        print(
            f"validation: every {config.every} steps, at the first and at the last; {len(plan.problems)} problems of "
            f"{plan.benchmark} by {plan.scaffold_name}, {attempts} attempts",
            flush=True,
        )


def validate(
    config: RLConfig, policy: Policy, rollouts: RolloutSource, logger: MetricsLogger, budget: TimeBudget, version: int
) -> None:
    """Validate the weights of this version, which the engines must have been sent, where that is due, and log it as of
    step `version`. All ranks call it; the engines keep their weights, and training its rollouts."""
    if config.validation is None or not config.validation.is_due(version, config.max_steps):
        return
    with budget(VALIDATE):
        found = rollouts.validate(version, weights_hash(policy))
    logger.log_metrics(found, version, VALIDATION_PREFIX)


def weights_hash(policy: Policy) -> str:
    """A hash of the weights of all ranks, the same for the same weights at the same topology."""
    mine = [
        (name, int(torch.hash_tensor(parameter.detach()).item()))
        for chunk in policy.chunks
        for name, parameter in chunk.named_parameters()
    ]
    of_ranks: list[list[tuple[str, int]]] = [[]] * dist.get_world_size()
    dist.all_gather_object(of_ranks, mine)
    return hashlib.sha256(json.dumps(of_ranks).encode()).hexdigest()

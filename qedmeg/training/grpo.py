"""GRPO and its relatives: groups of graded rollouts, advantages within the group, a step on the policy loss.

NeMo-Aligner has no GRPO: this trainer is the project's own, over the same policy. Weight version k is what the weights
are after k steps; step k trains on rollouts that are at most `rollout.max_lag` versions older than k.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.distributed as dist

from qedmeg import parallel
from qedmeg.config import ModelConfig
from qedmeg.config_rc import RCConfig
from qedmeg.config_rl import GRPOConfig, RLConfig
from qedmeg.data.loader import Placement
from qedmeg.data.prompts import PromptSet, load_prompts
from qedmeg.errors import EXIT_REQUEUE, UserError
from qedmeg.grading.judge_folders import check_judges
from qedmeg.lineage.origin import begin_run
from qedmeg.monitor.budget import TimeBudget
from qedmeg.monitor.metrics import MetricsLogger, rl_note, time_metrics
from qedmeg.monitor.rollout_metrics import batch_metrics, loss_metrics, waiting
from qedmeg.rollout.sample import Batch, Group, SummaryGroup
from qedmeg.rollout.state_prompts import make_state_prompts
from qedmeg.rollout.states import chains_of_a_version
from qedmeg.settings import save_config
from qedmeg.training import checkpoint
from qedmeg.training.logprobs import token_logprobs
from qedmeg.training.losses import LossSums
from qedmeg.training.policy import Policy, placement
from qedmeg.training.prefix_sharing import SharedRollouts, pack_shared
from qedmeg.training.rollout_batch import PackedRollouts, minibatches, pack_rollouts, train_on, trained_summaries
from qedmeg.training.rollout_source import RolloutSource
from qedmeg.training.rollout_step import Baselines, rollout_gradients
from qedmeg.training.start import Start, StopRequest, load_weights, read_start
from qedmeg.training.validation import announce_validation, check_validation, validate

Packed = tuple[PackedRollouts, ...] | tuple[SharedRollouts, ...]


def train(config: GRPOConfig) -> int:
    """Run, or go on with, the reinforcement learning that `config` describes; the process's exit status.

    An `RCConfig` takes its prompts from the reasoning cache.

    Raises:
        UserError: settings, problems or checkpoint do not fit; before anything is generated.
    """
    start = read_start(config)
    tokenizer = start.tokenizer(config.data.tokenizer, config.data.chat_template)
    prompts = load_prompts(config.data, tokenizer, *prompt_limits(config, start))
    label = "GRPO"
    if isinstance(config, RCConfig):
        label = "RC"
        make_state_prompts(
            tokenizer, prompts, config.data, config.rollout, config.cache, start.model.max_positions
        )  # raises where there is no room for them
    plan = check_validation(config, start, tokenizer)
    check_judges(config.grader)
    stop = StopRequest()
    parallel.initialize(start.parallelism, config.seed)
    state = start.training_state(
        config,
        config.data.prompts_per_step,
        config.max_steps * config.minibatches,
        PromptOrder(prompts.fingerprint, config.data.seed),
    )
    first_step = start.load(config, state)
    if first_step >= config.max_steps:
        return 0
    reference = frozen_reference(config, start) if config.loss.kl_coef else None
    trainer = Trainer(config, state, reference, tokenizer.pad_id, placement(start.parallelism))

    is_main = dist.get_rank() == 0
    if is_main:
        config.run_dir.mkdir(parents=True, exist_ok=True)
        save_config(config, config.run_dir / "config.yaml")
        begin_run(config, label, first_step)
        announce(label, config, start, prompts, first_step)
        announce_validation(config.validation, plan)
    checkpointer = checkpoint.Checkpointer(config.run_dir, config.checkpoint, start.hf_files, state)
    logger = MetricsLogger(config.run_dir, label, first_step, config.max_steps, is_main=is_main, step_line=rl_note)
    with RolloutSource(config, start.hf_files, state.policy, prompts) as rollouts:
        rollouts.publish(first_step)
        budget = TimeBudget()
        validation = partial(validate, config, state.policy, rollouts, logger, budget)
        for step in range(first_step, config.max_steps):
            validation(step)
            with budget("waited"):
                batch = rollouts.batch(step)
            budget.divide("waited", waiting(batch))
            metrics = batch_metrics(batch, config.rollout.max_lag) | trainer.step(batch, budget)
            with budget("transfer"):
                metrics |= rollouts.publish(step + 1)
            if step + 1 == config.max_steps:  # before the checkpoint that says that all is done
                validation(step + 1)
            logger.log_metrics(metrics | time_metrics(budget.restart()), step, "train/")
            checkpointer.poll()
            last = step + 1 == config.max_steps or stop.asked()
            if last or (step + 1) % config.checkpoint.save_every == 0:
                checkpointer.save(step + 1)
            if last:
                break
    checkpointer.close()
    logger.finalize()
    return EXIT_REQUEUE if stop.stopped and step + 1 < config.max_steps else 0


@dataclass
class Trainer:
    """A step's arithmetic: advantages, log-probabilities to compare with, gradients, optimizer."""

    config: GRPOConfig
    state: checkpoint.TrainingState
    reference: Policy | None
    pad_id: int
    place: Placement

    def step(self, batch: Batch, budget: TimeBudget) -> dict[str, float]:
        """An optimizer step on each of the batch's mini-batches; what to log."""
        summaries = trained_summaries(batch, self.config.rollout.max_lag)
        parts = [
            self._pack(groups, written)
            for groups, written in zip(
                minibatches(batch.groups, self.config.minibatches),
                minibatches(summaries, self.config.minibatches),
                strict=True,
            )
        ]
        with budget("logprobs"):
            baselines = [self._baselines(part) for part in parts]
        with budget("train"):
            updates = [self._update(part, compared) for part, compared in zip(parts, baselines, strict=True)]
        optimizer = self.state.optimizer
        metrics = loss_metrics(sum(updates[1:], updates[0]), len(updates))
        return metrics | {"grad_norm": optimizer.grad_norm, "lr": float(optimizer.param_groups[0]["lr"])}

    def _pack(self, groups: Sequence[Group], summaries: Sequence[SummaryGroup]) -> Packed:
        config = self.config
        other_terms = config.loss.kl_coef > 0 or config.loss.entropy_coef > 0
        trained = train_on(groups, config.rollout.max_tokens, config.advantage, keep_zero=other_terms)
        if isinstance(config, RCConfig) and summaries:
            # the penalty is for long answers, and counts from their limit
            credit = config.advantage.model_copy(update={"overlong_penalty": 0.0})
            trained += train_on(summaries, config.cache.summary_tokens, credit, keep_zero=other_terms)
        pack = pack_shared if self.state.policy.shares_prefixes else pack_rollouts
        return pack(trained, config.data.tokens_per_microbatch, self.pad_id, config.loss, self.place)

    def _baselines(self, part: Packed) -> Baselines:
        """The trainer's own log-probabilities are computed where other steps come between, the reference's for KL."""
        temperature = self.config.rollout.temperature
        stale = self.config.minibatches > 1 and self.config.loss.ratio_against == "trainer"
        return Baselines(
            old=token_logprobs(self.state.policy, part, temperature) if stale else None,
            reference=token_logprobs(self.reference, part, temperature) if self.reference else None,
        )

    def _update(self, part: Packed, baselines: Baselines) -> LossSums:
        state = self.state
        state.optimizer.zero_grad()
        sums = rollout_gradients(state.policy, part, self.config.loss, self.config.rollout.temperature, baselines)
        if float(sums.tokens) > 0:  # without an advantage anywhere there is no gradient, and Adam would move on
            state.optimizer.step()
        state.scheduler.step(1)
        return sums


@dataclass
class PromptOrder:
    """Which problems in which order a run draws: what a checkpoint keeps of it, as its loader.

    The position is the step, and what each step was trained on is in the store of rollouts.
    """

    fingerprint: str
    seed: int

    def state_dict(self) -> dict[str, Any]:
        """Plain text and number."""
        return {"fingerprint": self.fingerprint, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that it is the same order.

        Raises:
            UserError: other problems, another tokenizer or prompt, or another seed.
        """
        if state["fingerprint"] != self.fingerprint:
            raise UserError(
                "data.train: these are not the prompts that the checkpoint was trained on: rows, columns, prompt, "
                "tokenizer or chat template have changed; change them back, or start a new run from the checkpoint's "
                "weights"
            )
        if state["seed"] != self.seed:
            raise UserError(
                f"data.seed: {self.seed}: the checkpoint was trained with {state['seed']}; set it back, or start a new "
                "run from the checkpoint's weights"
            )


def prompt_limits(config: RLConfig, start: Start) -> tuple[int, int]:
    """Tokens that a prompt may have beside `max_tokens` of an answer, in the model's context and in a micro-batch.

    Raises:
        UserError: there is no room for one.
    """
    max_tokens, context = config.rollout.max_tokens, start.model.max_positions
    microbatch = config.data.tokens_per_microbatch
    no_room = f"rollout.max_tokens: {max_tokens} leaves no room for a prompt in"
    if max_tokens >= context:
        raise UserError(f"{no_room} the model's context of {context}; lower it")
    if max_tokens >= microbatch:
        raise UserError(f"{no_room} data.tokens_per_microbatch of {microbatch}; lower it, or raise that")
    return context - max_tokens, microbatch - max_tokens


def frozen_reference(config: RLConfig, start: Start) -> Policy:
    """The model that the run starts from, or the one that the settings name, without gradients."""
    source = ModelConfig(hf=config.reference) if config.reference else config.model
    policy = Policy(start.model, start.parallelism, start.compute, config.data.prompts_per_step, frozen=True)
    parallel.same_error(partial(load_weights, source, start.model, policy))
    return policy


def announce(label: str, config: RLConfig, start: Start, prompts: PromptSet, first: int) -> None:
    """Print what the run is, with the numbers that follow from its settings."""
    data, rollout = config.data, config.rollout
    sizes = ", ".join(f"{name} {value}" for name, value in config.parallel.model_dump().items() if value not in (1, 0))
    print(
        f"{label} of {start.model.name}, {start.model.layers} layers, hidden {start.model.hidden}: {len(prompts)} "
        f"problems, {data.prompts_per_step} prompts × {data.rollouts_per_prompt} rollouts = "
        f"{data.prompts_per_step * data.rollouts_per_prompt} a step in {config.minibatches} optimizer steps, steps "
        f"{first} to {config.max_steps}, {rollout.max_tokens} new tokens at temperature {rollout.temperature:g}, "
        f"lag at most {rollout.max_lag}; {data.tokens_per_microbatch} tokens a micro-batch; dp {parallel.data_size()}"
        f"{', ' + sizes if sizes else ''}; {config.compute.precision}; {config.run_dir}",
        flush=True,
    )
    if isinstance(config, RCConfig):
        cache = config.cache
        print(
            f"chains: {chains_of_a_version(cache, data.prompts_per_step)} or more with each weight version, "
            f"{cache.rounds} rounds of up to {cache.reason_tokens or rollout.max_tokens} tokens of reasoning and "
            f"{cache.siblings} × {cache.summary_tokens} of summary; {cache.states_per_problem} states of a chain in a "
            f"step, at most {cache.max_age} versions old",
            flush=True,
        )

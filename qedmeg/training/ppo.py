"""PPO and REINFORCE, driven by NeMo-Aligner's trainers.

Step k trains weight version k into k + 1, as in `grpo`, on rollouts that are at most `rollout.max_lag` versions older.
"""

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from omegaconf import OmegaConf

from qedmeg import parallel
from qedmeg.config_rl import PPOConfig
from qedmeg.data.prompts import load_prompts
from qedmeg.errors import EXIT_REQUEUE, UserError
from qedmeg.grading.judge_folders import check_judges
from qedmeg.lineage.origin import begin_run
from qedmeg.model import torch_dist
from qedmeg.monitor.metrics import MetricsLogger, rl_note, time_metrics
from qedmeg.monitor.rollout_metrics import loss_metrics
from qedmeg.settings import save_config
from qedmeg.training import checkpoint, nemo
from qedmeg.training.aligner import Actor, Critic, Rewards, Rows, Updates
from qedmeg.training.critic import begin_from, new_critic
from qedmeg.training.grpo import PromptOrder, announce, frozen_reference, prompt_limits
from qedmeg.training.rollout_source import RolloutSource
from qedmeg.training.start import Start, StopRequest, read_start
from qedmeg.training.validation import announce_validation, check_validation


def train(config: PPOConfig) -> int:
    """Run, or go on with, the reinforcement learning that `config` describes; the process's exit status.

    Raises:
        UserError: settings, problems or checkpoint do not fit; before anything is generated.
    """
    start = read_start(config)
    _require_same_algorithm(config, start)
    tokenizer = start.tokenizer(config.data.tokenizer, config.data.chat_template)
    prompts = load_prompts(config.data, tokenizer, *prompt_limits(config, start))
    plan = check_validation(config, start, tokenizer)
    check_judges(config.grader)
    stop = _RunTimer()
    parallel.initialize(start.parallelism, config.seed)
    state = start.training_state(
        config,
        config.data.prompts_per_step,
        (config.max_steps - config.critic.warmup_steps) * config.minibatches,
        PromptOrder(prompts.fingerprint, config.data.seed),
    )
    if config.algorithm == "ppo":
        total = config.max_steps * config.minibatches
        state.critic = new_critic(start, config.critic.optimizer, config.data.prompts_per_step, total)
    first_step = start.load(config, state)
    if state.critic is not None and start.found is None:
        begin_from(state.policy, state.critic)
    if first_step >= config.max_steps:
        return 0
    reference = frozen_reference(config, start) if config.kl_penalty else None

    label = {"ppo": "PPO", "reinforce": "REINFORCE"}[config.algorithm]
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
        actor = Actor(config, state, reference, rollouts, logger, tokenizer.pad_id, first_step)
        trainer = _trainer(config, actor, _Hooks(actor, logger, checkpointer), stop)
        gc.freeze()  # the trainers collect garbage three times a step: not among all that is imported, for seconds
        try:
            trainer.fit()
        finally:
            gc.unfreeze()
    checkpointer.close()
    logger.finalize()
    return EXIT_REQUEUE if trainer.step < config.max_steps else 0


def _require_same_algorithm(config: PPOConfig, start: Start) -> None:
    """Refuse a run whose checkpoint has a critic that is not wanted, or lacks one."""
    if start.found is None:
        return
    with torch_dist.Reader(start.found[1]) as reader:
        then = "ppo" if f"{checkpoint.CRITIC}value_head.weight" in reader.tensors else "reinforce"
    if then != config.algorithm:
        raise UserError(
            f"algorithm: {config.algorithm}, but {start.found[1]} was written by {then}: a critic goes with ppo alone; "
            "set it back, or give another run_dir"
        )


class _Steps:
    """Dataloader, batch sampler and data set at once. Its one item is the step's rows, its samples are rows."""

    drop_last = True

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self.batch_sampler = self.dataset = self
        self.global_batch_size = actor.groups * actor.config.data.rollouts_per_prompt
        self.micro_batch_size = self.global_batch_size // parallel.data_size()
        self.total_samples = actor.config.max_steps * self.global_batch_size

    def __iter__(self) -> Iterator[int]:
        return iter([self.actor.step])

    def __getitem__(self, step: int) -> Rows:
        return self.actor.rows(step)


class _RunTimer(StopRequest):
    """NeMo-Aligner's run timer: ends the run after the step in which any rank got SIGTERM."""

    def start_time(self) -> None: ...

    def is_finished(self) -> bool:
        return self.asked()


@dataclass
class _Hooks:
    """Logger and checkpoint callback. The trainers log in pieces, of which the last of a step is that of timers."""

    actor: Actor
    logger: MetricsLogger
    checkpointer: Any
    trainer: Any = None

    def log_metrics(self, metrics: dict[str, float], step: int, prefix: str = "") -> None:
        actor = self.actor
        if prefix == "train_rollouts/":
            names = ("advantages_std", "returns_mean", "values_mean", "explained_variance", "reference_kl")
            actor.metrics |= {name: metrics[name] for name in names if name in metrics}
        if prefix != "timers/":
            return
        optimizer = actor.state.optimizer
        losses = loss_metrics(sum(actor.losses[1:], actor.losses[0]), len(actor.losses))
        found = losses | actor.metrics  # the trainer's KL in place of the loss's, which is given no reference
        found |= {"grad_norm": optimizer.grad_norm, "lr": float(optimizer.param_groups[0]["lr"])}
        self.logger.log_metrics(found | time_metrics(actor.budget.restart()), step, "train/")
        self.checkpointer.poll()
        actor.step = step + 1

    def log_table(self, key: str, dataframe: Any, step: int) -> None: ...

    def finalize(self) -> None: ...

    def custom_save(self, monitor_candidates: dict[str, Any], is_train_end: bool) -> None:
        if is_train_end:
            self.actor.validate_the_last()
        self.checkpointer.save(self.trainer.step)


def _trainer(config: PPOConfig, actor: Actor, hooks: _Hooks, timer: _RunTimer) -> Any:
    """NeMo-Aligner's trainer of the algorithm, at the step that the run goes on from."""
    steps = _Steps(actor)
    updates = Updates(actor)
    settings = {
        "max_epochs": 1,
        "max_steps": config.max_steps,
        "val_check_interval": 0,
        "save_interval": config.checkpoint.save_every,
        "gradient_clip_val": None,  # Megatron's optimizer clips
        # ReinforceTrainer of 0.7.0 fails without one; a policy that is its own reference has a divergence of 0
        "initial_policy_kl_penalty": config.kl_penalty or float(config.algorithm == "reinforce"),
        "use_absolute_kl": False,
        "rollout_batch_seq_length": None,
        "model_gbs": steps.global_batch_size // config.minibatches,
        "num_rollouts_per_prompt": 1,  # a prompt has a row for each of its rollouts already
        "discount_factor": config.critic.discount,
        "gae_lambda": config.critic.gae_lambda,
        "normalize_advantages": config.normalise_advantages,
        "critic_warmup_steps": 0,  # see Actor.warming_up: theirs take no step of the run, and leave no checkpoint
    }
    arguments: dict[str, Any] = {
        "cfg": OmegaConf.create(settings),
        "model": actor,
        "optimizer": updates,
        "scheduler": SimpleNamespace(step=lambda: None),  # goes with the optimizer's
        "train_dataloader_builder": lambda consumed_samples: steps,
        "val_dataloader_builder": None,
        "collate_fn": None,
        "batch_iterator_cls": _rows_of_steps,
        "logger": hooks,
        "ckpt_callback": hooks,
        "run_timer": timer,
    }
    if config.algorithm == "ppo":
        assert actor.state.critic is not None
        trainer = ppo_trainer()(rm_critic=Critic(actor, actor.state.critic), **arguments)
    else:
        trainer = reinforce_trainer()(rm=Rewards(), **arguments)
    trainer.step, trainer.consumed_samples = actor.step, actor.step * steps.global_batch_size
    hooks.trainer = trainer
    return trainer


def _rows_of_steps(steps: Iterator[int], count: int, dataset: _Steps, collate: None) -> Iterator[Rows]:
    """NeMo-Aligner's batch iterator: `count` micro-batches of prompts, which is one here."""
    return (dataset[step] for step in steps)


def ppo_trainer() -> Any:
    """NeMo-Aligner's `PPOTrainer`, which also hands on the engine's log-probabilities and says how good values are."""
    ppo = nemo.ppo()

    class Trainer(ppo.PPOTrainer):  # type: ignore[name-defined]
        def generate_ppo_data(self, batch: Rows) -> tuple[Rows, dict[str, float]]:
            data, metrics = super().generate_ppo_data(batch)
            data["engine_logprobs"] = batch["engine_logprobs"]
            metrics["explained_variance"] = self._explained_variance(batch, data["mask"])
            return data, metrics | _reference_kl(ppo, batch, data["mask"])

        def _explained_variance(self, batch: Rows, mask_BL: torch.Tensor) -> float:
            """1 − Var(R − V) / Var(R) over the batch's tokens, R being what came in the end: GAE's own returns hold
            values, which would explain themselves."""
            kl_BL = batch["logprobs"] - batch["init_logprobs"] if "init_logprobs" in batch else 0.0
            values_BL, penalty = batch["values"], self.cfg.initial_policy_kl_penalty
            rewards_BL = ppo.calculate_ppo_rewards(
                values_BL, batch["rewards"], batch["response_lengths"], kl_BL, penalty
            )
            _, returns_BL = ppo.calculate_advantages_and_returns(
                values_BL, rewards_BL, self.cfg.discount_factor, 1.0, mask_BL
            )
            group = parallel_state.get_data_parallel_group()
            _, unexplained = ppo.masked_global_mean_var(returns_BL - values_BL, mask_BL, group=group)
            _, variance = ppo.masked_global_mean_var(returns_BL, mask_BL, group=group)
            return 1.0 - float(unexplained / variance) if variance > 0 else 0.0

    return Trainer


def reinforce_trainer() -> Any:
    """NeMo-Aligner's `ReinforceTrainer`, which also hands on the engine's log-probabilities."""
    reinforce = nemo.reinforce()

    class Trainer(reinforce.ReinforceTrainer):  # type: ignore[name-defined]
        def generate_reinforce_data(self, batch: Rows) -> tuple[Rows, dict[str, float]]:
            data, metrics = super().generate_reinforce_data(batch)
            data["engine_logprobs"] = batch["engine_logprobs"]
            return data, metrics | _reference_kl(reinforce, batch, data["mask"])

    return Trainer


def _reference_kl(algorithm: Any, batch: Rows, mask_BL: torch.Tensor) -> dict[str, float]:
    """The mean log-ratio of policy to reference over the batch's tokens, where there is a reference."""
    if "init_logprobs" not in batch:
        return {}
    difference_BL = batch["logprobs"] - batch["init_logprobs"]
    mean, _ = algorithm.masked_global_mean_var(difference_BL, mask_BL, group=parallel_state.get_data_parallel_group())
    return {"reference_kl": float(mean)}

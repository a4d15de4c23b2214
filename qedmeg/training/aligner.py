"""Policy, critic, rollouts and rewards as NeMo-Aligner's PPO and REINFORCE trainers see a model.

They hold a batch as padded rows (see `rollout_rows`); here rows are packed before any model sees them.
"""

from concurrent.futures import Future
from dataclasses import dataclass, fields
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from qedmeg import device, parallel
from qedmeg.config_rl import PPOConfig
from qedmeg.data.packing import padded_length
from qedmeg.monitor.budget import TimeBudget
from qedmeg.monitor.metrics import MetricsLogger
from qedmeg.monitor.rollout_metrics import batch_metrics, waiting
from qedmeg.training.checkpoint import TrainedModel, TrainingState
from qedmeg.training.critic import pack_returns, row_values, value_gradients
from qedmeg.training.logprobs import on_every_rank, token_logprobs
from qedmeg.training.losses import LossSums, loss_weights
from qedmeg.training.policy import Policy, placement
from qedmeg.training.rollout_batch import PackedRollouts
from qedmeg.training.rollout_rows import NO_TOKEN, PackedRows, pack_rows, rollout_rows, sum_over_data_ranks
from qedmeg.training.rollout_source import RolloutSource
from qedmeg.training.rollout_step import Baselines, rollout_gradients
from qedmeg.training.validation import validate

Rows = dict[str, torch.Tensor]


class Actor:
    """The policy as NeMo-Aligner's PPO and REINFORCE trainers see it: a model that generates, rates and learns."""

    def __init__(
        self,
        config: PPOConfig,
        state: TrainingState,
        reference: Policy | None,
        rollouts: RolloutSource,
        logger: MetricsLogger,
        pad_id: int,
        step: int,
    ) -> None:
        self.config, self.state, self.reference, self.rollouts, self.step = config, state, reference, rollouts, step
        self.tokenizer = SimpleNamespace(
            eos_id=NO_TOKEN,  # which the trainers pad with
            ids_to_text=lambda ids: "",  # for their tables, which nobody reads: the store has all texts
        )
        self.pack = partial(
            pack_rows,
            tokens_per_microbatch=config.data.tokens_per_microbatch,
            pad_id=pad_id,
            placement=placement(state.policy.parallelism),
        )
        self.budget = TimeBudget()
        self.validate = partial(validate, config, state.policy, rollouts, logger, self.budget)
        self.metrics: dict[str, float] = {}
        """Of the step, so far."""
        self.losses: list[LossSums] = []
        """Of the step's optimizer steps, so far."""

    @property
    def groups(self) -> int:
        """Groups of a step, those without rollouts included that make them divide evenly."""
        return padded_length(self.config.data.prompts_per_step, parallel.data_size() * self.config.minibatches)

    @property
    def warming_up(self) -> bool:
        """Whether the critic alone learns in this step."""
        return self.config.algorithm == "ppo" and self.step < self.config.critic.warmup_steps

    def prepare_for_inference(self) -> None:
        """A step begins: the engines get the weights."""
        self.losses = []
        with self.budget("transfer"):
            self.metrics = dict(self.rollouts.publish(self.step))
        self.validate(self.step)

    def validate_the_last(self) -> None:
        """Validate the weights that the run ends with; no step begins with them that would send them to the engines."""
        if self.config.validation is not None:
            self.rollouts.publish(self.config.max_steps)
            self.validate(self.config.max_steps)

    def rows(self, step: int) -> Rows:
        """This rank's rows of the step's graded rollouts."""
        with self.budget("waited"):
            batch = self.rollouts.batch(step)
        self.budget.divide("waited", waiting(batch))
        self.metrics |= batch_metrics(batch)
        rank, size = parallel.data_rank(), parallel.data_size()
        rows = rollout_rows(batch.groups[rank::size], self.groups // size, self.config.data.rollouts_per_prompt)
        return {name: tensor.to(device.current()) for name, tensor in rows.items()}

    def infer(self, rows: Rows) -> Rows:
        """The rollouts of rows, whose prompts are in it too."""
        return {name: tensor for name, tensor in rows.items() if name not in ("text", "length")}

    def finish_inference(self) -> None:
        """Nothing: the engines are not in this process."""

    def get_inference_log_probs(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        """The policy's log-probabilities [B, L]; zeros where nothing reads them: they are those of the coming step."""
        if self.reference is None and (self.config.algorithm == "reinforce" or self.config.minibatches == 1):
            return torch.zeros(tokens_BS.shape[0], tokens_BS.shape[1] - 1, device=device.current())
        return self._logprobs(self.state.policy, tokens_BS)

    def get_init_policy_logprobs(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        """The frozen reference's log-probabilities [B, L]; without one the policy is its own."""
        if self.reference is None:
            return self.get_inference_log_probs(tokens_BS)
        return self._logprobs(self.reference, tokens_BS)

    def _logprobs(self, policy: Policy, tokens_BS: torch.Tensor) -> torch.Tensor:
        with self.budget("logprobs"):
            rows: PackedRows = self.pack(tokens_BS, tokens_BS[:, 1:] != NO_TOKEN)
            found = token_logprobs(policy, rows.batches, self.config.rollout.temperature)
            return rows.take_back(on_every_rank(policy, rows.batches, found), tokens_BS.shape[1] - 1)

    def prepare_for_training(self) -> None:
        """Nothing: `get_loss_and_metrics` prepares what it runs."""

    prepare_for_training_step = finish_training_step = finish_training = prepare_for_training

    def get_loss_and_metrics(self, batch: Rows, forward_only: bool) -> tuple[float, dict[str, float]]:
        """Gradients of the policy loss on rows; the loss."""
        if self.warming_up:
            self.losses.append(LossSums.zero(device.current()))
            return 0.0, {}
        with self.budget("train"):
            microbatches, old = self._pack(batch)
            loss, temperature = self.config.loss, self.config.rollout.temperature
            self.losses.append(
                rollout_gradients(self.state.policy, microbatches, loss, temperature, Baselines(old=old))
            )
        return float(self.losses[-1].loss), {}

    def _pack(self, batch: Rows) -> tuple[list[PackedRollouts], list[torch.Tensor] | None]:
        """Packed rollouts, and the policy's log-probabilities of before the step where others came between."""
        config, tokens_BS, mask_BL = self.config, batch["response_tokens"], batch["mask"]
        sequences, tokens = sum_over_data_ranks(float(batch["is_end"].sum()), float(mask_BL.sum()))
        if config.algorithm == "ppo":
            advantages_BL = batch["advantages"]
        else:
            advantages_BL = (batch["rewards_with_kl"] - batch["baseline"])[:, None].expand_as(mask_BL)
        advantages_BL = advantages_BL.where(mask_BL > 0, 0.0)  # a mean over no token is NaN
        if config.loss.entropy_coef == 0:  # rows without an advantage train nothing
            tokens_BS = tokens_BS.where((advantages_BL != 0).any(1)[:, None], NO_TOKEN)
        rows: PackedRows = self.pack(tokens_BS, mask_BL)
        microbatches = [
            PackedRollouts(
                **{field.name: getattr(packed, field.name) for field in fields(packed)},
                engine_logprobs_T=engine_T,
                advantages_T=advantages_T,
                weights_T=loss_weights(config.loss, packed.mask_T, packed.cu_seqlens, sequences, tokens),
            )
            for packed, engine_T, advantages_T in zip(
                rows.batches, rows.lay_out(batch["engine_logprobs"]), rows.lay_out(advantages_BL), strict=True
            )
        ]
        if config.algorithm == "reinforce" or config.minibatches == 1 or config.loss.ratio_against == "engine":
            return microbatches, None
        policy = self.state.policy
        old = [
            old_T[policy.places(packed)].to(device.current())
            for packed, old_T in zip(rows.batches, rows.lay_out(batch["prev_logprobs"]), strict=True)
        ]
        return microbatches, old


@dataclass
class Updates:
    """Optimizer and schedule of the policy. A step that has trained nothing leaves them alone: Adam would move on."""

    actor: Actor

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.actor.state.optimizer.param_groups

    def zero_grad(self) -> None:
        self.actor.state.optimizer.zero_grad()

    def step(self, closure: None = None) -> None:
        with self.actor.budget("train"):
            if float(self.actor.losses[-1].tokens) > 0:
                self.actor.state.optimizer.step()
        if not self.actor.warming_up:
            self.actor.state.scheduler.step(1)


@dataclass
class Critic:
    """The model that PPOTrainer asks for rewards and values: those of the graders, and the critic's."""

    actor: Actor
    trained: TrainedModel

    def infer_rm_critic(self, rollouts: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Rewards [B] and values [B, L]."""
        tokens_BS = rollouts["response_tokens"]
        with self.actor.budget("logprobs"):
            rows = self.actor.pack(tokens_BS, tokens_BS[:, 1:] != NO_TOKEN)
            return rollouts["rewards"], row_values(self.trained.policy, rows, tokens_BS.shape[1] - 1)

    def train(self, data: Rows) -> None:
        """The critic's optimizer steps on a batch."""
        config, optimizer = self.actor.config, self.trained.optimizer
        losses, clipped = [], []
        with self.actor.budget("train"):
            names = ("response_tokens", "mask", "values", "returns")
            for parts in zip(*(data[name].chunk(config.minibatches) for name in names), strict=True):
                tokens_BS, mask_BL, values_BL, returns_BL = parts
                (tokens,) = sum_over_data_ranks(float(mask_BL.sum()))
                if tokens:
                    optimizer.zero_grad()
                    microbatches = pack_returns(self.actor.pack(tokens_BS, mask_BL), values_BL, returns_BL, tokens)
                    loss, share = value_gradients(self.trained.policy, microbatches, config.critic.value_clip)
                    optimizer.step()
                    losses.append(loss)
                    clipped.append(share)
                self.trained.scheduler.step(1)
        self.actor.metrics |= {
            "value_loss": sum(losses) / max(len(losses), 1),
            "value_clipped": sum(clipped) / max(len(clipped), 1),
            "critic_grad_norm": optimizer.grad_norm,
            "critic_lr": float(optimizer.param_groups[0]["lr"]),
        }

    def save(self) -> "Future[None]":
        """Nothing: it is in the run's checkpoint, which the trainer has written next."""
        return _known(None)


class Rewards:
    """The model that ReinforceTrainer asks for rewards: those of the graders."""

    def infer_rm(self, rollouts: Rows) -> "Future[torch.Tensor]":
        """Rewards [B, 1]."""
        return _known(rollouts["rewards"][:, None])


def _known(result: Any) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_result(result)
    return future

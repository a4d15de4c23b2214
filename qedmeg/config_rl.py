"""What can be set of reinforcement learning: prompts, rollouts, advantages, losses, and the recipes made of them."""

from pathlib import Path
from string import Formatter
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from qedmeg.config import (
    CheckpointConfig,
    ComputeConfig,
    GraderConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
)
from qedmeg.config_validation import ValidationConfig
from qedmeg.settings import Settings


class AdvantageConfig(Settings):
    """How the rewards of one prompt's group become advantages."""

    baseline: Literal["group_mean", "leave_one_out"] = "group_mean"
    """What is subtracted from a reward: the mean of its group, or of the others in its group."""
    divide_by_std: bool = False
    """Divide by the group's standard deviation, as GRPO does and Dr. GRPO does not."""
    mask_truncated: bool = False
    """Rollouts cut off at the token limit train nothing, and leave the baseline of their group."""
    overlong_penalty: float = Field(default=0.0, ge=0)
    """Most that is taken off the reward of a long rollout (DAPO's soft punishment); 0: nothing."""
    overlong_buffer: int = Field(default=4096, ge=1)
    """The penalty rises from 0 to its most over so many tokens before the token limit."""


class LossConfig(Settings):
    """The policy loss: objective, ratio, clipping, penalties, correction and normalisation."""

    objective: Literal["clip", "cispo"] = "clip"
    """`clip`: PPO's clipped ratio times advantage. `cispo`: log-probability times advantage, weighted by the clipped
    ratio, which has no gradient: clipped tokens go on training."""
    ratio: Literal["token", "sequence"] = "token"
    """The ratio of new to old probability: of each token, or one a sequence, the geometric mean of its tokens' (GSPO;
    its authors clip at 3e-4 and 4e-4)."""
    clip_low: float = Field(default=0.2, ge=0)
    """The ratio is clipped below 1 − clip_low; from 1 on, it is not."""
    clip_high: float = Field(default=0.2, ge=0)
    """The ratio is clipped above 1 + clip_high; greater than clip_low, it is DAPO's higher clip."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Highest ratio for negative advantages, which `clip` alone leaves unbounded. None: no bound."""
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the KL divergence from the frozen reference model; 0: no reference is needed."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """How it is estimated from a token's log-probabilities."""
    kl_importance: bool = True
    """Multiply the estimate by the token's ratio, with gradient. With it k1 and k3 have the gradient of the divergence;
    without it k1's is zero on average, and k3 is GRPO's as first published. k2 has the right one without it."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of the entropy, which is subtracted from the loss."""
    ratio_against: Literal["trainer", "engine"] = "trainer"
    """Whose log-probabilities the ratio is against: the trainer's own, of the weights before the step, or those that
    the engine sampled with, as QED-Nano has it: the ratio is then the correction too."""
    correction: Literal["none", "token", "sequence_product", "sequence_mean"] = "token"
    """Weights for the difference between trainer and engine (and of weight versions, under lag), where the ratio is
    against the trainer's own log-probabilities: of each token, or one a sequence, the product of its tokens' (as
    truncated importance sampling of sequences has it, unbiased but for the cap), or their geometric mean (biased, but
    as steady for long sequences as for short ones)."""
    correction_cap: float = Field(default=2.0, ge=1)
    """Highest such weight."""
    normalisation: Literal["token_sum", "token_mean", "sequence_mean"] = "token_mean"
    """What the step's loss is: the sum over tokens by the number of sequences, the mean over tokens, or the mean over
    sequences of each one's mean over tokens."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.ratio_against == "engine" and self.correction != "none":
            raise ValueError(
                f"correction {self.correction} with ratio_against engine would correct twice; set correction to none"
            )
        if self.dual_clip is not None and self.objective != "clip":
            raise ValueError("dual_clip belongs to objective clip; cispo bounds the ratio for both signs by clip_high")
        return self


class ProblemColumns(Settings):
    """Which column of a row holds what. `a.b` is the field `b` of a column `a` that holds an object. The names that are
    looked for where none is given may be in capitals and have spaces: `Problem ID` is `problem_id`.

    A row that one of the embedded problem families made (`Problem.to_json`) is known by its columns `family` and
    `parameters`, and needs none of these.
    """

    problem: str | None = None
    """The statement. None: `problem`, `prompt` or `question`."""
    rubric: str | None = None
    """What the proof is graded by, worth 7 points: text, or a list of {name, points, description}. None: `rubric`,
    `rubrics`, `grading_guidelines`, `grading_scheme` or `marking_scheme`."""
    reference: str | None = None
    """Optional: a solution, which judges may be shown. None: `solution`, `reference` or `reference_solution`
    where there is one."""
    id: str | None = None
    """Optional: a name of the problem. None: `id` or `problem_id` where there is one, else source and row number."""


class ProblemConfig(Settings):
    """The problems that proofs are generated of, and how a step's batch is made of them."""

    train: str
    """Rows of problems: a .jsonl, .json, .csv or .parquet file, a folder of such files of one kind, or a hub id."""
    split: str = "train"
    """Split of `train` where it is a hub id."""
    hub_config: str | None = None
    """Configuration of the hub dataset."""
    revision: str | None = None
    """Branch, tag or commit of the hub dataset."""
    columns: ProblemColumns = ProblemColumns()
    """Which column holds what."""

    prompt: str = "{problem}"
    """The user's message; {problem} stands for the statement."""
    thinking: bool = False
    """The model thinks before it answers: the proof is what follows the last </think>, and an answer without one holds
    no proof, which earns nothing."""
    tokenizer: str | None = None
    """A Hugging Face tokenizer folder or hub id. None: the model's own."""
    chat_template: Path | None = None
    """A .jinja file used in place of the tokenizer's chat template."""

    prompts_per_step: int = Field(default=64, ge=1)
    """Prompts of a step, each with its group of rollouts."""
    rollouts_per_prompt: int = Field(default=16, ge=2)
    """Rollouts of a group."""
    tokens_per_microbatch: int = Field(default=16384, ge=2)
    """Most tokens of the packed sequence that a rank computes at a time."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the order of the problems, and of sampling."""

    @model_validator(mode="after")
    def _prompt_names_the_problem(self) -> Self:
        try:
            names = [name for _, name, _, _ in Formatter().parse(self.prompt) if name is not None]
        except ValueError as error:
            raise ValueError(f"prompt {self.prompt!r}: {error}; write {{{{ and }}}} for braces") from None
        if set(names) != {"problem"}:
            raise ValueError(f"prompt {self.prompt!r} must hold {{problem}} and no other name in braces")
        return self


class RolloutConfig(Settings):
    """How rollouts are generated: by which engines, with which weights, and what happens when one fails."""

    servers: tuple[str, ...] = ()
    """Addresses of running vLLM servers, such as http://node7:8000, which `python -m qedmeg serve` starts. None:
    `start` of them are started on this machine."""
    start: int = Field(default=0, ge=0, le=64)
    """vLLM servers to start on this machine. 0 and no `servers`: `engines`."""
    engines: int = Field(default=1, ge=1, le=64)
    """Engines of the run's own, in a process each, which generate while nothing else runs, and the same with the same
    seed. On a CPU, whose cores they share, several are faster for a small model: one is busy half the time with what
    Python does between two tokens. Several on GPUs are servers: `start`."""
    tp: int = Field(default=1, ge=1)
    """Tensor parallel size of an engine that is started here."""
    devices: tuple[int, ...] = ()
    """GPUs of this machine for the engines that are started here, `tp` each in turn. None: all that the run sees, last
    those that the trainer computes on."""
    kv_cache_gib: float | None = Field(default=None, gt=0)
    """Memory for keys and values of an engine that is started here. None: a quarter GiB on CPU; with the engine's
    weights 92 % of a GPU, or 30 % of one that the trainer computes on too."""

    max_tokens: int = Field(default=4096, ge=1)
    """Most tokens of an answer."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; the trainer's log-probabilities are of the same distribution."""
    max_lag: int = Field(default=0, ge=0)
    """Most weight versions between a token's generation and its use. 0: strictly on-policy, generation and training
    take turns. Above it generation goes on while training runs, and weights are changed in flight."""
    concurrency: int = Field(default=256, ge=1)
    """Most rollouts that a server generates at a time."""

    drop_zero_variance: bool = False
    """Groups whose rewards are all the same are dropped and others generated in their place (DAPO's dynamic
    sampling)."""
    max_refills: int = Field(default=4, ge=0)
    """With drop_zero_variance: at most so many times a step's prompts are drawn anew to fill it; then the step is
    trained on what there is."""
    regrades: int = Field(default=2, ge=0)
    """How many times a rollout whose grade failed is generated again."""
    min_graded: float = Field(default=0.5, ge=0, le=1)
    """A group of which less than this share was graded, or fewer than 2 rollouts, is dropped and another generated in
    its place. Rollouts that are left out as too old are none of it."""
    max_failure_rate: float = Field(default=0.3, gt=0, le=1)
    """When more than this share of the last grades failed, the step waits and says so until graders answer again. A
    proof that they answer about and never grade is given up after three times."""
    failure_pause_seconds: float = Field(default=30.0, gt=0)
    """How long it waits before it asks the grader again."""

    gate_prompts: int = Field(default=8, ge=1)
    """Prompts, the first of the training problems, whose log-probabilities trainer and engines must agree on."""
    gate_every: int = Field(default=50, ge=1)
    """Steps between such comparisons; there is always one at the first transfer."""
    gate_tolerance: float | None = Field(default=None, gt=0)
    """Greatest difference of a log-probability. None: 1e-4 in fp32, 0.15 in bf16."""

    start_seconds: float = Field(default=600.0, gt=0)
    """Longest wait for engines to start."""
    generate_seconds: float = Field(default=3600.0, gt=0)
    """Longest wait for one answer."""
    transfer_seconds: float = Field(default=300.0, gt=0, le=1000)
    """Longest time for one transfer of weights; an engine may take half of it. The ranks that wait for rank 0 meanwhile
    do so for ten minutes at most."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.servers and self.start:
            raise ValueError("give either servers or start, not both")
        if self.max_lag > 0 and not self.servers and not self.start:
            raise ValueError(
                f"max_lag {self.max_lag} generates while training runs, for which servers are needed: set start to 1 "
                "or more, or give servers; or set max_lag to 0"
            )
        if self.engines > 1 and (self.servers or self.start):
            raise ValueError(f"engines: {self.engines} are for a run without servers; start says how many of these")
        for address in self.servers:
            parts = urlsplit(address)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
                raise ValueError(f"servers: {address!r} is no address such as http://node7:8000")
        if len(set(self.servers)) < len(self.servers):
            raise ValueError("servers holds an address twice")
        if self.devices and len(self.devices) < max(self.start, 1) * self.tp:
            raise ValueError(f"devices: {len(self.devices)} GPUs are too few for {max(self.start, 1)} × tp {self.tp}")
        return self


class RLConfig(Settings):
    """What all recipes of reinforcement learning on rubric grades have in common."""

    run_dir: Path
    """Folder of the run: checkpoints, rollouts, logs, TensorBoard. A run that is started again in it goes on."""
    model: ModelConfig
    reference: Path | None = None
    """Hugging Face folder of the frozen reference that a KL penalty is against. None: the weights that the run starts
    from."""
    data: ProblemConfig
    rollout: RolloutConfig = RolloutConfig()
    grader: GraderConfig = GraderConfig()
    validation: ValidationConfig | None = None
    loss: LossConfig = LossConfig()
    parallel: ParallelConfig = ParallelConfig()
    compute: ComputeConfig = ComputeConfig()
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-6, schedule="constant")
    checkpoint: CheckpointConfig = CheckpointConfig(save_every=5)
    max_steps: int = Field(default=150, ge=1)
    """Steps: batches of prompts_per_step groups."""
    minibatches: int = Field(default=1, ge=1)
    """Optimizer steps that a batch is cut into."""
    seed: int = Field(default=1234, ge=0)
    """Seed of the model's random states."""

    @model_validator(mode="after")
    def _batch_is_large_enough(self) -> Self:
        if self.minibatches > self.data.prompts_per_step:
            raise ValueError(
                f"minibatches {self.minibatches} is greater than data.prompts_per_step {self.data.prompts_per_step}"
            )
        return self


class GRPOConfig(RLConfig):
    """Reinforcement learning on rubric grades with group-relative advantages."""

    advantage: AdvantageConfig = AdvantageConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.advantage.overlong_penalty > 0 and self.advantage.overlong_buffer > self.rollout.max_tokens:
            raise ValueError(
                f"advantage.overlong_buffer {self.advantage.overlong_buffer} is greater than rollout.max_tokens "
                f"{self.rollout.max_tokens}"
            )
        return self


class CriticConfig(Settings):
    """The critic of PPO: a model like the policy, begun from its weights, that predicts the return at each token."""

    discount: float = Field(default=1.0, gt=0, le=1)
    """What a reward one token later counts for."""
    gae_lambda: float = Field(default=1.0, ge=0, le=1)
    """GAE: how far an advantage looks before it trusts the critic. 1: to the end of the answer; 0: one token."""
    value_clip: float | None = Field(default=0.2, gt=0)
    """How far a value may move from the one that the batch was rated with before moving on earns nothing; rewards lie
    between 0 and 1. None: as far as it likes."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps, the first of max_steps, in which the critic alone learns."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-5, schedule="constant")


class PPOConfig(RLConfig):
    """Reinforcement learning on rubric grades with NeMo-Aligner's trainers: PPO with a critic, or REINFORCE."""

    algorithm: Literal["ppo", "reinforce"] = "ppo"
    """`ppo`: advantages of each token by GAE, from a critic. `reinforce`: a rollout's reward minus the mean reward of
    the others of its prompt (RLOO); no critic."""
    kl_penalty: float = Field(default=0.0, ge=0)
    """Times the log-ratio of policy to frozen reference, taken off the reward: of each token in PPO, the mean over a
    rollout's tokens in REINFORCE. 0: no reference is needed."""
    normalise_advantages: bool = True
    """PPO: advantages get mean 0 and standard deviation 1 over the tokens of a batch."""
    critic: CriticConfig = CriticConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.loss.kl_coef > 0:
            raise ValueError("loss.kl_coef: the penalty is in the reward here; set kl_penalty, and loss.kl_coef to 0")
        if self.critic.warmup_steps >= self.max_steps:
            raise ValueError(
                f"critic.warmup_steps {self.critic.warmup_steps} leaves the policy none of max_steps {self.max_steps}"
            )
        if self.critic.optimizer.min_lr > self.critic.optimizer.lr:
            raise ValueError(
                f"critic.optimizer.min_lr {self.critic.optimizer.min_lr} is greater than critic.optimizer.lr of "
                f"{self.critic.optimizer.lr}"
            )
        if self.algorithm == "reinforce" and self.critic != CriticConfig():
            raise ValueError("critic: algorithm reinforce has none; leave the section out, or set algorithm to ppo")
        return self

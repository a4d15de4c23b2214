"""What every training run begins with: the model it starts from, its policy and optimizer, and the wish to stop."""

import os
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from qedmeg import device, parallel
from qedmeg.config import CheckpointConfig, ComputeConfig, ModelConfig, OptimizerConfig, ParallelConfig
from qedmeg.conversion.stored import read_whole_checkpoint
from qedmeg.data.tokenizer import Tokenizer, load_tokenizer
from qedmeg.errors import UserError
from qedmeg.model import build, weights
from qedmeg.model.build import Compute
from qedmeg.model.families import Architecture, read_architecture
from qedmeg.parallel import Parallelism
from qedmeg.training import checkpoint
from qedmeg.training.optimizer import Optimizer, build_scheduler
from qedmeg.training.policy import Policy

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class RunConfig(Protocol):
    """The settings that all training recipes share."""

    @property
    def run_dir(self) -> Path: ...
    @property
    def model(self) -> ModelConfig: ...
    @property
    def data(self) -> Any: ...
    @property
    def parallel(self) -> ParallelConfig: ...
    @property
    def compute(self) -> ComputeConfig: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...
    @property
    def checkpoint(self) -> CheckpointConfig: ...


@dataclass(frozen=True)
class Start:
    """What a run starts from, read and checked before any process group or device is touched."""

    model: Architecture
    hf_files: Path
    """Folder with the config and tokenizer files of the model."""
    parallelism: Parallelism
    compute: Compute
    found: tuple[int, Path] | None
    """The step and folder of the run's newest complete checkpoint."""

    def tokenizer(self, name: str | None, chat_template: Path | None) -> Tokenizer:
        """The model's tokenizer, or the one of that name.

        Raises:
            UserError: it has more tokens than the model.
        """
        tokenizer = load_tokenizer(name or str(self.hf_files), chat_template)
        if tokenizer.vocab_size > self.model.vocabulary:
            raise UserError(
                f"{tokenizer.name}: the tokenizer has {tokenizer.vocab_size} tokens and the model a vocabulary of "
                f"{self.model.vocabulary}; give the model's own tokenizer (data.tokenizer)"
            )
        return tokenizer

    def training_state(
        self, config: RunConfig, prompts_per_step: int, optimizer_steps: int, loader: Any
    ) -> checkpoint.TrainingState:
        """Policy, optimizer and schedule, with weights yet to be loaded. The process groups must be there."""
        policy = Policy(self.model, self.parallelism, self.compute, prompts_per_step)
        optimizer = Optimizer(policy.ddp, config.optimizer, self.compute.dtype)
        scheduler = build_scheduler(optimizer, config.optimizer, optimizer_steps)
        return checkpoint.TrainingState(policy, optimizer, scheduler, loader)

    def load(self, config: RunConfig, state: checkpoint.TrainingState) -> int:
        """Fill in the newest checkpoint, or the weights that the run begins with; the step to go on from."""
        if self.found:
            return checkpoint.load(self.found[1], state)
        parallel.same_error(partial(load_weights, config.model, self.model, state.policy))
        state.optimizer.megatron.reload_model_params()
        return 0


def read_start(config: RunConfig) -> Start:
    """Read and check what a run starts from.

    Raises:
        UserError: model, parallelism, precision and checkpoint do not fit each other.
    """
    if config.model.megatron is not None:
        hf_files = read_whole_checkpoint(config.model.megatron).hf
    else:
        assert config.model.hf is not None  # ModelConfig has one of the two
        hf_files = config.model.hf
    model = read_architecture(hf_files)
    parallelism = Parallelism(**config.parallel.model_dump())
    compute = Compute(
        dtype=PRECISIONS[config.compute.precision],
        transformer_engine=config.compute.transformer_engine,
        fp8=config.compute.fp8,
        recompute=config.compute.recompute,
        gradient_accumulation_fusion=config.compute.gradient_accumulation_fusion,
    )
    parallel.check(parallelism, model, int(os.environ.get("WORLD_SIZE", "1")))
    build.check(compute)
    if config.data.tokens_per_microbatch % parallelism.batch_multiple():
        raise UserError(
            f"data.tokens_per_microbatch: {config.data.tokens_per_microbatch} is not a multiple of "
            f"{parallelism.batch_multiple()}, as context and sequence parallelism cut it"
        )
    if config.optimizer.min_lr > config.optimizer.lr:
        raise UserError(
            f"optimizer.min_lr: {config.optimizer.min_lr} is greater than optimizer.lr of {config.optimizer.lr}"
        )
    found = checkpoint.latest(config.run_dir)
    if found:
        checkpoint.require_same(read_whole_checkpoint(found[1]), model, compute.dtype)
    return Start(model, hf_files, parallelism, compute, found)


def load_weights(source: ModelConfig, model: Architecture, policy: Policy) -> None:
    """Fill a policy's chunks from a Hugging Face folder or a Megatron checkpoint. All ranks call it.

    Raises:
        UserError: the tensors are not the model's, or hold NaN.
    """
    if source.hf is not None:
        weights.load_hf(policy.chunks, model, source.hf)
    elif source.megatron is not None:
        weights.load_megatron(policy.chunks, source.megatron)
        for chunk in policy.chunks:
            for name, parameter in chunk.named_parameters():
                if not torch.isfinite(parameter).all():
                    raise UserError(f"{source.megatron}: tensor {name} holds NaN or infinity; train it again")


class StopRequest:
    """SIGTERM: the run is to be saved and ended after the step that it is in."""

    def __init__(self) -> None:
        self.stopped = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: object) -> None:
        self.stopped = True

    def asked(self) -> bool:
        """Whether any rank has got the signal; all ranks call it, and get the same answer."""
        asked = torch.tensor(int(self.stopped), device=device.current())
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        self.stopped = bool(asked)
        return self.stopped

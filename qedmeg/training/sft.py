"""Supervised fine-tuning, driven by NeMo-Aligner's SupervisedTrainer over the policy."""

import os
import signal
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import OmegaConf

from qedmeg import device, parallel
from qedmeg.config import SFTConfig
from qedmeg.conversion.stored import read_whole_checkpoint
from qedmeg.data.documents import load_documents
from qedmeg.data.loader import TrainLoader, ValidationLoader, steps_of_epochs
from qedmeg.data.tokenizer import load_tokenizer
from qedmeg.errors import EXIT_REQUEUE, UserError
from qedmeg.model import build, weights
from qedmeg.model.build import Compute
from qedmeg.model.families import Architecture, read_architecture
from qedmeg.monitor.metrics import MetricsLogger
from qedmeg.parallel import Parallelism
from qedmeg.settings import save_config
from qedmeg.training import checkpoint, nemo
from qedmeg.training.optimizer import Optimizer, build_scheduler
from qedmeg.training.policy import Policy, placement

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class _StopRequest:
    """NeMo-Aligner's run timer: ends the run after the step in which any rank got SIGTERM."""

    def __init__(self) -> None:
        self.stopped = False
        self.trainer: Any = None
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: object) -> None:
        self.stopped = True

    def start_time(self) -> None: ...

    def is_finished(self) -> bool:
        asked = torch.tensor(int(self.stopped), device=device.current())
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        self.stopped = bool(asked)
        if self.stopped:
            self.trainer.limit_val_batches = 0  # there may be little time: save, do not validate first
        return self.stopped


class _Hooks:
    """The small objects that SupervisedTrainer calls: scheduler, checkpoint callback, logger."""

    def __init__(self, state: checkpoint.TrainingState, logger: MetricsLogger, checkpointer: Any) -> None:
        self.state, self.logger, self.checkpointer = state, logger, checkpointer
        self.trainer: Any = None

    def step(self) -> None:
        self.state.scheduler.step(1)

    def custom_save(self, monitor_candidates: dict[str, Any], is_train_end: bool) -> None:
        self.checkpointer.save(self.trainer.step)

    def log_metrics(self, metrics: dict[str, float], step: int, prefix: str = "") -> None:
        if prefix == "train/":
            metrics = {**metrics, "grad_norm": self.state.optimizer.grad_norm}
            self.checkpointer.poll()
        self.logger.log_metrics(metrics, step, prefix)

    def finalize(self) -> None: ...


def train(config: SFTConfig) -> int:
    """Run, or go on with, the fine-tuning that `config` describes; the process's exit status.

    Raises:
        UserError: settings, data or checkpoint do not fit; before anything is trained.
    """
    if config.model.megatron is not None:
        hf_files = read_whole_checkpoint(config.model.megatron).hf
    elif config.model.hf is not None:
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
    _check(config, model, parallelism, compute)
    found = checkpoint.latest(config.run_dir)
    if found:
        checkpoint.require_same(read_whole_checkpoint(found[1]), model, compute.dtype)
    trainer_class = nemo.supervised_trainer()
    stop = _StopRequest()
    parallel.initialize(parallelism, config.seed)
    is_main = dist.get_rank() == 0
    tokenizer = load_tokenizer(config.data.tokenizer or str(hf_files), config.data.chat_template)
    if tokenizer.vocab_size > model.vocabulary:
        raise UserError(
            f"{tokenizer.name}: the tokenizer has {tokenizer.vocab_size} tokens and the model a vocabulary of "
            f"{model.vocabulary}; give the model's own tokenizer (data.tokenizer)"
        )
    train_set, validation_set = load_documents(config.data, tokenizer, show=is_main)
    pad_id = tokenizer.pad_id
    steps = config.max_steps or steps_of_epochs(len(train_set), config.data.prompts_per_step, config.epochs)
    place = placement(parallelism)
    loader = TrainLoader(train_set, config.data, pad_id, steps, place)
    validation = ValidationLoader(validation_set, config.data, pad_id, place) if validation_set else None

    policy = Policy(model, parallelism, compute, config.data.prompts_per_step)
    optimizer = Optimizer(policy.ddp, config.optimizer, compute.dtype)
    state = checkpoint.TrainingState(policy, optimizer, build_scheduler(optimizer, config.optimizer, steps), loader)
    first_step = 0
    if found:
        first_step = checkpoint.load(found[1], state)
    else:
        parallel.same_error(partial(_load_weights, config, model, policy))
        optimizer.megatron.reload_model_params()
    if first_step >= steps:
        return 0

    if is_main:
        config.run_dir.mkdir(parents=True, exist_ok=True)
        save_config(config, config.run_dir / "config.yaml")
        _announce(config, model, steps, first_step, len(train_set), parallel.data_size())
    checkpointer = checkpoint.Checkpointer(config.run_dir, config.checkpoint, hf_files, state)
    logger = MetricsLogger(config.run_dir, "SFT", first_step, steps, is_main=is_main)
    hooks = _Hooks(state, logger, checkpointer)
    trainer = trainer_class(
        cfg=OmegaConf.create(
            {
                "max_epochs": 1,
                "max_steps": steps,
                "limit_train_batches": 1.0,
                "limit_val_batches": 1.0 if validation else 0,
                "val_check_interval": (config.validate_every or config.checkpoint.save_every) if validation else 0,
                "save_interval": config.checkpoint.save_every,
                "gradient_clip_val": config.optimizer.clip_grad,
            }
        ),
        model=policy,
        optimizer=optimizer,
        scheduler=hooks,
        train_dataloader=loader,
        val_dataloader=validation or [],
        test_dataloader=None,
        logger=hooks,
        ckpt_callback=hooks,
        run_timer=stop,
    )
    trainer.step, trainer.consumed_samples = first_step, first_step * config.data.prompts_per_step
    hooks.trainer = stop.trainer = trainer
    trainer.fit()
    checkpointer.close()
    logger.finalize()
    return EXIT_REQUEUE if trainer.step < steps else 0


def _check(config: SFTConfig, model: Architecture, parallelism: Parallelism, compute: Compute) -> None:
    """Refuse settings that do not fit each other or the model, before anything costly is begun."""
    parallel.check(parallelism, model, int(os.environ.get("WORLD_SIZE", "1")))
    build.check(compute)
    data, optimizer, save_every = config.data, config.optimizer, config.checkpoint.save_every
    if data.max_length > model.max_positions:
        raise UserError(
            f"data.max_length: {data.max_length} is longer than the model's context of {model.max_positions}; lower it"
        )
    if data.tokens_per_microbatch % parallelism.batch_multiple():
        raise UserError(
            f"data.tokens_per_microbatch: {data.tokens_per_microbatch} is not a multiple of "
            f"{parallelism.batch_multiple()}, as context and sequence parallelism cut it"
        )
    if optimizer.min_lr > optimizer.lr:
        raise UserError(f"optimizer.min_lr: {optimizer.min_lr} is greater than optimizer.lr of {optimizer.lr}")
    if config.validate_every and save_every % config.validate_every:
        raise UserError(
            f"validate_every: {config.validate_every} does not divide checkpoint.save_every of {save_every}, and "
            "NeMo-Aligner validates before each checkpoint"
        )


def _load_weights(config: SFTConfig, model: Architecture, policy: Policy) -> None:
    if config.model.hf is not None:
        weights.load_hf(policy.chunks, model, config.model.hf)
    elif config.model.megatron is not None:
        weights.load_megatron(policy.chunks, config.model.megatron)
        for chunk in policy.chunks:
            for name, parameter in chunk.named_parameters():
                if not torch.isfinite(parameter).all():
                    raise UserError(f"{config.model.megatron}: tensor {name} holds NaN or infinity; train it again")


def _announce(config: SFTConfig, model: Any, steps: int, first: int, documents: int, dp: int) -> None:
    sizes = ", ".join(f"{name} {value}" for name, value in config.parallel.model_dump().items() if value not in (1, 0))
    print(
        f"SFT of {model.name}, {model.layers} layers, hidden {model.hidden}: {documents} documents, "
        f"{config.data.prompts_per_step} a step, steps {first} to {steps}, {config.data.tokens_per_microbatch} tokens "
        f"a micro-batch; dp {dp}{', ' + sizes if sizes else ''}; {config.compute.precision}; {config.run_dir}",
        flush=True,
    )

"""Supervised fine-tuning, driven by NeMo-Aligner's SupervisedTrainer over the policy."""

from typing import Any

import torch.distributed as dist
from omegaconf import OmegaConf

from qedmeg import parallel
from qedmeg.config import SFTConfig
from qedmeg.data.documents import load_documents
from qedmeg.data.loader import TrainLoader, ValidationLoader, steps_of_epochs
from qedmeg.errors import EXIT_REQUEUE, UserError
from qedmeg.lineage.origin import begin_run
from qedmeg.model.families import Architecture
from qedmeg.monitor.metrics import MetricsLogger
from qedmeg.parallel import Parallelism
from qedmeg.settings import save_config
from qedmeg.training import checkpoint, nemo
from qedmeg.training.policy import placement
from qedmeg.training.start import StopRequest, read_start


class _RunTimer(StopRequest):
    """NeMo-Aligner's run timer: ends the run after the step in which any rank got SIGTERM."""

    trainer: Any = None

    def start_time(self) -> None: ...

    def is_finished(self) -> bool:
        if self.asked():
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
    start = read_start(config)
    model, parallelism = start.model, start.parallelism
    _check(config, model, parallelism)
    trainer_class = nemo.supervised_trainer()
    stop = _RunTimer()
    parallel.initialize(parallelism, config.seed)
    is_main = dist.get_rank() == 0
    tokenizer = start.tokenizer(config.data.tokenizer, config.data.chat_template)
    train_set, validation_set = load_documents(config.data, tokenizer, show=is_main)
    pad_id = tokenizer.pad_id
    steps = config.max_steps or steps_of_epochs(len(train_set), config.data.prompts_per_step, config.epochs)
    place = placement(parallelism)
    loader = TrainLoader(train_set, config.data, pad_id, steps, place)
    validation = ValidationLoader(validation_set, config.data, pad_id, place) if validation_set else None

    state = start.training_state(config, config.data.prompts_per_step, steps, loader)
    first_step = start.load(config, state)
    if first_step >= steps:
        return 0

    if is_main:
        config.run_dir.mkdir(parents=True, exist_ok=True)
        save_config(config, config.run_dir / "config.yaml")
        begin_run(config, "SFT", first_step)
        _announce(config, model, steps, first_step, len(train_set), parallel.data_size())
    checkpointer = checkpoint.Checkpointer(config.run_dir, config.checkpoint, start.hf_files, state)
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
        model=state.policy,
        optimizer=state.optimizer,
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


def _check(config: SFTConfig, model: Architecture, parallelism: Parallelism) -> None:
    """Refuse settings that do not fit each other or the model, before anything costly is begun."""
    data, save_every = config.data, config.checkpoint.save_every
    if data.max_length > model.max_positions:
        raise UserError(
            f"data.max_length: {data.max_length} is longer than the model's context of {model.max_positions}; lower it"
        )
    if config.validate_every and save_every % config.validate_every:
        raise UserError(
            f"validate_every: {config.validate_every} does not divide checkpoint.save_every of {save_every}, and "
            "NeMo-Aligner validates before each checkpoint"
        )


def _announce(config: SFTConfig, model: Any, steps: int, first: int, documents: int, dp: int) -> None:
    sizes = ", ".join(f"{name} {value}" for name, value in config.parallel.model_dump().items() if value not in (1, 0))
    print(
        f"SFT of {model.name}, {model.layers} layers, hidden {model.hidden}: {documents} documents, "
        f"{config.data.prompts_per_step} a step, steps {first} to {steps}, {config.data.tokens_per_microbatch} tokens "
        f"a micro-batch; dp {dp}{', ' + sizes if sizes else ''}; {config.compute.precision}; {config.run_dir}",
        flush=True,
    )

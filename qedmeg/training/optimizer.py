"""Megatron-core's distributed optimizer and learning-rate schedule, with what torch's AdamW needs to resume exactly."""

import math
from functools import partial
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from qedmeg.config import OptimizerConfig
from qedmeg.errors import RunFailed


class TrainingDivergedError(RunFailed):
    """The loss or its gradient is no longer finite: the run ends, its last checkpoint is whole."""


class Optimizer:
    """Megatron's optimizer as NeMo-Aligner's trainers want it, remembering the last gradient norm."""

    def __init__(self, chunks: list[DistributedDataParallel], config: OptimizerConfig, dtype: torch.dtype) -> None:
        self.megatron = get_megatron_optimizer(
            MegatronOptimizerConfig(
                optimizer="adam",
                lr=config.lr,
                min_lr=config.min_lr,
                weight_decay=config.weight_decay,
                adam_beta1=config.beta1,
                adam_beta2=config.beta2,
                adam_eps=config.eps,
                clip_grad=config.clip_grad or math.inf,  # at 0 it would not compute the norm either
                bf16=dtype == torch.bfloat16,
                params_dtype=dtype,
                use_distributed_optimizer=True,
            ),
            chunks,
        )
        self.grad_norm = 0.0
        self.updates = 0
        """Updates applied in the whole run: Adam's step."""
        for inner in self._inner():
            for group in inner.optimizer.param_groups:
                # Megatron leaves it to the scheduler to spare norms and biases; without one, they would decay too.
                group["weight_decay"] = config.weight_decay * group["wd_mult"]
                if "fused" in group:  # torch's AdamW: one pass over memory instead of a dozen
                    group["fused"], group["foreach"] = True, False

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups, for the trainer to read the learning rate from."""
        groups: list[dict[str, Any]] = self.megatron.param_groups
        return groups

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.megatron.zero_grad()

    def step(self, closure: None = None) -> None:
        """Clip and apply the gradients.

        Raises:
            TrainingDivergedError: the gradient norm is NaN or infinite.
        """
        updated, norm, _ = self.megatron.step()
        self.grad_norm = float(norm)
        if not updated or not math.isfinite(self.grad_norm):
            raise TrainingDivergedError(
                f"gradient norm is {self.grad_norm}: training has diverged; resume with a lower optimizer.lr or a "
                "longer optimizer.warmup_steps"
            )
        self.updates += 1

    def sharded_state_dict(self, model_state: dict[str, Any], metadata: dict[str, Any], loading: bool) -> Any:
        """What a checkpoint holds of the optimizer, laid out by parameter, so that it loads at any topology."""
        if loading or not self.updates:
            self._begin_moments()
        alone = [inner for inner in self._inner() if not loading and inner.data_parallel_group.size() == 1]
        for inner in alone:
            inner.get_parameter_state_dp_zero = partial(_state_in_place, inner)
        try:
            return self.megatron.sharded_state_dict(model_state, is_loading=loading, metadata=metadata)
        finally:
            for inner in alone:
                del inner.get_parameter_state_dp_zero

    def load_state_dict(self, state: Any, updates: int) -> None:
        """Take over the moments and master weights that were read into `sharded_state_dict(loading=True)`, and the
        number of updates that made them. Settings stay this run's.

        Megatron would also take over the parameter groups, which are others, or in another number, where experts were
        spread over another number of ranks.
        """
        ours = self.megatron.state_dict()
        chained = isinstance(ours, list)
        whole = []
        for number, inner in enumerate(ours if chained else [ours]):
            for group in inner["optimizer"]["param_groups"]:
                group["step"] = float(updates) if isinstance(group.get("step"), float) else updates
            tensors = (state[number] if chained else state)["param_state"]
            whole.append({**inner, "param_state": tensors, "param_state_sharding_type": "fully_reshardable"})
        self.updates = updates
        with torch.no_grad():
            self.megatron.load_state_dict(dict(enumerate(whole)) if chained else whole[0])
        for inner in self._inner():
            for moments in inner.optimizer.state.values():
                if "step" in moments:
                    # Loading lets all parameters share one step counter, which each update then advances.
                    moments["step"] = moments["step"].clone()

    def _begin_moments(self) -> None:
        """Make Adam's moments, zero, which torch's does at the first step only: saving and loading want them before."""
        for inner in self._inner():
            groups = inner.optimizer.param_groups
            rates = [group["lr"] for group in groups]
            for group in groups:
                group["lr"] = 0.0  # Megatron makes them by a step, which would decay the weights
            inner._init_optimizer_states_with_dummy_values()
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate
            for moments in inner.optimizer.state.values():
                if "step" in moments:
                    moments["step"].zero_()

    def _inner(self) -> list[DistributedOptimizer]:
        return list(getattr(self.megatron, "chained_optimizers", [self.megatron]))


class _Pieces(dict[Any, torch.Tensor]):
    """A flat buffer of which each parameter's part is known by where it begins."""

    def __getitem__(self, part: slice) -> torch.Tensor:
        return super().__getitem__(part.start)


def _state_in_place(inner: DistributedOptimizer, **_: Any) -> dict[int, dict[Any, dict[str, _Pieces]]]:
    """What Megatron's `get_parameter_state_dp_zero` gathers from the data-parallel ranks, where there is one rank only.

    Megatron's would copy everything four times, which made saving the peak of memory of a whole run.
    """
    state = {}
    for index, (ranges, buffer) in enumerate(zip(inner.gbuf_ranges, inner.buffers, strict=True)):
        ((dtype, buckets),) = ranges.items()
        pieces = {name: _Pieces() for name in ("param", "exp_avg", "exp_avg_sq")}
        for bucket in buckets:
            for parameter in bucket["param_map"]:
                begins = buffer.param_index_map[parameter][0]
                tensors = inner._get_main_param_and_optimizer_states(parameter)
                for name, of_parameters in pieces.items():
                    of_parameters[begins] = tensors[name].detach()
        state[index] = {dtype: pieces}
    return state


def build_scheduler(optimizer: Optimizer, config: OptimizerConfig, total_steps: int) -> OptimizerParamScheduler:
    """Warm-up, then constant, linear, cosine, or constant with a linear decay at the end (WSD)."""
    decay_steps = max(1, round(total_steps * config.decay_fraction))
    styles = {"constant": "constant", "linear": "linear", "cosine": "cosine", "wsd": "WSD"}
    return OptimizerParamScheduler(
        optimizer.megatron,
        init_lr=0.0,
        max_lr=config.lr,
        min_lr=config.min_lr,
        lr_warmup_steps=min(config.warmup_steps, total_steps - 1),
        lr_decay_steps=total_steps,
        lr_decay_style=styles[config.schedule],
        start_wd=config.weight_decay,
        end_wd=config.weight_decay,
        wd_incr_steps=total_steps,
        wd_incr_style="constant",
        wsd_decay_steps=decay_steps if config.schedule == "wsd" else None,
        lr_wsd_decay_style="linear" if config.schedule == "wsd" else None,
        # Of a checkpoint's schedule only its step: a run may go on with another learning rate, or for longer.
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )


def _keep_step(method: Any) -> Any:
    """Let a checkpoint without Adam's step counters load: torch's AdamW keeps one a parameter, Megatron saves one."""

    def set_states(self: DistributedOptimizer, parameter: torch.Tensor, tensors: dict[str, torch.Tensor]) -> Any:
        group, order = self.model_param_group_index_map[parameter]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        return method(self, parameter, {name: state[name] for name in ("step",) if name in state} | tensors)

    return set_states


DistributedOptimizer._set_main_param_and_optimizer_states = _keep_step(
    DistributedOptimizer._set_main_param_and_optimizer_states
)

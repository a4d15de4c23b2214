"""The optimizer around Megatron's: schedules, what decays, gradient norms, and what a run that diverges says."""

from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("optimizer")
    make_checkpoint(folder, num_hidden_layers=1)
    return folder


def _made(model_folder: Path, **settings: Any) -> tuple[Any, Any, Any]:
    """A policy with its weights, an optimizer and its settings, on one rank."""
    import torch

    from qedmeg import parallel
    from qedmeg.config import OptimizerConfig
    from qedmeg.model import families, weights
    from qedmeg.model.build import Compute
    from qedmeg.training.optimizer import Optimizer
    from qedmeg.training.policy import Policy

    model, config = families.read_architecture(model_folder), OptimizerConfig(**settings)
    parallel.initialize(parallel.Parallelism(), seed=1)
    policy = Policy(model, parallel.Parallelism(), Compute(), prompts_per_step=1)
    weights.load_hf(policy.chunks, model, model_folder)
    optimizer = Optimizer(policy.ddp, config, torch.float32)
    optimizer.megatron.reload_model_params()
    return policy, optimizer, config


def _learning_rates(model_folder: Path, settings: dict[str, Any], steps: int) -> list[float]:
    from qedmeg.training.optimizer import build_scheduler

    _, optimizer, config = _made(model_folder, **settings)
    scheduler, rates = build_scheduler(optimizer, config, steps), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(1)
    return rates


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "constant"}, [1.0] * 8),
        ({"schedule": "linear", "min_lr": 0.2}, [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]),
        ({"schedule": "linear", "warmup_steps": 4}, [0.0, 0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25]),
        ({"schedule": "wsd", "decay_fraction": 0.5}, [1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ({"schedule": "cosine"}, [1.0, 0.9619, 0.8536, 0.6913, 0.5, 0.3087, 0.1464, 0.0381]),
        ({"schedule": "constant", "warmup_steps": 100}, [i / 7 for i in range(8)]),  # cut to the run's length
    ],
)
def test_schedules(ranks, model_folder, settings, expected):
    (rates,) = ranks(_learning_rates, 1, model_folder, {"lr": 1.0, **settings}, 8)
    assert rates == pytest.approx(expected, abs=1e-4)


def _shrinkage(model_folder: Path) -> dict[str, float]:
    """Each parameter's size after a step without gradients, as a share of what it was."""
    policy, optimizer, _ = _made(model_folder, lr=0.1, weight_decay=0.5)
    before = {name: value.detach().clone() for name, value in policy.chunks[0].named_parameters()}
    policy.prepare_for_training_step()
    optimizer.step()
    return {name: (value.norm() / before[name].norm()).item() for name, value in policy.chunks[0].named_parameters()}


def test_only_matrices_decay(ranks, model_folder):
    (shares,) = ranks(_shrinkage, 1, model_folder)
    for name, share in shares.items():
        assert share == pytest.approx(1.0 if "norm" in name else 0.95, rel=1e-6), name


def _update(model_folder: Path, gradient: float, clip_grad: float) -> tuple[float, float]:
    """The reported norm, and the largest change of a weight by plain descent on that gradient for one element."""
    # with beta1 and beta2 of 0 and a large eps, AdamW's step is lr × gradient / eps
    policy, optimizer, _ = _made(
        model_folder, lr=1.0, beta1=0.0, beta2=0.0, eps=1e6, weight_decay=0.0, clip_grad=clip_grad
    )
    weight = policy.chunks[0].output_layer.weight
    before = weight.detach().double().clone()
    policy.prepare_for_training_step()
    weight.main_grad[5, 7] = gradient
    optimizer.step()
    return optimizer.grad_norm, float((weight.detach().double() - before).abs().max()) * 1e6


@pytest.mark.parametrize(
    ("gradient", "clip_grad", "applied"), [(4.0, 1.0, 1.0), (4.0, 0.0, 4.0), (0.5, 1.0, 0.5), (4.0, 3.0, 3.0)]
)
def test_gradients_are_clipped_by_norm(ranks, model_folder, gradient, clip_grad, applied):
    ((norm, change),) = ranks(_update, 1, model_folder, gradient, clip_grad)
    assert norm == pytest.approx(gradient)
    assert change == pytest.approx(applied, rel=0.05)  # of a weight in fp32


def _divergence(model_folder: Path, gradient: float) -> str:
    from qedmeg.training.optimizer import TrainingDivergedError

    try:
        _update(model_folder, gradient, 1.0)
    except TrainingDivergedError as error:
        return str(error)
    return "went on"


@pytest.mark.parametrize("gradient", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_end_the_run(ranks, model_folder, gradient):
    (message,) = ranks(_divergence, 1, model_folder, gradient)
    assert message.startswith(f"gradient norm is {gradient}")

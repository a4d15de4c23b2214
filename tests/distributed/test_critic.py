"""The critic: the same values and gradients however it is spread, and those of transformers under a linear head."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from qedmeg.rollout.sample import Group
from qedmeg.training.rollout_rows import rollout_rows
from tests.checkpoints import make_checkpoint
from tests.distributed.test_rollout_step import ROLLOUTS, make_groups

COUNT, CLIP = 4, 0.2  # groups: one of them is missing


def numbers(width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns and old values [B, L], and the value head's weight and bias."""
    random = torch.Generator().manual_seed(0)
    returns_BL, old_BL = torch.randn(2, COUNT * ROLLOUTS, width, generator=random)
    return returns_BL, old_BL, torch.randn(1, 64, generator=random) * 0.1, torch.randn(1, generator=random)


def answers_mask(rows: dict[str, torch.Tensor]) -> torch.Tensor:
    """1 [B, L] where the label is a token of the answer."""
    label_L = torch.arange(rows["response_tokens"].shape[1] - 1)
    inside = (label_L >= rows["prompt_lengths"][:, None] - 1) & (label_L < rows["response_lengths"][:, None] - 1)
    return (inside & rows["is_end"][:, None]).float()


def step_on_ranks(
    folder: Path, groups: list[Group], sizes: dict[str, Any], budget: int
) -> tuple[torch.Tensor, float, float, float]:
    """This rank's values, the loss, the share that was clipped and the gradient norm; runs on each rank of a pool."""
    from megatron.core import parallel_state

    from qedmeg import parallel
    from qedmeg.config import OptimizerConfig
    from qedmeg.model import families, weights
    from qedmeg.model.build import Compute, ValueModel
    from qedmeg.training.checkpoint import TrainedModel
    from qedmeg.training.critic import begin_from, pack_returns, row_values, value_gradients
    from qedmeg.training.optimizer import Optimizer
    from qedmeg.training.policy import Policy, placement
    from qedmeg.training.rollout_rows import pack_rows, sum_over_data_ranks

    model, parallelism = families.read_architecture(folder), parallel.Parallelism(**sizes)
    parallel.check(parallelism, model, dist.get_world_size())
    parallel.initialize(parallelism, seed=1)
    policy = Policy(model, parallelism, Compute(), COUNT, frozen=True)
    weights.load_hf(policy.chunks, model, folder)
    critic = Policy(model, parallelism, Compute(), COUNT, kind=ValueModel)
    optimizer = Optimizer(critic.ddp, OptimizerConfig(clip_grad=1.0), torch.float32)
    begin_from(policy, TrainedModel(critic, optimizer, None))

    rows = rollout_rows(groups, COUNT, ROLLOUTS)
    mask_BL = answers_mask(rows)
    returns_BL, old_BL, weight, bias = numbers(mask_BL.shape[1])
    for chunk in critic.chunks:
        if chunk.post_process:
            assert not any(parameter.any() for parameter in chunk.value_head.parameters())
            with torch.no_grad():
                chunk.value_head.weight.copy_(weight)
                chunk.value_head.bias.copy_(bias)
    optimizer.megatron.reload_model_params()
    tokens_BS, mask_BL, returns_BL, old_BL = (
        tensor.chunk(parallel.data_size())[parallel.data_rank()]
        for tensor in (rows["response_tokens"], mask_BL, returns_BL, old_BL)
    )
    packed = pack_rows(tokens_BS, mask_BL, budget, 0, placement(parallelism))
    values_BL = row_values(critic, packed, mask_BL.shape[1]) * mask_BL
    (tokens,) = sum_over_data_ranks(float(mask_BL.sum()))
    optimizer.zero_grad()
    loss, clipped = value_gradients(critic, pack_returns(packed, old_BL, returns_BL, tokens), CLIP)
    optimizer.step()
    parallel_state.destroy_model_parallel()
    return values_BL, loss, clipped, optimizer.grad_norm


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def folder(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_checkpoint(folder, tie_word_embeddings=request.param)
    return folder


@pytest.fixture(scope="module")
def alone(ranks, folder):
    """The step on one rank."""
    return ranks(step_on_ranks, 1, folder, make_groups(), {}, 512)[0]


def test_values_and_gradient_are_those_of_transformers(folder, alone):
    from transformers import AutoModel

    rows = rollout_rows(make_groups(), COUNT, ROLLOUTS)
    mask_BL = answers_mask(rows)
    returns_BL, old_BL, weight, bias = numbers(mask_BL.shape[1])
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    head = torch.nn.Linear(64, 1)
    head.weight.data, head.bias.data = weight, bias
    total = torch.zeros(())
    values_BL = torch.zeros_like(mask_BL)
    for row, length in enumerate(rows["response_lengths"].tolist()):
        if length:
            tokens_L = rows["response_tokens"][row, :length]
            values_L = head(model(tokens_L[None]).last_hidden_state[0, :-1])[:, 0]
            old_L, returns_L = old_BL[row, : length - 1], returns_BL[row, : length - 1]
            clipped_L = old_L + (values_L - old_L).clamp(-CLIP, CLIP)
            errors_L = torch.maximum((values_L - returns_L) ** 2, (clipped_L - returns_L) ** 2)
            total = total + (errors_L * mask_BL[row, : length - 1]).sum() / 2
            values_BL[row, : length - 1] = values_L.detach() * mask_BL[row, : length - 1]
    (total / mask_BL.sum()).backward()
    parameters = [*model.parameters(), *head.parameters()]
    expected = torch.nn.utils.clip_grad_norm_(parameters, 1e9).item()
    found, loss, clipped, norm = alone
    torch.testing.assert_close(found, values_BL, atol=1e-5, rtol=0)
    assert loss == pytest.approx((total / mask_BL.sum()).item(), rel=1e-5)
    assert norm == pytest.approx(expected, rel=1e-5)
    assert 0.05 < clipped < 0.95


@pytest.mark.parametrize(
    ("sizes", "world", "budget"),
    [
        ({"tp": 2, "pp": 2}, 4, 96),
        ({}, 2, 96),
        ({"cp": 2}, 2, 96),
        ({"cp": 2, "tp": 2, "sp": True}, 4, 96),
        ({"pp": 2, "vpp": 2}, 2, 64),
    ],
    ids=["tp2 pp2", "dp2", "cp2", "cp2 tp2 sp", "pp2 vpp2"],
)
def test_spread_steps_equal_one_rank(ranks, folder, alone, sizes, world, budget):
    values_BL, loss, clipped, norm = alone
    dp = world // (sizes.get("tp", 1) * sizes.get("pp", 1) * sizes.get("cp", 1))
    for rank, found in enumerate(ranks(step_on_ranks, world, folder, make_groups(), sizes, budget)):
        mine = values_BL.chunk(dp)[rank] if dp > 1 else values_BL
        torch.testing.assert_close(found[0], mine, atol=1e-5, rtol=0)
        assert found[1:] == pytest.approx((loss, clipped, norm), rel=1e-5)

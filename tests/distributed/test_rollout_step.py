"""A step on rollouts: the same gradients however the model is spread, and those of transformers."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from qedmeg.config_rl import AdvantageConfig, LossConfig
from qedmeg.grading.grade import Failed, Graded
from qedmeg.rollout.sample import Group, Rollout, Sample
from tests.checkpoints import make_checkpoint

GROUPS, ROLLOUTS, MAX_TOKENS, TEMPERATURE = 3, 4, 24, 0.8
POINTS = ((0.0, 7.0, 3.5, 3.5), (6.0, 1.0, None, 3.0), (2.0, 7.0, 5.0, 1.0))  # two are the mean: no advantage
VARIANTS = {
    "grpo": LossConfig(),
    "gspo": LossConfig(ratio="sequence", ratio_against="engine", correction="none", normalisation="sequence_mean"),
    "all terms": LossConfig(
        ratio_against="engine",
        correction="none",
        clip_low=0.02,
        clip_high=0.03,
        dual_clip=1.5,
        kl_coef=0.1,
        entropy_coef=0.01,
        normalisation="token_sum",
    ),
}


def make_groups() -> list[Group]:
    """Random prompts and answers of different lengths, one grade failed, one answer cut off; of each group the third
    answer begins as the first, and the last is the same."""
    random = np.random.default_rng(0)
    groups = []
    for group in range(GROUPS):
        prompt_P = random.integers(0, 300, random.integers(3, 9)).astype(np.int32)
        rollouts: list[Rollout] = []
        for index in range(ROLLOUTS):
            tokens_T = random.integers(0, 300, random.integers(4, MAX_TOKENS)).astype(np.int32)
            if index >= 2:
                first_T = rollouts[0].sample.tokens_T
                tokens_T = first_T if index == 3 else np.concatenate([first_T[:3], tokens_T])[: MAX_TOKENS - 1]
            logprobs_T = random.normal(-5.7, 0.3, len(tokens_T)).astype(np.float32)
            finish = "length" if (group, index) == (0, 1) else "stop"
            sample = Sample(prompt_P, tokens_T, logprobs_T, ((0, 0),), finish)
            points = POINTS[group][index]
            grade = Failed("timeout", "test") if points is None else Graded(points, 7, (), "test")
            rollouts.append(Rollout(group * ROLLOUTS + index, sample, grade))
        groups.append(Group(group, f"problem {group}", tuple(rollouts)))
    return groups


def near(groups: list[Group], logprobs: list[np.ndarray]) -> list[Group]:
    """The groups with engine log-probabilities a little off those of a model, as an engine's are."""
    random = np.random.default_rng(1)
    found = iter(logprobs)

    def moved(rollout: Rollout) -> Rollout:
        off_T = next(found)[len(rollout.sample.prompt_P) - 1 :]
        off_T = (off_T + random.normal(0, 0.03, len(off_T))).astype(np.float32)
        return replace(rollout, sample=replace(rollout.sample, logprobs_T=off_T))

    return [replace(group, rollouts=tuple(moved(rollout) for rollout in group.rollouts)) for group in groups]


def documents(groups: list[Group]) -> list[np.ndarray]:
    """Prompt and answer of every rollout, in order."""
    samples = [rollout.sample for group in groups for rollout in group.rollouts]
    return [np.concatenate([sample.prompt_P, sample.tokens_T]) for sample in samples]


def step_on_ranks(
    folder: Path, groups: list[Group], variant: str, sizes: dict[str, Any], budget: int, share: bool = True
) -> tuple[float, float, dict[str, float]]:
    """Loss, gradient norm and metrics of a step; runs on each rank of a pool."""
    from megatron.core import parallel_state

    from qedmeg import parallel
    from qedmeg.config import OptimizerConfig
    from qedmeg.model import families, weights
    from qedmeg.model.build import Compute
    from qedmeg.monitor.rollout_metrics import loss_metrics
    from qedmeg.training.logprobs import token_logprobs
    from qedmeg.training.optimizer import Optimizer
    from qedmeg.training.policy import Policy, placement
    from qedmeg.training.prefix_sharing import pack_shared
    from qedmeg.training.rollout_batch import pack_rollouts, train_on
    from qedmeg.training.rollout_step import Baselines, rollout_gradients

    model, parallelism = families.read_architecture(folder), parallel.Parallelism(**sizes)
    parallel.check(parallelism, model, dist.get_world_size())
    parallel.initialize(parallelism, seed=1)
    policy = Policy(model, parallelism, Compute(), GROUPS)
    reference = Policy(model, parallelism, Compute(), GROUPS, frozen=True)
    for one in (policy, reference):
        weights.load_hf(one.chunks, model, folder)
    optimizer = Optimizer(policy.ddp, OptimizerConfig(clip_grad=1.0), torch.float32)
    optimizer.megatron.reload_model_params()
    loss = VARIANTS[variant]
    trained = train_on(groups, MAX_TOKENS, AdvantageConfig(), keep_zero=loss.kl_coef > 0)
    share &= policy.shares_prefixes
    pack = pack_shared if share else pack_rollouts
    batches = pack(trained, budget, 0, loss, placement(parallelism))
    if parallel.data_size() == 1:
        assert any(before.tokens for batch in batches for before in batch.follows) == share
    compared = Baselines(
        old=token_logprobs(policy, batches, TEMPERATURE) if variant == "grpo" else None,
        reference=token_logprobs(reference, batches, TEMPERATURE) if loss.kl_coef else None,
    )
    sums = rollout_gradients(policy, batches, loss, TEMPERATURE, compared)
    optimizer.step()
    parallel_state.destroy_model_parallel()
    return float(sums.loss), optimizer.grad_norm, loss_metrics(sums, 1)


def logprobs_on_ranks(folder: Path, sequences: list[np.ndarray], sizes: dict[str, Any]) -> list[np.ndarray]:
    """The policy's log-probabilities of whole documents; runs on each rank of a pool."""
    from megatron.core import parallel_state

    from qedmeg import parallel
    from qedmeg.model import families, weights
    from qedmeg.model.build import Compute
    from qedmeg.training.logprobs import document_logprobs
    from qedmeg.training.policy import Policy

    model, parallelism = families.read_architecture(folder), parallel.Parallelism(**sizes)
    parallel.initialize(parallelism, seed=1)
    policy = Policy(model, parallelism, Compute(), GROUPS, frozen=True)
    weights.load_hf(policy.chunks, model, folder)
    found = document_logprobs(policy, sequences)
    parallel_state.destroy_model_parallel()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_checkpoint(folder)
    return folder


def transformers_logprobs(folder: Path, sequences: list[np.ndarray], temperature: float) -> list[torch.Tensor]:
    """With gradients, and the model that they belong to as the first one's."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = []
    for sequence in sequences:
        tokens_L = torch.from_numpy(sequence.astype(np.int64))
        scores_LV = torch.log_softmax(model(tokens_L[None]).logits[0, :-1] / temperature, -1)
        found.append(scores_LV.gather(1, tokens_L[1:, None]).squeeze(1))
    transformers_logprobs.model = model  # type: ignore[attr-defined]
    return found


@pytest.fixture(scope="module")
def groups(folder) -> list[Group]:
    plain = make_groups()
    ours = [tensor.detach().numpy() for tensor in transformers_logprobs(folder, documents(plain), TEMPERATURE)]
    return near(plain, ours)


@pytest.fixture(scope="module")
def alone(ranks, folder, groups):
    """`alone(variant)`: the step on one rank whose answers share nothing, computed once a variant."""
    return cache(lambda variant: ranks(step_on_ranks, 1, folder, groups, variant, {}, 512, False)[0])


@pytest.mark.parametrize("sizes", [{}, {"tp": 2, "pp": 2}, {"cp": 2}, {"pp": 2, "vpp": 2}], ids=str)
def test_logprobs_of_documents_are_transformers(ranks, folder, groups, sizes):
    sequences = documents(groups)
    world = sizes.get("tp", 1) * sizes.get("pp", 1) * sizes.get("cp", 1)
    expected = transformers_logprobs(folder, sequences, 1.0)
    for found in ranks(logprobs_on_ranks, world, folder, sequences, sizes):  # the same on every rank
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(ours), theirs.detach(), atol=1e-5, rtol=0)


def test_gradient_is_that_of_the_formula(ranks, folder, groups):
    """GRPO's first step on its rollouts: ratio 1, so the gradient is −Σ weight · A · ∇ log p over the tokens, weighted
    by min(p / p_engine, 2)."""
    ((loss, norm, metrics),) = ranks(step_on_ranks, 1, folder, groups, "grpo", {}, 256)
    new = transformers_logprobs(folder, documents(groups), TEMPERATURE)
    model = transformers_logprobs.model  # type: ignore[attr-defined]
    total, tokens, computed, mismatch = torch.zeros(()), 0, 0, []
    sequences = iter(new)
    for group in groups:
        graded = [rollout.reward for rollout in group.rollouts if rollout.reward is not None]
        for rollout in group.rollouts:
            logprobs_T = next(sequences)[len(rollout.sample.prompt_P) - 1 :]
            if rollout.reward is None:
                continue
            advantage = rollout.reward - sum(graded) / len(graded)
            engine_T = torch.from_numpy(rollout.sample.logprobs_T)
            weight_T = (logprobs_T.detach() - engine_T).exp().clamp(max=2.0)
            total = total - (weight_T * advantage * (logprobs_T - logprobs_T.detach()).exp()).sum()
            tokens += len(logprobs_T)
            if advantage:  # the others have no gradient, and are not computed
                computed += len(logprobs_T)
                mismatch.append((logprobs_T.detach() - engine_T).abs())
    (total / tokens).backward()
    expected = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9).item()
    assert loss == pytest.approx((total / tokens).item(), rel=1e-4, abs=1e-6)
    assert norm == pytest.approx(expected, rel=1e-5)
    assert metrics["trained_tokens"] == computed < tokens
    assert metrics["mismatch"] == pytest.approx(torch.cat(mismatch).mean().item(), rel=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("sizes", "world", "budget"),
    [
        ({"tp": 2, "pp": 2}, 4, 96),
        ({}, 1, 96),
        ({}, 2, 96),
        ({"tp": 2, "sp": True}, 2, 96),
        ({"cp": 2, "tp": 2, "sp": True}, 4, 96),
        ({"pp": 2, "vpp": 2}, 2, 64),
    ],
    ids=["tp2 pp2", "one rank", "dp2", "tp2 sp", "cp2 tp2 sp", "pp2 vpp2"],
)
def test_spread_steps_equal_one_rank(ranks, folder, groups, alone, variant, sizes, world, budget):
    """Answers share what they have in common wherever they can, and not on the one rank."""
    loss, norm, metrics = alone(variant)
    for other_loss, other_norm, other_metrics in ranks(step_on_ranks, world, folder, groups, variant, sizes, budget):
        assert other_loss == pytest.approx(loss, rel=1e-5, abs=1e-6)
        assert other_norm == pytest.approx(norm, rel=1e-5)
        assert other_metrics == pytest.approx(metrics, rel=1e-3, abs=1e-5)

"""The policy loss: every variant against numbers worked out by hand, gradients against finite differences."""

import itertools
import math
from dataclasses import asdict

import pytest
import torch
from pydantic import ValidationError

from qedmeg.config_rl import LossConfig
from qedmeg.training.losses import LossSums, loss_weights, policy_loss

NAN = math.nan


def _run(config, *, lengths, ratios, advantages, engine=None, reference=None, entropy=None, weights=None):
    """Loss, gradients and metrics of documents of `lengths`, at old log-probabilities of −1 and weights of 1.

    An untrained token is put before each document and a segment of padding behind them; all numbers there are NaN.
    """
    bounds, trained = [0], []
    for length in lengths:
        trained += [False] + [True] * length
        bounds.append(len(trained))
    trained += [False, False]
    mask_T = torch.tensor(trained)

    def spread(values):
        tensor_T = torch.full((len(trained),), NAN, dtype=torch.float64)
        tensor_T[mask_T] = torch.tensor(values, dtype=torch.float64)
        return tensor_T

    logprobs_T = (spread(ratios).log() - 1).requires_grad_()
    old_T = spread([-1.0] * sum(lengths))
    entropy_T = None if entropy is None else spread(entropy).requires_grad_()
    loss, sums = policy_loss(
        config,
        logprobs_T=logprobs_T,
        old_logprobs_T=old_T,
        engine_logprobs_T=old_T if engine is None else spread(engine),
        advantages_T=spread(advantages),
        mask_T=mask_T.float(),
        weights_T=spread(weights or [1.0] * sum(lengths)),
        cu_seqlens=torch.tensor([*bounds, len(trained)], dtype=torch.int32),
        reference_logprobs_T=None if reference is None else spread(reference),
        entropy_T=entropy_T,
    )
    loss.backward()
    for tensor_T in (logprobs_T, entropy_T):
        if tensor_T is not None and tensor_T.grad is not None:
            assert tensor_T.grad[~mask_T].tolist() == [0.0] * int((~mask_T).sum())
    gradient = logprobs_T.grad[mask_T].tolist()
    return loss.item(), gradient, {name: value.item() for name, value in asdict(sums).items()}, entropy_T, mask_T


@pytest.mark.parametrize(
    ("settings", "ratio", "advantage", "loss", "gradient", "effect"),
    [
        # −min(r·A, clip(r)·A); inside the clip the gradient of r·A to log p is r·A
        ({}, 1.1, 1.0, -1.1, -1.1, None),
        ({}, 1.5, 1.0, -1.2, 0.0, "high"),
        ({}, 0.5, 1.0, -0.5, -0.5, None),
        ({}, 0.5, -1.0, 0.8, 0.0, "low"),
        ({}, 1.5, -1.0, 1.5, 1.5, None),
        # DAPO's higher clip
        ({"clip_high": 0.28}, 1.25, 1.0, -1.25, -1.25, None),
        ({"clip_high": 0.28}, 1.5, 2.0, -2.56, 0.0, "high"),
        ({"clip_high": 0.28}, 0.75, -1.0, 0.8, 0.0, "low"),
        # QED-Nano's range of [−3, 5]: the lower clip is never met
        ({"clip_low": 4.0, "clip_high": 4.0}, 6.0, 1.0, -5.0, 0.0, "high"),
        ({"clip_low": 4.0, "clip_high": 4.0}, 0.01, -1.0, 0.01, 0.01, None),
        ({"clip_low": 4.0, "clip_high": 4.0}, 100.0, -1.0, 100.0, 100.0, None),
        # dual clip: −max(min(...), 3·A) for A < 0
        ({"dual_clip": 3.0}, 5.0, -2.0, 6.0, 0.0, "dual"),
        ({"dual_clip": 3.0}, 2.0, -2.0, 4.0, 4.0, None),
        ({"dual_clip": 3.0}, 0.5, -2.0, 1.6, 0.0, "low"),
        ({"dual_clip": 3.0}, 5.0, 2.0, -2.4, 0.0, "high"),
        # CISPO: −clip(r)·A·log p with log p = −1 + log r; the clipped token keeps a gradient, of either sign
        ({"objective": "cispo", "clip_low": 1.0, "clip_high": 4.0}, 6.0, 1.0, -5 * (math.log(6) - 1), -5.0, "high"),
        ({"objective": "cispo", "clip_low": 1.0, "clip_high": 4.0}, 6.0, -2.0, 10 * (math.log(6) - 1), 10.0, "high"),
        ({"objective": "cispo", "clip_low": 1.0, "clip_high": 4.0}, 0.1, 1.0, -0.1 * (math.log(0.1) - 1), -0.1, None),
        ({"objective": "cispo"}, 0.5, 1.0, -0.8 * (math.log(0.5) - 1), -0.8, "low"),
    ],
)
def test_clipping(settings, ratio, advantage, loss, gradient, effect):
    found, gradients, sums, *_ = _run(LossConfig(**settings), lengths=[1], ratios=[ratio], advantages=[advantage])
    assert found == pytest.approx(loss)
    assert gradients == pytest.approx([gradient])
    for name in ("low", "high", "dual"):
        assert sums[f"clipped_{name}"] == (name == effect), name
    assert sums["tokens"] == 1
    assert sums["loss"] == pytest.approx(loss)


def test_sequence_ratio():
    """GSPO: the ratio of a sequence is the geometric mean of its tokens', √(1.2 · 0.9) = √1.08 and 2."""
    found, gradients, sums, *_ = _run(
        LossConfig(ratio="sequence"),
        lengths=[2, 1],
        ratios=[1.2, 0.9, 2.0],
        advantages=[1.0, 1.0, -1.0],
        weights=[0.25, 0.25, 0.5],  # sequence_mean of 2 sequences
    )
    assert found == pytest.approx((-math.sqrt(1.08) + 2.0) / 2)
    # each of the two tokens is in the ratio with exponent 1/2, and both tokens carry that ratio
    assert gradients == pytest.approx([-math.sqrt(1.08) / 4, -math.sqrt(1.08) / 4, 1.0])
    assert (sums["clipped_low"], sums["clipped_high"]) == (0, 0)

    clipped, gradients, sums, *_ = _run(
        LossConfig(ratio="sequence", clip_high=0.03), lengths=[2], ratios=[1.2, 0.9], advantages=[1.0, 1.0]
    )
    assert clipped == pytest.approx(-1.03 * 2)
    assert gradients == [0.0, 0.0]  # the second one too, whose own ratio is below 1
    assert sums["clipped_high"] == 2


@pytest.mark.parametrize(
    ("estimator", "importance", "value", "slope"),
    [
        # log p = −1, log q = −1.5, d = 0.5
        ("k1", False, 0.5, 1.0),
        ("k2", False, 0.125, 0.5),
        ("k3", False, math.exp(-0.5) - 0.5, 1 - math.exp(-0.5)),
        # at a ratio of 1, the gradient of ratio · k is k + k'; for k3 it is d: the reverse KL's
        ("k1", True, 0.5, 1.5),
        ("k2", True, 0.125, 0.625),
        ("k3", True, math.exp(-0.5) - 0.5, 0.5),
    ],
)
def test_kl_penalty(estimator, importance, value, slope):
    config = LossConfig(kl_coef=0.1, kl_estimator=estimator, kl_importance=importance)
    found, gradients, sums, *_ = _run(config, lengths=[1], ratios=[1.0], advantages=[0.0], reference=[-1.5])
    assert found == pytest.approx(0.1 * value)
    assert gradients == pytest.approx([0.1 * slope])
    assert sums["reference_kl"] == pytest.approx(value)


def test_kl_is_multiplied_by_the_ratio_of_the_token():
    # log p = −1 + log 2, log q = −1: d = log 2, k2 = log²2 / 2; the ratio is 2, even where GSPO's is √2
    config = LossConfig(ratio="sequence", kl_coef=1.0, kl_estimator="k2")
    found, *_ = _run(config, lengths=[2], ratios=[2.0, 1.0], advantages=[0.0, 0.0], reference=[-1.0, -1.0])
    assert found == pytest.approx(math.log(2) ** 2)


def test_entropy_bonus():
    config = LossConfig(entropy_coef=0.1)
    found, _, sums, entropy_T, mask_T = _run(
        config, lengths=[2], ratios=[1.0, 1.0], advantages=[0.0, 0.0], entropy=[0.5, 1.5], weights=[0.5, 0.25]
    )
    assert found == pytest.approx(-0.1 * (0.5 * 0.5 + 0.25 * 1.5))
    assert entropy_T.grad[mask_T].tolist() == pytest.approx([-0.05, -0.025])
    assert sums["entropy"] == pytest.approx(2.0)


def test_correction_of_tokens():
    """Weights exp(old − engine) of 1.5 and 3, the latter cut to 2; KL and entropy are not weighted."""
    config = LossConfig(correction="token", correction_cap=2.0, kl_coef=1.0, kl_estimator="k1", entropy_coef=1.0)
    found, gradients, sums, *_ = _run(
        config,
        lengths=[2],
        ratios=[1.0, 1.0],
        advantages=[1.0, -1.0],
        engine=[-1 - math.log(1.5), -1 - math.log(3)],
        reference=[-1.25, -1.25],
        entropy=[0.5, 0.5],
    )
    assert found == pytest.approx(-1.5 + 2.0 + 2 * 0.25 - 2 * 0.5)
    assert gradients == pytest.approx([-1.5 + 1.25, 2.0 + 1.25])  # k1 with its ratio: 1 + 0.25
    assert sums["correction_capped"] == 1


def test_correction_of_sequences_by_the_product():
    """Weights 4 · 0.75 = 3, cut to 2, and 1.5 · 0.5 = 0.75: a token's own weight is neither cut nor counted."""
    found, gradients, sums, *_ = _run(
        LossConfig(correction="sequence_product", correction_cap=2.0),
        lengths=[2, 2],
        ratios=[1.0, 1.1, 1.0, 1.0],
        advantages=[1.0, 1.0, 1.0, -2.0],
        engine=[-1 - math.log(weight) for weight in (4, 0.75, 1.5, 0.5)],
    )
    assert found == pytest.approx(-2.0 - 2.2 - 0.75 + 1.5)
    assert gradients == pytest.approx([-2.0, -2.2, -0.75, 1.5])
    assert sums["correction_capped"] == 2


def test_the_product_of_a_long_sequence_is_capped_or_vanishes():
    """2²⁰⁰⁰ and 2⁻²⁰⁰⁰, beyond what a float holds."""
    lengths = [2000, 2000]
    engine = [-1 - math.log(2)] * lengths[0] + [-1 + math.log(2)] * lengths[1]
    ones = [1.0] * sum(lengths)
    found, gradients, sums, *_ = _run(
        LossConfig(correction="sequence_product"), lengths=lengths, ratios=ones, advantages=ones, engine=engine
    )
    assert found == -2.0 * lengths[0]
    assert gradients == [-2.0] * lengths[0] + [0.0] * lengths[1]
    assert sums["correction_capped"] == lengths[0]


def test_correction_of_sequences_by_the_mean():
    """Weights of the geometric mean: √(4 · 1) = 2, cut to 1.5, and 0.5."""
    found, gradients, sums, *_ = _run(
        LossConfig(correction="sequence_mean", correction_cap=1.5),
        lengths=[2, 1],
        ratios=[1.0, 1.1, 1.0],
        advantages=[1.0, 1.0, 1.0],
        engine=[-1 - math.log(4), -1.0, -1 + math.log(2)],
    )
    assert found == pytest.approx(-1.5 - 1.65 - 0.5)
    assert gradients == pytest.approx([-1.5, -1.65, -0.5])
    assert sums["correction_capped"] == 2


def test_no_correction_where_the_ratio_is_against_the_engine():
    for correction in ("none", "token", "sequence_product", "sequence_mean"):
        found, *_ = _run(LossConfig(correction=correction), lengths=[2], ratios=[1.1, 0.9], advantages=[1.0, 1.0])
        assert found == pytest.approx(-2.0)


def test_mismatch():
    """Trainer −1 and −1 + log 2, engine −1.5 and −1."""
    *_, sums, _, _ = _run(LossConfig(), lengths=[2], ratios=[1.0, 2.0], advantages=[1.0, 1.0], engine=[-1.5, -1.0])
    assert sums["mismatch"] == pytest.approx(0.5 + math.log(2))
    assert sums["mismatch_max"] == pytest.approx(math.log(2))
    # trainer / engine: r − 1 − log r
    assert sums["mismatch_kl"] == pytest.approx((math.exp(0.5) - 1.5) + (2 - 1 - math.log(2)))


def test_normalisation():
    """Sequences of 2 and 1 trained tokens, in a step of 4 sequences and 8 tokens."""
    mask_T = torch.tensor([0.0, 1, 1, 1, 0, 0])
    bounds = torch.tensor([0, 3, 5, 6], dtype=torch.int32)
    expected = {
        "token_sum": [0, 1 / 4, 1 / 4, 1 / 4, 0, 0],
        "token_mean": [0, 1 / 8, 1 / 8, 1 / 8, 0, 0],
        "sequence_mean": [0, 1 / 8, 1 / 8, 1 / 4, 0, 0],
    }
    for normalisation, weights in expected.items():
        found_T = loss_weights(LossConfig(normalisation=normalisation), mask_T, bounds, 4, 8)
        torch.testing.assert_close(found_T, torch.tensor(weights), msg=normalisation)


CONFIGS = {
    "dual": {"dual_clip": 1.5, "clip_high": 0.28},
    "gspo": {"ratio": "sequence", "normalisation": "sequence_mean", "clip_low": 0.05, "clip_high": 0.02},
    "k1": {"kl_coef": 0.3, "kl_estimator": "k1", "kl_importance": False, "normalisation": "token_sum"},
    "k2": {"kl_coef": 0.3, "kl_estimator": "k2", "kl_importance": False},
    "k3": {"kl_coef": 0.3},
    "entropy": {"entropy_coef": 0.1},
    "corrected": {"correction": "token", "ratio": "sequence", "entropy_coef": 0.1},
    "corrected by products": {"correction": "sequence_product", "correction_cap": 1.01, "kl_coef": 0.1},
    "corrected by means": {"correction": "sequence_mean", "correction_cap": 1.01, "kl_coef": 0.1},
}


def _random_case():
    """Documents of 8, 4 and 8 tokens and 4 of padding; the third is not trained on in its second half."""
    generator = torch.Generator().manual_seed(0)
    names = ("logprobs_T", "old_logprobs_T", "engine_logprobs_T", "reference_logprobs_T")
    base_T = -2 * torch.rand(24, generator=generator, dtype=torch.float64)
    case = {name: base_T + 0.3 * torch.randn(24, generator=generator, dtype=torch.float64) for name in names}
    case["entropy_T"] = torch.rand(24, generator=generator, dtype=torch.float64)
    mask_T = torch.ones(24)
    mask_T[[0, 1, 8, *range(16, 24)]] = 0
    advantages_S = torch.tensor([0.7, -1.1, -0.4, 0.0], dtype=torch.float64)
    bounds = torch.tensor([0, 8, 12, 20, 24], dtype=torch.int32)
    case["advantages_T"] = advantages_S.repeat_interleave((bounds[1:] - bounds[:-1]).long())
    return case, mask_T, bounds


@pytest.mark.parametrize("settings", CONFIGS.values(), ids=list(CONFIGS))
def test_gradients(settings):
    config = LossConfig(**settings)
    case, mask_T, bounds = _random_case()
    weights_T = loss_weights(config, mask_T, bounds, 3, 13)
    logprobs_T, entropy_T = (case.pop(name).requires_grad_() for name in ("logprobs_T", "entropy_T"))

    def loss(logprobs_T, entropy_T):
        tensors = {"logprobs_T": logprobs_T, "entropy_T": entropy_T, "mask_T": mask_T, "weights_T": weights_T}
        return policy_loss(config, **tensors, **case, cu_seqlens=bounds)[0]

    assert torch.autograd.gradcheck(loss, (logprobs_T, entropy_T))
    loss(logprobs_T, entropy_T).backward()
    assert logprobs_T.grad.abs().max() > 0.01


def test_impossible_tokens_of_the_engine():
    """An old probability of 0 is a ratio that the clip bounds; its gradient is 0, not NaN."""
    one = torch.tensor([1.0])
    logprobs_T = torch.tensor([-1.0], requires_grad=True)
    old_T = torch.tensor([-math.inf])
    loss, sums = policy_loss(
        LossConfig(ratio_against="engine", correction="none"),
        logprobs_T=logprobs_T,
        old_logprobs_T=old_T,
        engine_logprobs_T=old_T,
        advantages_T=one,
        mask_T=one,
        weights_T=one,
        cu_seqlens=torch.tensor([0, 1]),
    )
    loss.backward()
    assert loss.item() == pytest.approx(-1.2)
    assert logprobs_T.grad.item() == 0
    assert sums.clipped_high == 1


def _parts(settings, slices, cp_group=None):
    """Loss, gradient and sums of the random case's tokens at `slices`, each slice a micro-batch."""
    config = LossConfig(**settings)
    case, mask_T, bounds = _random_case()
    weights_T = loss_weights(config, mask_T, bounds, 3, 13)
    tensors = case | {"mask_T": mask_T, "weights_T": weights_T}
    results = []
    for tokens, part_bounds in slices:
        part = {name: tensor[tokens].clone() for name, tensor in tensors.items()}
        part["logprobs_T"].requires_grad_()
        loss, sums = policy_loss(config, **part, cu_seqlens=torch.tensor(part_bounds), cp_group=cp_group)
        loss.backward()
        results.append((loss.detach(), part["logprobs_T"].grad, sums))
    return results


WHOLE = (slice(0, 24), [0, 8, 12, 20, 24])
SPREAD = {name: CONFIGS[name] for name in ("gspo", "corrected by products", "corrected by means", "dual")} | {
    "cispo": {"objective": "cispo", "ratio": "sequence", "correction": "sequence_mean"}
}


def _assert_same_sums(found: LossSums, expected: LossSums):
    for name, value in asdict(expected).items():
        torch.testing.assert_close(getattr(found, name), value, msg=name)
    assert expected.mismatch_max > 0


@pytest.mark.parametrize("settings", SPREAD.values(), ids=list(SPREAD))
def test_micro_batches_add_up(settings):
    ((loss, gradient_T, sums),) = _parts(settings, [WHOLE])
    parts = [(slice(0, 8), [0, 8]), (slice(8, 20), [0, 4, 12]), (slice(20, 24), [0, 4])]  # the last trains nothing
    (loss_a, gradient_a, sums_a), (loss_b, gradient_b, sums_b), (loss_c, gradient_c, sums_c) = _parts(settings, parts)
    torch.testing.assert_close(loss_a + loss_b + loss_c, loss)
    torch.testing.assert_close(torch.cat([gradient_a, gradient_b, gradient_c]), gradient_T)
    _assert_same_sums(sums_a + sums_b + sums_c, sums)
    assert (loss_c, sums_c.tokens, sums_c.mismatch_max) == (0, 0, 0)


def _on_rank(cases):
    import torch.distributed as dist

    from qedmeg.model.layers import positions_of_rank

    group, bounds = dist.group.WORLD, WHOLE[1]
    rank, cp = group.rank(), group.size()
    tokens = torch.cat([a + positions_of_rank(b - a, cp, rank) for a, b in itertools.pairwise(bounds)])
    results = []
    for settings in cases:
        ((loss, gradient_T, sums),) = _parts(settings, [(tokens, bounds)], group)
        results.append((loss, gradient_T, sums.over_ranks(group)))
    return tokens, results


def test_documents_spread_over_context_parallel_ranks(ranks):
    by_rank = ranks(_on_rank, 2, list(SPREAD.values()))
    for number, settings in enumerate(SPREAD.values()):
        ((loss, gradient_T, sums),) = _parts(settings, [WHOLE])
        found_T = torch.empty_like(gradient_T)
        for tokens, results in by_rank:
            found_T[tokens] = results[number][1]
            _assert_same_sums(results[number][2], sums)
        torch.testing.assert_close(sum(results[number][0] for _, results in by_rank), loss)
        torch.testing.assert_close(found_T, gradient_T)


def _one_sided():
    """A document of 4 tokens, of which only the first, on rank 0, is trained on."""
    import torch.distributed as dist

    group = dist.group.WORLD
    mask_T = torch.tensor([1.0, 0.0]) if group.rank() == 0 else torch.zeros(2)
    logprobs_T = torch.tensor([math.log(1.1), NAN], requires_grad=True)
    zeros_T, ones_T = torch.zeros(2), torch.ones(2)
    loss, _ = policy_loss(
        LossConfig(ratio="sequence"),
        logprobs_T=logprobs_T,
        old_logprobs_T=zeros_T,
        engine_logprobs_T=zeros_T,
        advantages_T=ones_T,
        mask_T=mask_T,
        weights_T=ones_T,
        cu_seqlens=torch.tensor([0, 4]),
        cp_group=group,
    )
    loss.backward()
    return loss.item(), logprobs_T.grad.tolist()


def test_a_rank_that_trains_nothing_takes_part(ranks):
    (loss, gradient), idle = ranks(_one_sided, 2)
    assert loss == pytest.approx(-1.1)
    assert gradient == pytest.approx([-1.1, 0.0])
    assert idle == (0.0, [0.0, 0.0])


def test_what_is_missing_is_named():
    case, mask_T, bounds = _random_case()
    case |= {"mask_T": mask_T, "weights_T": mask_T}
    with pytest.raises(ValueError, match="kl_coef > 0 needs reference_logprobs_T"):
        policy_loss(LossConfig(kl_coef=0.1), **(case | {"reference_logprobs_T": None}), cu_seqlens=bounds)
    with pytest.raises(ValueError, match="entropy_coef > 0 needs entropy_T"):
        policy_loss(LossConfig(entropy_coef=0.1), **(case | {"entropy_T": None}), cu_seqlens=bounds)
    with pytest.raises(ValueError, match="cu_seqlens end at 20 of this rank's tokens, but there are 24"):
        policy_loss(LossConfig(), **case, cu_seqlens=bounds[:-1])


def test_dual_clip_without_clip():
    with pytest.raises(ValidationError, match="dual_clip belongs to objective clip"):
        LossConfig(objective="cispo", dual_clip=3.0)

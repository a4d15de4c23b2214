"""Chunked log-probabilities and entropies equal the naive ones, in value and gradient, over any vocabulary split."""

from dataclasses import dataclass, replace

import pytest
import torch

TOKENS, HIDDEN, CHUNK = 150, 32, 64


@dataclass(frozen=True)
class Case:
    """A problem in fp32; the rows of `weight_VH` beyond `vocabulary` are padding, and hold NaN."""

    vocabulary: int
    hidden_TH: torch.Tensor
    weight_VH: torch.Tensor
    labels_T: torch.Tensor
    mask_T: torch.Tensor
    grad_logprobs_T: torch.Tensor
    """The gradient that comes for the log-probabilities; NaN where the mask is 0."""
    grad_entropy_T: torch.Tensor | None
    """Likewise for the entropies; None: the loss does not look at them."""
    temperature: float = 1.0
    entropy: bool = True
    rounding: float = 1.0
    """How much coarser its logits are rounded in fp32 than those of the others."""


def _case(vocabulary: int, padded: int, trained: float = 0.6, scale: float = 1.0) -> Case:
    generator = torch.Generator().manual_seed(vocabulary)
    weight_VH = torch.randn(padded, HIDDEN, generator=generator) * scale
    weight_VH[vocabulary:] = torch.nan
    labels_T = torch.randint(0, vocabulary, (TOKENS,), generator=generator)
    mask_T = (torch.rand(TOKENS, generator=generator) < trained).float()
    labels_T[mask_T == 0] = 10**6  # anything may stand there
    hidden_TH = torch.randn(TOKENS, HIDDEN, generator=generator)
    gradients = (torch.randn(TOKENS, generator=generator).where(mask_T > 0, torch.nan) for _ in range(2))
    return Case(vocabulary, hidden_TH, weight_VH, labels_T, mask_T, *gradients, rounding=scale)


PLAIN = _case(200, 256)
CASES = {
    "plain": PLAIN,
    "no padding": _case(256, 256),
    "ranks without real rows": _case(100, 256),
    "nothing trained": _case(200, 256, trained=0.0),
    "all trained": _case(200, 256, trained=1.0),
    "logits beyond the exponential's range": _case(200, 256, scale=10.0),
    "temperature": replace(PLAIN, temperature=0.8),
    "no entropy": replace(PLAIN, entropy=False, grad_entropy_T=None, temperature=0.8),
    "entropy without gradient": replace(PLAIN, grad_entropy_T=None),
}


def _naive(case: Case, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Logits in the model's precision, all else in fp64."""
    hidden_TH = case.hidden_TH.to(dtype, copy=True).requires_grad_()
    weight_VH = case.weight_VH[: case.vocabulary].to(dtype, copy=True).requires_grad_()
    wide = torch.float64 if dtype == torch.float32 else dtype
    logits_TV = (hidden_TH.to(wide) @ weight_VH.to(wide).T).double() / case.temperature
    trained_T = case.mask_T > 0
    all_TV = logits_TV.log_softmax(1)
    logprobs_T = all_TV.gather(1, case.labels_T.where(trained_T, 0)[:, None]).squeeze(1).where(trained_T, 0)
    entropy_T = -(all_TV.exp() * all_TV).sum(1).where(trained_T, 0)
    loss = (logprobs_T * case.grad_logprobs_T.where(trained_T, 0)).sum()
    if case.grad_entropy_T is not None:
        loss = loss + (entropy_T * case.grad_entropy_T.where(trained_T, 0)).sum()
    loss.backward()
    return logprobs_T.detach(), entropy_T.detach(), hidden_TH.grad, weight_VH.grad


def _chunked(cases: list[Case], dtype: torch.dtype) -> list[tuple[torch.Tensor | None, ...]]:
    """Of each case, this rank's results, gradient of the hidden states summed over ranks, and gradient of its rows."""
    import torch.distributed as dist

    from qedmeg.model import output_loss
    from qedmeg.model.output_logprobs import token_logprobs

    output_loss.CHUNK_BYTES = 1  # chunks of 64 tokens: several
    results = []
    for case in cases:
        rows = case.weight_VH.shape[0] // dist.get_world_size()
        weight_VH = case.weight_VH[rows * dist.get_rank() :][:rows].to(dtype, copy=True).requires_grad_()
        hidden_TH = case.hidden_TH.to(dtype, copy=True).requires_grad_()
        logprobs_T, entropy_T = token_logprobs(
            hidden_TH,
            weight_VH,
            case.labels_T,
            case.mask_T,
            case.vocabulary,
            dist.group.WORLD,
            case.temperature,
            case.entropy,
        )
        given = [(logprobs_T, case.grad_logprobs_T)]
        if case.grad_entropy_T is not None:
            given.append((entropy_T, case.grad_entropy_T))
        torch.autograd.backward(*zip(*given, strict=True))
        dist.all_reduce(hidden_TH.grad)
        entropy_T = None if entropy_T is None else entropy_T.detach()
        results.append((logprobs_T.detach(), entropy_T, hidden_TH.grad, weight_VH.grad))
    return results


def _assert_near(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert (found.double() - expected.double()).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-6)


@pytest.mark.parametrize("world_size", [1, 2, 4])
# in bf16 the naive way rounds the logits; on a CPU without bf16 units the chunked one does not
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"])
def test_equals_naive(ranks, world_size, dtype, tolerance):
    by_rank = ranks(_chunked, world_size, list(CASES.values()), dtype)
    for number, (name, case) in enumerate(CASES.items()):
        logprobs_T, entropy_T, grad_hidden_TH, grad_weight_VH = _naive(case, dtype)
        allowed = tolerance * case.rounding
        for results in by_rank:
            found_T, found_entropy_T, found_hidden_TH, _ = results[number]
            assert found_T.dtype == torch.float32, name
            _assert_near(found_T, logprobs_T, allowed)
            assert (found_entropy_T is not None) == case.entropy, name
            if found_entropy_T is not None:
                _assert_near(found_entropy_T, entropy_T, allowed)
            _assert_near(found_hidden_TH, grad_hidden_TH, allowed)
        rows_VH = torch.cat([results[number][3] for results in by_rank])
        _assert_near(rows_VH[: case.vocabulary], grad_weight_VH, allowed)
        assert rows_VH[case.vocabulary :].count_nonzero() == 0, name


def _largest_tensor_and_flops() -> tuple[int, int, int]:
    import torch.distributed as dist
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import FlopCounterMode

    from qedmeg.model import output_loss
    from qedmeg.model.output_logprobs import token_logprobs

    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            largest = max([largest, *sizes])
            return result

    output_loss.CHUNK_BYTES = 1
    case = CASES["no padding"]
    weight_VH, hidden_TH = case.weight_VH.clone().requires_grad_(), case.hidden_TH.clone().requires_grad_()
    arguments = (hidden_TH, weight_VH, case.labels_T, case.mask_T, case.vocabulary, dist.group.WORLD, 0.8, True)
    with FlopCounterMode(display=False) as counter, Sizes():
        logprobs_T, entropy_T = token_logprobs(*arguments)
        forward = counter.get_total_flops()
        (logprobs_T.sum() + entropy_T.sum()).backward()
    return largest, forward, counter.get_total_flops() - forward


def test_no_logits_beyond_a_chunk_and_no_masked_token(ranks):
    case = CASES["no padding"]
    ((largest, forward, backward),) = ranks(_largest_tensor_and_flops, 1)
    assert largest == CHUNK * case.vocabulary
    product = 2 * int(case.mask_T.count_nonzero()) * HIDDEN * case.vocabulary
    assert forward == product
    assert backward == 3 * product  # the logits again, the hidden states' gradient, the weight's

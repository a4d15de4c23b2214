"""The chunked cross-entropy equals the naive one, in value and gradient, over any split of the vocabulary."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

TOKENS, HIDDEN, SCALE = 150, 32, 0.5


@dataclass(frozen=True)
class Case:
    """A problem in fp32; the rows of `weight_VH` beyond `vocabulary` are padding, and hold NaN."""

    vocabulary: int
    hidden_TH: torch.Tensor
    weight_VH: torch.Tensor
    labels_T: torch.Tensor
    mask_T: torch.Tensor


def _case(vocabulary: int, padded: int, trained: float = 0.6) -> Case:
    generator = torch.Generator().manual_seed(vocabulary)
    weight_VH = torch.randn(padded, HIDDEN, generator=generator)
    weight_VH[vocabulary:] = torch.nan
    labels_T = torch.randint(0, vocabulary, (TOKENS,), generator=generator)
    mask_T = (torch.rand(TOKENS, generator=generator) < trained) * torch.rand(TOKENS, generator=generator)
    labels_T[mask_T == 0] = 10**6  # anything may stand there
    hidden_TH = torch.randn(TOKENS, HIDDEN, generator=generator)
    return Case(vocabulary, hidden_TH, weight_VH, labels_T, mask_T)


def _naive(case: Case, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As transformers does it: logits in the model's precision, their softmax in fp32."""
    hidden_TH = case.hidden_TH.to(dtype, copy=True).requires_grad_()
    weight_VH = case.weight_VH[: case.vocabulary].to(dtype, copy=True).requires_grad_()
    labels_T = case.labels_T.where(case.mask_T > 0, 0)
    loss = (F.cross_entropy((hidden_TH @ weight_VH.T).float(), labels_T, reduction="none") * case.mask_T).sum()
    (loss * SCALE).backward()
    return loss.detach(), hidden_TH.grad, weight_VH.grad


def _chunked(case: Case, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """This rank's loss, gradient of the hidden states summed over ranks, and gradient of its rows."""
    import torch.distributed as dist

    from qedmeg.model import output_loss

    output_loss.CHUNK_BYTES = 1  # chunks of 64 tokens: several
    rows = case.weight_VH.shape[0] // dist.get_world_size()
    weight_VH = case.weight_VH[rows * dist.get_rank() :][:rows].to(dtype, copy=True).requires_grad_()
    hidden_TH = case.hidden_TH.to(dtype, copy=True).requires_grad_()
    loss = output_loss.summed_cross_entropy(
        hidden_TH, weight_VH, case.labels_T, case.mask_T, case.vocabulary, dist.group.WORLD
    )
    (loss * SCALE).backward()
    dist.all_reduce(hidden_TH.grad)
    return loss.detach(), hidden_TH.grad, weight_VH.grad


@pytest.mark.parametrize("world_size", [1, 2])
# in bf16 the naive way rounds the logits, here up to 20 and so by 0.03, which the chunked one does not on every machine
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("vocabulary", "padded", "trained"),
    [
        (256, 256, 0.6),
        (200, 256, 0.6),
        (100, 256, 0.6),  # the second of two ranks has no real rows
        (200, 256, 0.0),  # nothing is trained on
        (200, 256, 1.0),
    ],
)
def test_equals_naive_cross_entropy(ranks, world_size, dtype, tolerance, vocabulary, padded, trained):
    case = _case(vocabulary, padded, trained)
    loss, grad_hidden_TH, grad_weight_VH = _naive(case, dtype)
    results = ranks(_chunked, world_size, case, dtype)
    for found, found_hidden_TH, _ in results:
        torch.testing.assert_close(found, loss, rtol=tolerance, atol=1e-6)
        assert (found_hidden_TH - grad_hidden_TH).abs().max() <= tolerance * grad_hidden_TH.abs().max()
    rows_VH = torch.cat([rows_VH for _, _, rows_VH in results])
    assert (rows_VH[:vocabulary] - grad_weight_VH).abs().max() <= tolerance * grad_weight_VH.abs().max()
    assert rows_VH[vocabulary:].count_nonzero() == 0


def _flops_without_gradient(case: Case) -> tuple[float, int]:
    import torch.distributed as dist
    from torch.utils.flop_counter import FlopCounterMode

    from qedmeg.model.output_loss import summed_cross_entropy

    weight_VH = case.weight_VH.clone().requires_grad_()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        loss = summed_cross_entropy(
            case.hidden_TH, weight_VH, case.labels_T, case.mask_T, case.vocabulary, dist.group.WORLD
        )
    return loss.item(), counter.get_total_flops()


def test_validation_computes_no_gradient_and_no_masked_token(ranks):
    case = _case(200, 256)
    ((loss, flops),) = ranks(_flops_without_gradient, 1, case)
    assert loss == pytest.approx(_naive(case, torch.float32)[0].item(), rel=1e-6)
    assert flops == 2 * int(case.mask_T.count_nonzero()) * HIDDEN * case.vocabulary

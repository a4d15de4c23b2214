"""The critic's loss against numbers worked out by hand."""

import pytest
import torch

from qedmeg.training.critic import value_loss

OLD = torch.tensor([0.0, 0.5, 0.5, 0.2])
RETURNS = torch.tensor([1.0, 1.0, 0.0, 0.2])
WEIGHTS = torch.tensor([0.25, 0.25, 0.5, 0.0])


def test_without_clip():
    values_T = torch.tensor([0.4, 0.5, 0.9, 7.0], requires_grad=True)
    loss, clipped_T = value_loss(values_T, OLD, RETURNS, WEIGHTS, None)
    loss.backward()
    assert loss.item() == pytest.approx((0.25 * 0.36 + 0.25 * 0.25 + 0.5 * 0.81) / 2)
    assert values_T.grad.tolist() == pytest.approx([0.25 * -0.6, 0.25 * -0.5, 0.5 * 0.9, 0.0])
    assert not clipped_T.any()


def test_the_clip_takes_the_gradient_of_values_that_have_moved_enough():
    values_T = torch.tensor([0.4, 0.5, 0.9, 7.0], requires_grad=True)
    loss, clipped_T = value_loss(values_T, OLD, RETURNS, WEIGHTS, 0.2)
    loss.backward()
    # 0.4 moved from 0 towards 1 by more than 0.2: it is rated as 0.2. 0.9 moved away from 0: no clip helps it.
    assert loss.item() == pytest.approx((0.25 * 0.64 + 0.25 * 0.25 + 0.5 * 0.81) / 2)
    assert values_T.grad.tolist() == pytest.approx([0.0, 0.25 * -0.5, 0.5 * 0.9, 0.0])
    assert clipped_T.tolist() == [True, False, False, False]


def test_rounding_inside_the_clip_counts_as_no_clip():
    values_T, old_T, returns_T = torch.randn(3, 10_000, generator=torch.Generator().manual_seed(0))
    inside_T = (values_T - old_T).abs() < 0.19
    assert inside_T.sum() > 500
    clipped_T = value_loss(values_T, old_T, returns_T, torch.ones(10_000), 0.2)[1]
    assert clipped_T.any()
    assert not clipped_T[inside_T].any()

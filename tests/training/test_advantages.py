"""Advantages of a group against numbers worked out by hand."""

import math

import pytest
import torch

from qedmeg.config_rl import AdvantageConfig
from qedmeg.training.advantages import GroupAdvantages, group_advantages, is_zero_variance, overlong_penalties


def _advantages(rewards, truncated=None, lengths=None, max_tokens=100, **settings) -> GroupAdvantages | None:
    group = len(rewards)
    return group_advantages(
        torch.tensor(rewards),
        torch.tensor(lengths or [10] * group),
        torch.tensor(truncated or [False] * group, dtype=torch.bool),
        max_tokens,
        AdvantageConfig(**settings),
    )


# mean = (1 + 0 + 0.5 + 0.1) / 4 = 0.4
CENTRED = [0.6, -0.4, 0.1, -0.3]
# Σ (r − mean)² = 0.36 + 0.16 + 0.01 + 0.09 = 0.62; the sample variance is 0.62 / 3
STD = math.sqrt(0.62 / 3)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, CENTRED),
        # against the mean of the other three: 1 − 0.6/3, 0 − 1.6/3, 0.5 − 1.1/3, 0.1 − 1.5/3
        ({"baseline": "leave_one_out"}, [0.8, -1.6 / 3, 0.4 / 3, -0.4]),
        ({"divide_by_std": True}, [a / (STD + 1e-4) for a in CENTRED]),
        (
            {"baseline": "leave_one_out", "divide_by_std": True},
            [a / (STD + 1e-4) for a in (0.8, -1.6 / 3, 0.4 / 3, -0.4)],
        ),
    ],
)
def test_baseline_and_scale(settings, expected):
    result = _advantages([1.0, 0.0, 0.5, 0.1], **settings)
    torch.testing.assert_close(result.advantages_G, torch.tensor(expected))
    assert result.trained_G.all()
    assert not result.zero_variance


@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
@pytest.mark.parametrize("divide_by_std", [False, True])
def test_the_same_rewards_train_nothing(baseline, divide_by_std):
    third = torch.tensor(1.0) / 3
    rewards = [third.item(), torch.nextafter(third, torch.tensor(1.0)).item(), third.item()]  # apart by rounding
    result = _advantages(rewards, baseline=baseline, divide_by_std=divide_by_std)
    assert result.zero_variance
    assert result.advantages_G.tolist() == [0.0, 0.0, 0.0]


def test_zero_variance_is_of_steps_smaller_than_any_grade():
    assert is_zero_variance(torch.tensor([0.5, 0.5 + 1e-7]))
    assert not is_zero_variance(torch.tensor([0.5, 0.5 + 1e-4]))


@pytest.mark.parametrize(("rewards", "truncated"), [([], []), ([1.0], [False]), ([1.0, 0.0, 0.0], [False, True, True])])
def test_fewer_than_two_rollouts_give_no_advantages(rewards, truncated):
    assert _advantages(rewards, truncated=truncated, mask_truncated=True) is None


def test_a_masked_rollout_neither_trains_nor_votes():
    # without the third: mean = (1 + 0 + 0.2) / 3 = 0.4
    result = _advantages([1.0, 0.0, 0.0, 0.2], truncated=[False, False, True, False], mask_truncated=True)
    torch.testing.assert_close(result.advantages_G, torch.tensor([0.6, -0.4, 0.0, -0.2]))
    assert result.trained_G.tolist() == [True, True, False, True]
    # with it, as any other: mean = 1.2 / 4 = 0.3
    result = _advantages([1.0, 0.0, 0.0, 0.2], truncated=[False, False, True, False])
    torch.testing.assert_close(result.advantages_G, torch.tensor([0.7, -0.3, -0.3, -0.1]))
    assert result.trained_G.all()


def test_variance_is_that_of_the_rollouts_that_train():
    result = _advantages([1.0, 1.0, 0.0], truncated=[False, False, True], mask_truncated=True)
    assert result.zero_variance


def test_soft_penalty_is_equation_13():
    # L_max 100, L_cache 20: 0 up to 80; at 85, (80 − 85) / 20 = −0.25; from 100 on, −1; all times 0.5
    config = AdvantageConfig(overlong_penalty=0.5, overlong_buffer=20)
    lengths = torch.tensor([1, 80, 85, 99, 100, 130])
    expected = torch.tensor([0.0, 0.0, -0.125, -0.475, -0.5, -0.5])
    torch.testing.assert_close(overlong_penalties(lengths, 100, config), expected)
    assert overlong_penalties(lengths, 100, AdvantageConfig()).tolist() == [0.0] * 6


def test_soft_penalty_enters_the_baseline():
    # rewards 1, 1 − 0.4 · (90 − 80) / 20 = 0.8; mean 0.9
    result = _advantages([1.0, 1.0], lengths=[80, 90], overlong_penalty=0.4, overlong_buffer=20)
    torch.testing.assert_close(result.advantages_G, torch.tensor([0.1, -0.1]))
    assert not result.zero_variance


def test_buffer_longer_than_the_limit():
    with pytest.raises(ValueError, match="overlong_buffer 4096 is greater than the limit of 100 tokens"):
        _advantages([1.0, 0.0], overlong_penalty=1.0)

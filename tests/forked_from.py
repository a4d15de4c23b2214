"""What the process has imported that others are forked from (`forked.py`); it computes nothing."""

import gc

import torch

from qedmeg import device

torch.set_num_threads(1)
device.prepare()

from qedmeg.training import grpo, nemo, ppo, sft  # noqa: E402
from tests import parity, ppo_runs, sft_runs  # noqa: E402
from tests.rollout import transfer_ends  # noqa: E402

imported = [
    *(grpo, ppo, sft, parity, ppo_runs, sft_runs, transfer_ends),
    *(nemo.supervised_trainer(), nemo.ppo(), nemo.reinforce()),
]

gc.collect()
gc.freeze()

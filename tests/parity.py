"""Training as transformers and torch do it, and the same on a policy: what the parity tests hold against each other.

The reference computes each document alone, in fp32, and knows nothing of packing, ranks or Megatron.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from qedmeg.config import OptimizerConfig
from qedmeg.data.chat import Document
from qedmeg.data.documents import DocumentStore, StoreWriter
from qedmeg.data.loader import build_step

STEPS = 20
DOCUMENTS_PER_STEP = 4
TOKENS_PER_MICROBATCH = 64  # two micro-batches a step, mostly
LONGEST = 32
DENSE_DOCUMENTS = 2  # documents of a dense micro-batch [b, s]
OPTIMIZER = OptimizerConfig(lr=1e-3, schedule="constant", weight_decay=0.1, clip_grad=1.0)


@dataclass(frozen=True)
class Course:
    """Mean loss of each step, and gradient norm before clipping."""

    losses: list[float]
    grad_norms: list[float]


def write_documents(folder: Path, seed: int = 0) -> Path:
    """A store of random documents, each with a prompt that is not trained on, for all steps.

    They use 20 of the 300 tokens, on all vocabulary shards: that much can be learned in 20 steps.
    """
    random = np.random.default_rng(seed)
    alphabet = np.arange(20, dtype=np.int32) * 15 + 7
    writer = StoreWriter(folder)
    for _ in range(STEPS * DOCUMENTS_PER_STEP):
        length = int(random.integers(6, LONGEST + 1))
        mask_T = np.arange(length) >= int(random.integers(1, length - 2))
        writer.add(Document(random.choice(alphabet, length), mask_T))
    writer.finish("random documents")
    return folder


def step_documents(step: int) -> range:
    """Which documents of the store a step trains on."""
    return range(step * DOCUMENTS_PER_STEP, (step + 1) * DOCUMENTS_PER_STEP)


def reference(model_folder: Path, store_folder: Path, dtype: torch.dtype = torch.float32) -> Course:
    """`STEPS` steps of transformers and torch's AdamW."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": OPTIMIZER.weight_decay},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=OPTIMIZER.lr,
        betas=(OPTIMIZER.beta1, OPTIMIZER.beta2),
        eps=OPTIMIZER.eps,
    )
    store, losses, norms = DocumentStore(store_folder), [], []
    for step in range(STEPS):
        trained = int(store.trained_D[list(step_documents(step))].sum())
        total = 0.0
        for document in (store[index] for index in step_documents(step)):
            tokens_T = torch.from_numpy(document.tokens_T.astype(np.int64))
            mask_T = torch.from_numpy(document.mask_T.copy())
            logits_TV = model(tokens_T[None]).logits[0].float()
            loss = F.cross_entropy(logits_TV[:-1][mask_T[1:]], tokens_T[1:][mask_T[1:]], reduction="sum")
            (loss / trained).backward()
            total += loss.item()
        losses.append(total / trained)
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, OPTIMIZER.clip_grad).item())
        optimizer.step()
        optimizer.zero_grad()
    return Course(losses, norms)


def train_policy(
    model_folder: Path, store_folder: Path, sizes: dict[str, Any], compute: dict[str, Any], packed: bool, steps: int
) -> Course:
    """The first `steps` of them by a policy on these ranks; runs on each rank of a pool."""
    from megatron.core import parallel_state

    from qedmeg import parallel
    from qedmeg.model import families, weights
    from qedmeg.model.build import Compute
    from qedmeg.training.optimizer import Optimizer, build_scheduler
    from qedmeg.training.policy import Policy, placement

    model, parallelism = families.read_architecture(model_folder), parallel.Parallelism(**sizes)
    parallel.check(parallelism, model, dist.get_world_size())
    parallel.initialize(parallelism, seed=1)
    policy = Policy(model, parallelism, Compute(**compute), DOCUMENTS_PER_STEP)
    weights.load_hf(policy.chunks, model, model_folder)
    optimizer = Optimizer(policy.ddp, OPTIMIZER, policy.config.params_dtype)
    optimizer.megatron.reload_model_params()
    scheduler = build_scheduler(optimizer, OPTIMIZER, STEPS)
    store, losses, norms = DocumentStore(store_folder), [], []
    for step in range(steps):
        optimizer.zero_grad()
        policy.prepare_for_training_step()
        if packed:
            batch = build_step(store, step_documents(step), TOKENS_PER_MICROBATCH, 0, placement(parallelism))
            loss, _ = policy.get_loss_and_metrics(batch, forward_only=False)
        else:
            loss = _dense_step(policy, [store[index] for index in step_documents(step)])
        policy.finish_training_step()
        optimizer.step()
        scheduler.step(1)
        losses.append(loss)
        norms.append(optimizer.grad_norm)
    parallel_state.destroy_model_parallel()
    return Course(losses, norms)


def _dense_step(policy: Any, documents: list[Document]) -> float:
    """Forward and backward over micro-batches [b, s] of padded documents, without packed parameters; the mean loss."""
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from qedmeg import parallel

    batches = [_dense_batch(documents[i : i + DENSE_DOCUMENTS]) for i in range(0, len(documents), DENSE_DOCUMENTS)]
    mine = batches[parallel.data_rank() :: parallel.data_size()]
    reports = get_forward_backward_func()(
        forward_step_func=_dense_forward,
        data_iterator=[iter(mine) for _ in policy.ddp] if len(policy.ddp) > 1 else iter(mine),
        model=policy.ddp if len(policy.ddp) > 1 else policy.ddp[0],
        num_microbatches=len(mine),
        seq_length=LONGEST,
        micro_batch_size=DENSE_DOCUMENTS,
        forward_only=False,
    )
    totals_2 = sum((report["loss"].double() for report in reports), torch.zeros(2, dtype=torch.float64))
    dist.all_reduce(totals_2, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    loss, trained = parallel.from_last_stage(totals_2).tolist()
    return loss / trained


def _dense_batch(documents: list[Document]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, labels, mask and positions [b, s], padded on the right."""
    tokens_BS = torch.zeros(len(documents), LONGEST + 1, dtype=torch.int64)
    mask_BS = torch.zeros(len(documents), LONGEST + 1)
    for row, document in enumerate(documents):
        length = len(document.tokens_T)
        tokens_BS[row, :length] = torch.from_numpy(document.tokens_T.astype(np.int64))
        mask_BS[row, :length] = torch.from_numpy(document.mask_T.astype(np.float32))
    positions_BS = torch.arange(LONGEST).expand(len(documents), -1)
    return tokens_BS[:, :-1], tokens_BS[:, 1:], mask_BS[:, 1:], positions_BS


def _dense_forward(batches: Iterator[Any], chunk: torch.nn.Module) -> tuple[torch.Tensor, Any]:
    from megatron.core import parallel_state

    from qedmeg.model.layers import positions_of_rank
    from qedmeg.training.policy import _summed_loss

    cp, rank = parallel_state.get_context_parallel_world_size(), parallel_state.get_context_parallel_rank()
    mine_S = positions_of_rank(LONGEST, cp, rank)
    tokens_BS, labels_BS, mask_BS, positions_BS = (tensor[:, mine_S] for tensor in next(batches))
    output = chunk(tokens_BS, positions_BS, None, labels=labels_BS, loss_mask=mask_BS)
    return output, lambda output: _summed_loss(output, _Masked(mask_BS))


@dataclass(frozen=True)
class _Masked:
    mask_T: torch.Tensor


@dataclass(frozen=True)
class Differences:
    """Relative differences of two courses."""

    first_loss: float
    first_grad_norm: float
    last_loss: float


def differences(found: Course, expected: Course) -> Differences:
    """How far a course is from another, which may be longer."""
    last = len(found.losses) - 1
    return Differences(
        abs(found.losses[0] / expected.losses[0] - 1.0),
        abs(found.grad_norms[0] / expected.grad_norms[0] - 1.0),
        abs(found.losses[last] / expected.losses[last] - 1.0),
    )

"""Log-probabilities of documents by forward passes of the policy, as ranks hold them and whole."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from qedmeg import device
from qedmeg.data.chat import Document
from qedmeg.data.packing import PackedBatch, make_batch, padded_length
from qedmeg.model.build import LogprobHead
from qedmeg.parallel import from_last_stage
from qedmeg.training.policy import Policy, placement, report

LogprobsT = list[torch.Tensor]
"""Of each micro-batch the log-probabilities [T] of its labels, as this rank holds them; empty but on the last stage."""


@torch.no_grad()
def token_logprobs(policy: Policy, microbatches: Sequence[PackedBatch], temperature: float) -> LogprobsT:
    """The log-probabilities of all labels with mask 1, by a forward pass. Every rank of the model calls it."""
    policy.prepare_for_validation_step()
    found = policy.run(
        microbatches, lambda output, _: report(output, output[0]), forward_only=True, head=LogprobHead(temperature)
    )
    policy.finish_validation_step()
    return found


def document_logprobs(policy: Policy, documents: Sequence[np.ndarray]) -> list[np.ndarray]:
    """For each document of L tokens its log-probabilities [L − 1], at temperature 1; on every rank."""
    place = placement(policy.parallelism)
    widths = [padded_length(len(tokens_L), place.batch_multiple) for tokens_L in documents]
    if place.equal_widths:
        widths = [max(widths)] * len(widths)
    batches = [
        make_batch([Document(tokens_L, np.ones(len(tokens_L), dtype=bool))], width, place.document_multiple)
        for tokens_L, width in zip(documents, widths, strict=True)
    ]
    padding = -len(batches) % place.microbatch_multiple
    whole = whole_logprobs(policy, batches + batches[:1] * padding, temperature=1.0)
    return [
        logprobs_T[: len(tokens_L) - 1].cpu().numpy() for logprobs_T, tokens_L in zip(whole, documents, strict=False)
    ]


def whole_logprobs(policy: Policy, microbatches: Sequence[PackedBatch], temperature: float) -> list[torch.Tensor]:
    """Of each micro-batch the log-probabilities [T] of its labels, whole and on every rank of the model."""
    return on_every_rank(policy, microbatches, token_logprobs(policy, microbatches, temperature))


def on_every_rank(
    policy: Policy, microbatches: Sequence[PackedBatch], found: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Numbers of each micro-batch's tokens [T], whole and on every rank of the model, from what each of them has."""
    whole = []
    for number, batch in enumerate(microbatches):
        numbers_T = torch.zeros(batch.tokens_T.numel(), device=device.current())
        if found:
            numbers_T[policy.places(batch)] = found[number]
        if policy.parallelism.cp > 1:
            dist.all_reduce(numbers_T, group=parallel_state.get_context_parallel_group())
        whole.append(from_last_stage(numbers_T))
    return whole

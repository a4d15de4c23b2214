"""The policy: a Megatron-core model behind the interface that NeMo-Aligner's trainers drive."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module
from omegaconf import OmegaConf

from qedmeg import device, parallel
from qedmeg.data.loader import Placement, Step
from qedmeg.data.packing import PackedBatch
from qedmeg.model.build import Compute, LanguageModel, LogprobHead, build_model
from qedmeg.model.families import Architecture
from qedmeg.model.layers import SegmentedSequence, positions_of_rank
from qedmeg.parallel import Parallelism, from_last_stage
from qedmeg.training.optimizer import TrainingDivergedError

B = TypeVar("B", bound=PackedBatch)


class Policy:
    """A model that is trained. `get_loss_and_metrics` runs forward and backward over a step's micro-batches.

    The other methods are the hooks that NeMo-Aligner's trainers call around it.
    """

    # Read by NeMo-Aligner's clip_gradients, which then leaves clipping to Megatron's optimizer.
    use_mcore_dist_optim = True
    with_megatron_fused_adam = False

    def __init__(
        self,
        model: Architecture,
        parallelism: Parallelism,
        compute: Compute,
        prompts_per_step: int,
        *,
        frozen: bool = False,
        kind: type[LanguageModel] = LanguageModel,
    ) -> None:
        """Build this rank's part of the model; its weights are yet to be loaded into `chunks`. A frozen one has no
        gradients, and no memory for them. `kind` says what the last stage computes: a critic is a `ValueModel`."""
        self.model = model
        self.parallelism = parallelism
        # Transformer Engine's attention and the exchange between context-parallel ranks know whole documents only
        self.shares_prefixes = parallelism.cp == 1 and not compute.transformer_engine
        self.chunks: list[LanguageModel] = build_model(model, parallelism, compute, kind)
        self.config = self.chunks[0].config
        # NeMo-Aligner reads these two to count samples
        self.cfg = OmegaConf.create({"micro_batch_size": 1, "global_batch_size": prompts_per_step})
        half = compute.dtype != torch.float32
        wrapped = [Float16Module(self.config, chunk) if half else chunk for chunk in self.chunks]
        if frozen:
            self.ddp = [chunk.requires_grad_(False).eval() for chunk in wrapped]
            return
        ddp = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True, use_distributed_optimizer=True, overlap_grad_reduce=False
        )
        self.ddp = [
            DistributedDataParallel(self.config, ddp, chunk, disable_bucketing=number > 0)
            for number, chunk in enumerate(wrapped)
        ]
        self.config.finalize_model_grads_func = finalize_model_grads

    def get_loss_and_metrics(self, batch: Step, forward_only: bool) -> tuple[float, dict[str, float]]:
        """Mean loss over the step's trained tokens of all ranks, and counts; the same on every rank.

        Raises:
            TrainingDivergedError: the loss is NaN or infinite; no weight was changed by it.
        """
        sums = self.run(batch.microbatches, _summed_loss, forward_only)
        totals = torch.zeros(2, dtype=torch.float64, device=device.current())
        for loss in sums:
            totals += loss["loss"].double()
        dist.all_reduce(totals, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
        loss_sum, trained = from_last_stage(totals).tolist()
        if not math.isfinite(loss_sum):
            raise TrainingDivergedError(
                f"the loss is {loss_sum}: training has diverged; resume with a lower optimizer.lr or a longer "
                "optimizer.warmup_steps"
            )
        divisor = batch.loss_divisor if forward_only else trained
        loss = loss_sum / max(divisor, 1.0)
        metrics = {
            "loss": loss,  # NeMo-Aligner logs of a validation what stands here, and nothing else
            "tokens": float(batch.tokens),
            "trained_tokens": trained,
            "fill": batch.fill,
            "microbatch_tokens": float(max(part.tokens_T.numel() for part in batch.microbatches)),
        }
        return loss, metrics

    def run(
        self,
        microbatches: Sequence[PackedBatch],
        loss: Callable[..., Any],
        forward_only: bool,
        head: LogprobHead | None = None,
    ) -> list[Any]:
        """Megatron's pipeline schedule over the micro-batches, gradients and their reduction included.

        `loss(output, batch)` is called on the last stage, with the batch as this rank holds it, in the order of the
        micro-batches; it returns the scalar to take gradients of, the number of tokens that the sum of all gradients is
        divided by (0: it is left as it is), and what to report. The output is the summed loss, or with a `head` what
        that says.

        Returns:
            The reports on the last stage, nothing on others.
        """
        for chunk in self.chunks:
            chunk.logprob_head = head
        iterators = [iter(microbatches) for _ in self.ddp]
        single = len(self.ddp) == 1
        reports: list[Any] = get_forward_backward_func()(
            forward_step_func=self._forward(loss),
            data_iterator=iterators[0] if single else iterators,
            model=self.ddp[0] if single else self.ddp,
            num_microbatches=len(microbatches),
            seq_length=microbatches[0].tokens_T.numel(),
            micro_batch_size=1,
            forward_only=forward_only,
        )
        return reports

    def _forward(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        """Megatron's forward step: the next micro-batch through one model chunk, and how to read its output."""

        def forward(batches: Iterator[PackedBatch], chunk: torch.nn.Module) -> tuple[torch.Tensor, Callable[..., Any]]:
            whole = next(batches)
            batch = self._on_this_rank(whole)
            packed = SegmentedSequence(
                qkv_format="thd",
                cu_seqlens_q=batch.cu_seqlens,
                cu_seqlens_kv=batch.cu_seqlens,
                max_seqlen_q=whole.longest,
                max_seqlen_kv=whole.longest,
                follows=batch.follows,
            )
            output = chunk(
                batch.tokens_T[None],
                batch.positions_T[None],
                None,
                labels=batch.labels_T[None],
                loss_mask=batch.mask_T[None],
                packed_seq_params=packed,
            )
            return output, lambda output: loss(output, batch)

        return forward

    def _on_this_rank(self, batch: B) -> B:
        """The batch on this rank's device; under context parallelism, the rank's tokens of each document."""
        here = device.current()
        if self.parallelism.cp == 1 and here.type == "cpu":
            return batch
        mine = self.places(batch)
        by_token = {
            field.name: getattr(batch, field.name)[mine].to(here)
            for field in fields(batch)
            if field.name.endswith("_T")
        }
        others = {
            field.name: getattr(batch, field.name).to(here)
            for field in fields(batch)
            if field.name.endswith("_A") or field.name.startswith("cu_")
        }
        return replace(batch, **by_token, **others)

    def places(self, batch: PackedBatch) -> torch.Tensor:
        """Which of a batch's T tokens this rank holds: all of them, or its context-parallel part of each document."""
        bounds, rank = batch.cu_seqlens.tolist(), parallel_state.get_context_parallel_rank()
        parts = (
            start + positions_of_rank(end - start, self.parallelism.cp, rank)
            for start, end in itertools.pairwise(bounds)
        )
        return torch.cat(list(parts))

    def prepare_for_training_step(self) -> None:
        """Training mode, and gradients at zero."""
        for chunk in self.ddp:
            chunk.train()
            chunk.zero_grad_buffer()

    def finish_training_step(self) -> None:
        """Nothing: Megatron's schedule has reduced the gradients."""

    def prepare_for_validation_step(self) -> None:
        """Evaluation mode."""
        for chunk in self.ddp:
            chunk.eval()

    def finish_validation_step(self) -> None:
        """Training mode again."""
        for chunk in self.ddp:
            chunk.train()


def placement(parallelism: Parallelism) -> Placement:
    """How steps are cut for this rank, once `parallel.initialize` has been called."""
    return Placement(
        dp_rank=parallel.data_rank(),
        dp_size=parallel.data_size(),
        document_multiple=parallelism.document_multiple(),
        batch_multiple=parallelism.batch_multiple(),
        microbatch_multiple=parallelism.pp if parallelism.vpp > 1 else 1,
        equal_widths=parallelism.pp > 1 or parallelism.ep > 1,
    )


def report(output: torch.Tensor, what: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """As Megatron wants it. No number of tokens: the weights of the tokens are the whole normalisation."""
    return output, torch.tensor(0, dtype=torch.int, device=output.device), what


def _summed_loss(
    output: torch.Tensor, batch: PackedBatch
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Megatron's per-token loss: the sum to take gradients of, the number of tokens, and what to report."""
    trained = batch.mask_T.sum()
    report = torch.stack([output.detach().float(), trained.to(output.device).float()])
    return output, trained.to(torch.int), {"loss": report}

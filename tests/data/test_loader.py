"""Steps over ranks, epochs and restarts."""

import itertools
import json
import threading
from typing import Any

import pytest
import torch

from qedmeg.config import DataConfig
from qedmeg.data.documents import DocumentStore, load_documents
from qedmeg.data.loader import Placement, Step, TrainLoader, ValidationLoader, build_step, steps_of_epochs
from qedmeg.data.packing import PackedBatch
from qedmeg.data.tokenizer import Tokenizer
from qedmeg.errors import UserError

DOCUMENTS = 23


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, marked: Tokenizer) -> DocumentStore:
    folder = tmp_path_factory.mktemp("loader")
    rows = [{"prompt": f"P{i}", "proof": f"Let n = {i}. " * (1 + 5 * i % 17)} for i in range(DOCUMENTS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_documents(DataConfig(train=str(folder / "rows.jsonl"), cache=folder / "cache"), marked)[0]


def settings(**values: Any) -> DataConfig:
    return DataConfig(
        **{"train": "x", "max_length": 256, "tokens_per_microbatch": 256, "prompts_per_step": 5, **values}
    )


def loader(store: DocumentStore, placement: Placement | None = None, **values: Any) -> TrainLoader:
    return TrainLoader(store, settings(**values), pad_id=0, total_steps=40, placement=placement)


def steps(from_loader: TrainLoader, count: int) -> list[Step]:
    return list(itertools.islice(from_loader, count))


def segments(batch: PackedBatch) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Tokens and mask of the documents of a batch."""
    bounds = batch.cu_seqlens.tolist()
    return [
        (tuple(batch.tokens_T[a:b].tolist()), tuple(batch.mask_T[a:b].tolist()))
        for a, b in itertools.islice(itertools.pairwise(bounds), batch.documents)
    ]


def same(one: Step, other: Step) -> bool:
    tensors = ("tokens_T", "labels_T", "mask_T", "positions_T", "cu_seqlens")
    return one.documents == other.documents and all(
        torch.equal(getattr(a, name), getattr(b, name))
        for a, b in zip(one.microbatches, other.microbatches, strict=True)
        for name in tensors
    )


@pytest.mark.parametrize("document_multiple", [1, 4])
def test_the_ranks_together_hold_the_same_at_any_size(store: DocumentStore, document_multiple: int) -> None:
    chosen = list(range(20))
    single = build_step(store, chosen, 256, 0, Placement(document_multiple=document_multiple))
    expected = sorted(sorted(segments(batch)) for batch in single.microbatches)
    assert sorted(segment for bin_ in expected for segment in bin_) == sorted(
        (
            (*store[i].tokens_T.tolist(), *[0] * (-len(store[i].tokens_T) % document_multiple)),
            (*map(float, store[i].mask_T[1:]), *[0.0] * (1 + -len(store[i].tokens_T) % document_multiple)),
        )
        for i in chosen
    )
    for dp_size in (2, 3, 4, 16):
        ranks = [
            build_step(store, chosen, 256, 0, Placement(rank, dp_size, document_multiple)) for rank in range(dp_size)
        ]
        assert len({len(rank.microbatches) for rank in ranks}) == 1
        found = sorted(sorted(segments(batch)) for rank in ranks for batch in rank.microbatches if batch.documents)
        assert found == expected
        assert sum(batch.mask_T.sum().item() for rank in ranks for batch in rank.microbatches) == single.trained_tokens
        about_the_step = {(r.documents, r.tokens, r.trained_tokens, r.loss_divisor, r.fill) for r in (single, *ranks)}
        assert len(about_the_step) == 1


def test_microbatches_are_as_long_as_what_they_hold(store: DocumentStore) -> None:
    alone = build_step(store, [0], 1024, 0, Placement(batch_multiple=6))
    length = len(store[0].tokens_T)
    assert alone.microbatches[0].tokens_T.numel() == -(-length // 192) * 192
    assert alone.fill == length / alone.microbatches[0].tokens_T.numel()
    tight = build_step(store, [0], length, 0, Placement())
    assert tight.fill == 1.0


def test_microbatches_are_equally_long_only_where_they_must_be(store: DocumentStore) -> None:
    own, equal = (build_step(store, range(10), 256, 0, Placement(equal_widths=equal)) for equal in (False, True))
    widths = [batch.tokens_T.numel() for batch in own.microbatches]
    assert widths == [-(-int(batch.cu_seqlens[batch.documents]) // 64) * 64 for batch in own.microbatches]
    assert len(set(widths)) > 1
    assert [batch.tokens_T.numel() for batch in equal.microbatches] == [max(widths)] * len(widths)
    assert own.fill == own.tokens / sum(widths) > equal.fill == own.tokens / (max(widths) * len(widths))


def test_microbatch_counts_suit_an_interleaved_schedule(store: DocumentStore) -> None:
    for rank in range(2):
        step = build_step(store, range(10), 256, 0, Placement(rank, 2, microbatch_multiple=4))
        assert len(step.microbatches) % 4 == 0
    assert step.microbatches[-1].documents == 0
    assert step.microbatches[-1].mask_T.sum() == 0


def test_every_document_exactly_once_an_epoch(store: DocumentStore) -> None:
    seen = [document for step in steps(loader(store), 23) for document in step.documents]
    assert len(seen) == 5 * DOCUMENTS
    for epoch in range(5):
        assert sorted(seen[epoch * DOCUMENTS : (epoch + 1) * DOCUMENTS]) == list(range(DOCUMENTS))
    assert seen[:DOCUMENTS] != seen[DOCUMENTS : 2 * DOCUMENTS]


@pytest.mark.parametrize("stop", [1, 4, 5, 9])
def test_a_run_resumed_anywhere_equals_one_that_never_stopped(store: DocumentStore, stop: int) -> None:
    uninterrupted = steps(loader(store), 12)
    first = loader(store)
    before = steps(first, stop)
    state = json.loads(json.dumps(first.state_dict()))
    second = loader(store)
    second.load_state_dict(state)
    after = steps(second, 12 - stop)
    assert all(same(one, other) for one, other in zip(before + after, uninterrupted, strict=True))
    assert [step.epoch for step in before + after] == [5 * (n + 1) / DOCUMENTS for n in range(12)]


def test_resuming_with_more_ranks_and_other_step_sizes_goes_on_at_the_same_document(store: DocumentStore) -> None:
    uninterrupted = [document for step in steps(loader(store), 9) for document in step.documents]
    first = loader(store)
    steps(first, 3)
    second = loader(store, Placement(1, 4, document_multiple=4), prompts_per_step=6, tokens_per_microbatch=512)
    second.load_state_dict(first.state_dict())
    assert [document for step in steps(second, 5) for document in step.documents] == uninterrupted[15:]


def test_the_state_is_that_of_the_step_handed_out_not_of_the_one_prepared(store: DocumentStore) -> None:
    it = loader(store)
    assert it.state_dict()["position"] == 0
    iterator = iter(it)
    for taken in (1, 2, 3):
        next(iterator)
        prefetching = [thread for thread in threading.enumerate() if thread.name.startswith("next-step")]
        assert prefetching
        assert it.state_dict()["position"] == 5 * taken
    del iterator
    assert next(iter(it)).documents == steps(loader(store), 4)[3].documents


def test_no_thread_is_left(store: DocumentStore) -> None:
    steps(loader(store), 2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("next-step")]


def test_an_error_of_the_background_thread_reaches_the_trainer(store: DocumentStore) -> None:
    with pytest.raises(ValueError, match="more than the budget of 32"):
        steps(loader(store, max_length=32, tokens_per_microbatch=32), 20)


def test_what_nemo_aligner_reads(store: DocumentStore) -> None:
    sampler = loader(store).batch_sampler
    assert sampler.drop_last
    assert sampler.total_samples // sampler.global_batch_size == 40
    assert (sampler.global_batch_size, sampler.micro_batch_size) == (5, 1)
    assert len(loader(store)) == 40


def test_validation_is_the_same_on_every_pass_and_its_mean_is_over_tokens(store: DocumentStore) -> None:
    validation = ValidationLoader(store, settings(), pad_id=0)
    first, second = list(validation), list(validation)
    assert len(first) == len(validation) == 5
    assert all(same(one, other) for one, other in zip(first, second, strict=True))
    assert [document for step in first for document in step.documents] == list(range(DOCUMENTS))
    # with a loss of 2 on every token, and 3 on the first document: the mean over batches is the mean over tokens
    sums = [2.0 * step.trained_tokens + (store.trained_D[0] if 0 in step.documents else 0) for step in first]
    mean_over_batches = sum(total / step.loss_divisor for total, step in zip(sums, first, strict=True)) / len(first)
    assert mean_over_batches == pytest.approx(2 + store.trained_D[0] / store.trained_D.sum())


def test_a_budget_that_context_parallelism_cannot_cut(store: DocumentStore) -> None:
    with pytest.raises(UserError, match=r"data.tokens_per_microbatch: 256: must be a multiple of 6"):
        loader(store, Placement(document_multiple=6))


def test_steps_of_epochs() -> None:
    assert [steps_of_epochs(23, 5, epochs) for epochs in (1, 2, 0.5, 0.01)] == [5, 10, 3, 1]

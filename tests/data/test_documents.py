"""The store of tokenised documents: what is in it, when it is made again, and that it is whole or not there."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qedmeg.config import Columns, DataConfig
from qedmeg.data.chat import Conversation, Document, tokenise
from qedmeg.data.documents import DocumentStore, StoreWriter, load_documents
from qedmeg.data.tokenizer import Tokenizer
from qedmeg.errors import UserError

REAL_PROOFS = Path(__file__).parents[3] / "shared" / "data" / "deepseek-math-v2"


def rows_file(path: Path, rows: int = 20, proof: str = "Let n = {i}. ") -> Path:
    path.write_text(
        "".join(json.dumps({"problem": f"P{i}", "proof": proof.format(i=i) * (i % 20 + 1)}) + "\n" for i in range(rows))
    )
    return path


def config(tmp_path: Path, **settings: Any) -> DataConfig:
    return DataConfig(**{"train": str(tmp_path / "train.jsonl"), "cache": tmp_path / "cache", **settings})


def test_documents_are_those_of_the_rows_in_their_order(tmp_path: Path, marked: Tokenizer) -> None:
    rows_file(tmp_path / "train.jsonl", rows=600)  # more than one batch
    store, validation = load_documents(config(tmp_path), marked)
    assert validation is None
    assert len(store) == 600
    for i in (0, 7, 255, 256, 599):
        messages = (
            {"role": "user", "content": f"P{i}"},
            {"role": "assistant", "content": f"Let n = {i}. " * (i % 20 + 1)},
        )
        (expected,) = tokenise(marked, [Conversation(messages, "")], "template")
        np.testing.assert_array_equal(store[i].tokens_T, expected.tokens_T)
        np.testing.assert_array_equal(store[i].mask_T, expected.mask_T)
        assert (store.lengths_D[i], store.trained_D[i]) == (len(expected.tokens_T), expected.mask_T.sum())
    summary = store.summary
    assert summary.documents == 600
    assert (summary.tokens, summary.trained_tokens) == (store.lengths_D.sum(), store.trained_D.sum())
    assert summary.longest == store.lengths_D.max()
    with pytest.raises(IndexError):
        store[600]


def test_made_once_and_found_again(tmp_path: Path, marked: Tokenizer) -> None:
    path = rows_file(tmp_path / "train.jsonl")
    first, _ = load_documents(config(tmp_path), marked)
    made = (first.folder / "summary.json").stat().st_mtime_ns
    again, _ = load_documents(config(tmp_path, seed=5, prompts_per_step=2), marked)
    assert (again.folder, (again.folder / "summary.json").stat().st_mtime_ns) == (first.folder, made)
    # whatever the content depends on makes another
    others = [
        load_documents(settings, marked)[0].folder
        for settings in (
            config(tmp_path, max_length=4000),
            config(tmp_path, assistant_mask="prefix"),
            config(tmp_path, columns=Columns(prompt="proof", proof="problem")),
        )
    ]
    rows_file(path, rows=21)
    others.append(load_documents(config(tmp_path), marked)[0].folder)
    assert len({first.folder, *others}) == 5


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path, marked: Tokenizer) -> None:
    rows_file(tmp_path / "train.jsonl")
    rows_file(tmp_path / "copy.jsonl")
    rows_file(tmp_path / "other.jsonl", proof="Let m = {i}. ")
    fingerprints = [
        load_documents(config(tmp_path, train=str(tmp_path / f"{name}.jsonl")), marked)[0].summary.fingerprint
        for name in ("train", "copy", "other")
    ]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    by_prefix, _ = load_documents(config(tmp_path, assistant_mask="prefix"), marked)
    assert by_prefix.summary.fingerprint == fingerprints[0]


def test_the_fingerprint_sees_tokens_masks_and_boundaries(tmp_path: Path) -> None:
    def fingerprint(name: str, *documents: tuple[list[int], list[int]]) -> str:
        writer = StoreWriter(tmp_path / name)
        for tokens, mask in documents:
            writer.add(Document(np.asarray(tokens, dtype=np.int32), np.asarray(mask, dtype=np.bool_)))
        writer.finish(name)
        return DocumentStore(tmp_path / name).summary.fingerprint

    base = fingerprint("base", ([1, 2], [0, 1]), ([3, 4], [0, 1]))
    assert base == fingerprint("same", ([1, 2], [0, 1]), ([3, 4], [0, 1]))
    others = [
        fingerprint("tokens", ([1, 2], [0, 1]), ([3, 5], [0, 1])),
        fingerprint("mask", ([1, 2], [0, 1]), ([3, 4], [0, 0])),
        fingerprint("order", ([3, 4], [0, 1]), ([1, 2], [0, 1])),
        fingerprint("boundary", ([1, 2, 3], [0, 1, 0]), ([4], [1])),
    ]
    assert len({base, *others}) == 5


def test_several_processes_ask_at_once(tmp_path: Path, marked: Tokenizer) -> None:
    rows_file(tmp_path / "train.jsonl", rows=200)
    stores: list[DocumentStore] = []
    settings = config(tmp_path)
    threads = [threading.Thread(target=lambda: stores.append(load_documents(settings, marked)[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({store.summary.fingerprint for store in stores}) == 1
    assert len(stores) == 4
    assert len(list((tmp_path / "cache").glob("*/"))) == 1


def test_too_long_is_an_error_or_dropped_but_never_cut(tmp_path: Path, marked: Tokenizer) -> None:
    rows_file(tmp_path / "train.jsonl")
    whole, _ = load_documents(config(tmp_path), marked)
    limit = int(sorted(whole.lengths_D)[11])
    with pytest.raises(UserError, match=rf"train\.jsonl: row 13: .*tokens, more than data.max_length {limit};.*drop"):
        load_documents(config(tmp_path, max_length=limit), marked)
    store, _ = load_documents(config(tmp_path, max_length=limit, too_long="drop"), marked)
    assert (len(store), store.summary.dropped_too_long, store.summary.longest) == (12, 8, limit)
    assert all(store[i].tokens_T[store[i].mask_T][-1] == marked.eos_id for i in range(12))
    with pytest.raises(UserError, match=r"no row is left for train .*20 dropped for data.max_length 2"):
        load_documents(config(tmp_path, max_length=2, too_long="drop"), marked)


def test_a_bad_row_leaves_nothing_behind(tmp_path: Path, marked: Tokenizer) -> None:
    path = rows_file(tmp_path / "train.jsonl", rows=300)
    with path.open("a") as file:
        file.write('{"problem": "P", "proof": ""}\n')
    with pytest.raises(UserError, match=r"row 301: column 'proof' is empty"):
        load_documents(config(tmp_path), marked)
    assert list((tmp_path / "cache").glob("*/")) == []


def test_left_overs_and_damage(tmp_path: Path, marked: Tokenizer) -> None:
    rows_file(tmp_path / "train.jsonl")
    store, _ = load_documents(config(tmp_path), marked)
    folder = store.folder.parent
    # killed while writing: a partial folder and no whole one
    folder.rename(folder.with_name(f"{folder.name}.partial"))
    again, _ = load_documents(config(tmp_path), marked)
    assert again.summary == store.summary
    assert list((tmp_path / "cache").glob("*.partial")) == []
    (again.folder / "tokens.bin").write_bytes((again.folder / "tokens.bin").read_bytes()[:-4])
    with pytest.raises(UserError, match="damaged; delete the folder"):
        load_documents(config(tmp_path), marked)


def test_held_out_share_keeps_the_proofs_of_a_problem_together(tmp_path: Path, marked: Tokenizer) -> None:
    rows = [{"problem": f"P{i % 50}", "proof": f"Q{i}"} for i in range(200)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = config(tmp_path, validation_fraction=0.2)
    train, validation = load_documents(settings, marked)
    assert validation is not None
    assert len(train) + len(validation) == 200

    def problems(store: DocumentStore) -> set[str]:
        return {marked.decode(store[i].tokens_T.tolist()).split("\n")[1] for i in range(len(store))}

    assert problems(train) & problems(validation) == set()
    assert 3 <= len(problems(validation)) <= 20
    # the same problems are held out under another seed and in another order
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    _, other = load_documents(config(tmp_path, validation_fraction=0.2, seed=9), marked)
    assert other is not None
    assert problems(other) == problems(validation)
    with pytest.raises(UserError, match="no row is left for validation"):
        load_documents(config(tmp_path, validation_fraction=1e-9), marked)


def test_validation_rows_of_their_own(tmp_path: Path, marked: Tokenizer) -> None:
    rows_file(tmp_path / "train.jsonl")
    rows_file(tmp_path / "dev.jsonl", rows=3)
    train, validation = load_documents(config(tmp_path, validation=str(tmp_path / "dev.jsonl")), marked)
    assert validation is not None
    assert (len(train), len(validation)) == (20, 3)


@pytest.mark.skipif(not REAL_PROOFS.is_dir(), reason="the real proofs are not beside the checkout")
def test_real_proofs(tmp_path: Path, marked: Tokenizer) -> None:
    settings = config(
        tmp_path,
        train=str(REAL_PROOFS),
        columns=Columns(prompt="question", proof="model_prediction.proof"),
        max_length=20_000,
        tokens_per_microbatch=20_000,
        too_long="drop",
    )
    store, _ = load_documents(settings, marked)
    assert len(store) + store.summary.dropped_too_long == 78
    assert len(store) > 60
    text = marked.decode(store[0].tokens_T.tolist())
    first = json.loads((REAL_PROOFS / "CMO2024.jsonl").read_text().splitlines()[0])
    assert text == (
        f"<|im_start|>user\n{first['question']}<|im_end|>\n"
        f"<|im_start|>assistant\n{first['model_prediction']['proof']}<|im_end|>\n"
    )

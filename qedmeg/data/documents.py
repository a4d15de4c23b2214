"""Tokenised documents on disk: tokenised once, then read through memory maps, however many there are.

A store is a folder: `tokens.bin` (int32) and `mask.bin` (one byte a token) hold all documents end to end, `offsets.npy`
says where each begins, `summary.json` is written last. The folder's name is a hash of all that its content depends on,
so that a run with the same rows, tokenizer and settings finds it. The first process to ask for it holds a file lock
while it writes; the others, of this or of another node, wait for that and need no process group.
"""

import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from qedmeg.config import DataConfig
from qedmeg.data.chat import Conversation, Document, check_template, tokenise
from qedmeg.data.sources import Source, open_sources, read_conversation
from qedmeg.data.tokenizer import Tokenizer
from qedmeg.errors import UserError
from qedmeg.monitor.progress import Bar, bar

_LAYOUT = 1  # raise it when tokenisation or the layout of the folder changes: stores of before are then not found
# A batch for the tokenizer's threads; its offsets take about 100 bytes a token while it lasts.
_BATCH_ROWS, _BATCH_CHARS = 256, 500_000


@dataclass(frozen=True)
class Summary:
    """What a store holds."""

    source: str
    documents: int
    tokens: int
    trained_tokens: int
    longest: int
    """Tokens of the longest document."""
    dropped_too_long: int
    fingerprint: str
    """Hash of all tokens and masks, in order: the same wherever the store was made."""


class DocumentStore:
    """Random access to the documents of a store folder. `lengths_D` and `trained_D` are tokens and trained tokens of
    each document, in memory; the tokens themselves are mapped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.summary = Summary(**json.loads((folder / "summary.json").read_text()))
        self._offsets_D1 = np.load(folder / "offsets.npy", allow_pickle=False)
        self.trained_D = np.load(folder / "trained.npy", allow_pickle=False)
        self.lengths_D = np.diff(self._offsets_D1)
        sizes = [(folder / name).stat().st_size for name in ("tokens.bin", "mask.bin")]
        if sizes != [self.summary.tokens * 4, self.summary.tokens] or len(self) != self.summary.documents:
            raise UserError(f"{folder}: the tokenised documents are damaged; delete the folder and they are made again")
        self._tokens_N = np.memmap(folder / "tokens.bin", dtype=np.int32, mode="r")
        self._mask_N = np.memmap(folder / "mask.bin", dtype=np.bool_, mode="r")

    def __len__(self) -> int:
        return len(self.lengths_D)

    def __getitem__(self, index: int) -> Document:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        start, stop = int(self._offsets_D1[index]), int(self._offsets_D1[index + 1])
        return Document(self._tokens_N[start:stop], self._mask_N[start:stop])


class StoreWriter:
    """Writes a store document by document; `finish` writes the rest of the folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.lengths, self.trained = array("q"), array("q")
        self.dropped_too_long = 0
        self._hash = hashlib.sha256()
        self._tokens = (folder / "tokens.bin").open("wb")
        self._mask = (folder / "mask.bin").open("wb")

    def add(self, document: Document) -> None:
        length = len(document.tokens_T)
        self._hash.update(length.to_bytes(8, "little"))
        for file, content in ((self._tokens, document.tokens_T.tobytes()), (self._mask, document.mask_T.tobytes())):
            file.write(content)
            self._hash.update(content)
        self.lengths.append(length)
        self.trained.append(int(document.mask_T[1:].sum()))  # the first token of a document is nobody's label

    def finish(self, source: str) -> None:
        self._tokens.close()
        self._mask.close()
        np.save(self.folder / "offsets.npy", np.cumsum([0, *self.lengths], dtype=np.int64))
        np.save(self.folder / "trained.npy", np.asarray(self.trained, dtype=np.int64))
        summary = Summary(
            source=source,
            documents=len(self.lengths),
            tokens=sum(self.lengths),
            trained_tokens=sum(self.trained),
            longest=max(self.lengths, default=0),
            dropped_too_long=self.dropped_too_long,
            fingerprint=self._hash.hexdigest(),
        )
        (self.folder / "summary.json").write_text(json.dumps(asdict(summary), indent=1))


def load_documents(
    config: DataConfig, tokenizer: Tokenizer, *, show: bool = True
) -> tuple[DocumentStore, DocumentStore | None]:
    """The training and the validation documents (None where the settings name none), tokenised if they are not yet.

    Reads every row before it returns, so that a bad one is found before training. `show` draws the progress bar.
    Raises UserError naming file, row and column.
    """
    check_template(tokenizer, config.assistant_mask)
    fraction = config.validation_fraction
    sources = open_sources(config.train, split=config.split, hub_config=config.hub_config, revision=config.revision)
    folder = _tokenised(config, tokenizer, config.train, sources, fraction, show)
    train = DocumentStore(folder / "train")
    if config.validation is None:
        return train, DocumentStore(folder / "validation") if fraction > 0 else None
    sources = open_sources(
        config.validation, split=config.validation_split, hub_config=config.hub_config, revision=config.revision
    )
    folder = _tokenised(config, tokenizer, config.validation, sources, 0.0, show)
    return train, DocumentStore(folder / "train")


def _tokenised(
    config: DataConfig, tokenizer: Tokenizer, name: str, sources: Sequence[Source], fraction: float, show: bool
) -> Path:
    """The cache folder with the store `train` of these sources and, for a fraction above 0, `validation`."""
    depends_on = {
        "layout": _LAYOUT,
        "tokenizer": tokenizer.fingerprint(),
        "end_ids": sorted(tokenizer.end_ids),
        "files": [source.identity for source in sources],
        "columns": config.columns.model_dump(),
        "assistant_mask": config.assistant_mask,
        "length": [config.max_length, config.too_long],
        "validation_fraction": fraction,
    }
    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:24]
    cache = config.cache.expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    folder, partial = cache / key, cache / f"{key}.partial"
    with FileLock(cache / f"{key}.lock"):
        if not folder.exists():
            shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
            try:
                _write_stores(config, tokenizer, name, sources, fraction, partial, show)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            os.replace(partial, folder)
    return folder


def _write_stores(
    config: DataConfig,
    tokenizer: Tokenizer,
    name: str,
    sources: Sequence[Source],
    fraction: float,
    folder: Path,
    show: bool,
) -> None:
    writers = [StoreWriter(folder / part) for part in (("train", "validation") if fraction > 0 else ("train",))]
    with bar(f"tokenising {name}", sum(source.units for source in sources), show=show) as progress:
        for batch in _batches(sources, config, progress):
            documents = tokenise(tokenizer, batch, config.assistant_mask)
            for conversation, document in zip(batch, documents, strict=True):
                writer = writers[_share(conversation) < fraction]
                length = len(document.tokens_T)
                if length <= config.max_length:
                    writer.add(document)
                elif config.too_long == "drop":
                    writer.dropped_too_long += 1
                else:
                    raise UserError(
                        f"{conversation.where}: {length} tokens, more than data.max_length {config.max_length}; raise "
                        "it, or set data.too_long=drop to leave such rows out (none is ever truncated)"
                    )
    for writer in writers:
        if not writer.lengths:
            dropped = sum(writer.dropped_too_long for writer in writers)
            raise UserError(
                f"{name}: no row is left for {writer.folder.name} ({sum(len(w.lengths) for w in writers)} rows in all, "
                f"{dropped} dropped for data.max_length {config.max_length}, data.validation_fraction {fraction})"
            )
        writer.finish(name)


def _batches(sources: Iterable[Source], config: DataConfig, progress: Bar) -> Iterator[list[Conversation]]:
    batch: list[Conversation] = []
    chars = rows = 0
    for source in sources:
        for row in source.rows():
            conversation = read_conversation(row, config.columns, source.name)
            batch.append(conversation)
            chars += sum(len(str(message["content"])) for message in conversation.messages)
            rows += 1
            progress.advance(row.units, f"{rows} rows")
            if len(batch) >= _BATCH_ROWS or chars >= _BATCH_CHARS:
                yield batch
                batch, chars = [], 0
    if batch:
        yield batch


def _share(conversation: Conversation) -> float:
    """A number in [0, 1) that depends on the first user message alone."""
    prompt = next(message["content"] for message in conversation.messages if message["role"] == "user")
    return int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest(), "big") / 2**64

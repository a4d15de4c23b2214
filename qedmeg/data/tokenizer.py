"""One interface over Hugging Face fast tokenizers and bare sentencepiece models.

A folder with `tokenizer.json` or `tokenizer_config.json` is read by transformers, as vLLM will read the exported model.
A bare sentencepiece `.model` is read by the sentencepiece package: transformers 5 converts such a file to a fast
tokenizer too, but leaves the model's own normaliser and prefix rule out, and the token ids then differ from those of
the model file (double spaces, newlines, the first word).
"""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qedmeg.errors import UserError

# What well-known chat templates end an assistant turn with; a base model's own eos is often another token.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")


@dataclass(frozen=True)
class Encoded:
    """The tokens of one text. Token i stands for the characters from `starts_T[i]` up to `ends_T[i]`, which is empty
    for all but the last of several byte tokens of one character in sentencepiece."""

    ids_T: npt.NDArray[np.int32]
    starts_T: npt.NDArray[np.int64]
    ends_T: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Tokenizer(ABC):
    """What the rest of the project asks of a tokenizer."""

    name: str
    """The folder, file or hub id that it was read from."""
    chat_template: str | None
    """Jinja source."""
    eos_id: int
    pad_id: int
    """The tokenizer's own, else the eos token: padding is never trained on."""
    stop_ids: frozenset[int]
    """Where an engine stops generating: the eos token and those of generation_config.json."""
    end_ids: frozenset[int]
    """What may end an assistant turn: `stop_ids` and the turn ends of well-known chat templates."""
    vocab_size: int
    """Every token id is below it, added tokens among them."""
    special_texts: frozenset[str]
    """Texts that become a control token wherever they stand."""
    template_variables: Mapping[str, str]
    """`bos_token`, `eos_token` and so on, which chat templates may name."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        """The tokens of each text with the characters they stand for; nothing is added before or after."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of the tokens, control tokens among them."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of all that decides how a conversation becomes tokens."""

    def encode(self, text: str) -> list[int]:
        """The token ids of the text; nothing is added before or after."""
        ids: list[int] = self.encode_batch([text])[0].ids_T.tolist()
        return ids


@dataclass(frozen=True, eq=False)
class HuggingFaceTokenizer(Tokenizer):
    """A fast tokenizer of transformers."""

    backend: Any

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        batch = self.backend(
            list(texts),
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [_encoded(*pair) for pair in zip(batch["input_ids"], batch["offset_mapping"], strict=True)]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.backend.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def fingerprint(self) -> str:
        return _hash(self.backend.backend_tokenizer.to_str().encode(), self)


@dataclass(frozen=True, eq=False)
class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model. Its control symbols (<s>, </s> and the trainer's own) are found in the text first, since
    sentencepiece never does; what stands between two of them is encoded by itself."""

    backend: Any

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        return [self._encode_one(text) for text in texts]

    def _encode_one(self, text: str) -> Encoded:
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        at = 0
        for part in self._split(text):
            if part in self.special_texts:
                ids.append(self.backend.piece_to_id(part))
                offsets.append((at, at + len(part)))
            elif part:
                encoded = self.backend.encode(part, return_type="offset_mapping")
                ids += encoded["ids"]
                offsets += [(at + start, at + end) for start, end in encoded["offsets"]]
            at += len(part)
        return _encoded(ids, offsets)

    def _split(self, text: str) -> list[str]:
        longest_first = sorted(self.special_texts, key=lambda special: (-len(special), special))
        return re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)

    def decode(self, ids: Sequence[int]) -> str:
        texts: list[str] = []
        run: list[int] = []
        for token in ids:
            if self.backend.is_control(int(token)):
                texts += [self.backend.decode(run), self.backend.id_to_piece(int(token))]
                run = []
            else:
                run.append(int(token))
        return "".join([*texts, self.backend.decode(run)])

    def fingerprint(self) -> str:
        return _hash(self.backend.serialized_model_proto(), self)


def load_tokenizer(source: str | Path, chat_template: Path | None = None) -> Tokenizer:
    """Read the tokenizer `source`: a Hugging Face folder or hub id, a sentencepiece `.model` file, or a folder that
    holds nothing but `tokenizer.model`. `chat_template` is a .jinja file that replaces the tokenizer's own template;
    beside a sentencepiece model, `chat_template.jinja` is looked for.

    Runs no code from the folder or the hub. Raises UserError naming the path and what is wrong with it.
    """
    template = _read_template(chat_template) if chat_template is not None else None
    path = Path(source).expanduser()
    if path.is_file():
        return _load_sentencepiece(path, template)
    if path.is_dir():
        if (path / "tokenizer.json").is_file() or (path / "tokenizer_config.json").is_file():
            return _load_hugging_face(str(path), template)
        if (path / "tokenizer.model").is_file():
            return _load_sentencepiece(path / "tokenizer.model", template)
        raise UserError(
            f"{path}: holds no tokenizer: neither tokenizer.json, tokenizer_config.json nor tokenizer.model"
        )
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)) or str(source).startswith("."):
        raise UserError(f"{source}: no such tokenizer folder or file, and not the form of a hub id (owner/name)")
    return _load_hugging_face(str(source), template)


def _load_hugging_face(source: str, template: str | None) -> Tokenizer:
    from transformers import AutoTokenizer, GenerationConfig  # seconds to import: only when one is loaded

    try:
        backend = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise OSError, ValueError, KeyError and plain Exception
        raise UserError(f"{source}: the tokenizer cannot be loaded: {_one_line(error)}") from None
    if not backend.is_fast:
        raise UserError(f"{source}: {type(backend).__name__} is not a fast tokenizer; save it with a tokenizer.json")
    if backend.eos_token_id is None:
        raise UserError(f"{source}: the tokenizer has no eos_token; name it in tokenizer_config.json")
    if template is None and backend.chat_template is not None:
        template = backend.get_chat_template()

    try:
        stops = GenerationConfig.from_pretrained(source).eos_token_id
    except (OSError, ValueError):  # there need not be a generation_config.json
        stops = None
    stop_ids = {backend.eos_token_id, *([stops] if isinstance(stops, int) else stops or [])}
    added = backend.added_tokens_encoder
    end_ids = stop_ids | {added[text] for text in _TURN_ENDS if text in added}
    special = {token.content for token in backend.added_tokens_decoder.values() if token.special}
    variables = {name: value for name, value in backend.special_tokens_map.items() if isinstance(value, str)}
    return HuggingFaceTokenizer(
        name=source,
        chat_template=template,
        eos_id=backend.eos_token_id,
        pad_id=backend.eos_token_id if backend.pad_token_id is None else backend.pad_token_id,
        stop_ids=frozenset(stop_ids),
        end_ids=frozenset(end_ids),
        vocab_size=len(backend),
        special_texts=frozenset(special),
        template_variables=variables,
        backend=backend,
    )


def _load_sentencepiece(path: Path, template: str | None) -> Tokenizer:
    from sentencepiece import SentencePieceProcessor

    try:
        backend = SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise UserError(f"{path}: not a sentencepiece model: {_one_line(error)}") from None
    if backend.eos_id() < 0:
        raise UserError(f"{path}: the sentencepiece model has no end-of-sentence symbol; train it with eos_id set")
    beside = path.parent / "chat_template.jinja"
    if template is None and beside.is_file():
        template = _read_template(beside)
    ids = {"bos_token": backend.bos_id(), "eos_token": backend.eos_id(), "pad_token": backend.pad_id()}
    turn_ends = {backend.piece_to_id(text) for text in _TURN_ENDS} - {backend.unk_id()}
    return SentencePieceTokenizer(
        name=str(path),
        chat_template=template,
        eos_id=backend.eos_id(),
        pad_id=backend.pad_id() if backend.pad_id() >= 0 else backend.eos_id(),
        stop_ids=frozenset({backend.eos_id()}),
        end_ids=frozenset({backend.eos_id(), *turn_ends}),
        vocab_size=backend.get_piece_size(),
        special_texts=frozenset(
            backend.id_to_piece(token) for token in range(backend.get_piece_size()) if backend.is_control(token)
        ),
        template_variables={name: backend.id_to_piece(token) for name, token in ids.items() if token >= 0},
        backend=backend,
    )


def _read_template(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the chat template cannot be read: {_one_line(error)}") from None


def _encoded(ids: list[int], offsets: list[tuple[int, int]]) -> Encoded:
    offsets_T2 = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    ends_T = np.maximum.accumulate(offsets_T2[:, 1]) if ids else offsets_T2[:, 1]
    # Some byte-level tokenizers trim white space from a token's offsets, all of it from a token of white space alone.
    # So a token is taken to begin where the one before it ended.
    starts_T = np.minimum(offsets_T2[:, 0], np.concatenate([[0], ends_T[:-1]])) if ids else offsets_T2[:, 0]
    return Encoded(np.asarray(ids, dtype=np.int32), starts_T.astype(np.int64), ends_T)


def _hash(vocabulary: bytes, tokenizer: Tokenizer) -> str:
    settings = [tokenizer.chat_template or "", *(f"{k}={v}" for k, v in sorted(tokenizer.template_variables.items()))]
    return hashlib.sha256(b"\0".join([vocabulary, *(text.encode() for text in settings)])).hexdigest()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__

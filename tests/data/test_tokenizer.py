"""Both kinds of tokenizer behind one interface, and every folder that is none."""

import json
from pathlib import Path

import pytest

from qedmeg.data.tokenizer import Tokenizer, load_tokenizer
from qedmeg.errors import UserError
from tests.data.conftest import MARKED, PLAIN, save_byte_level, save_sentencepiece

TEXT = "Let n = 2k + 1;\n\n  then (x - 3)^2 ≥ 0, é 𝔽"


def test_hugging_face_folder(marked: Tokenizer) -> None:
    assert marked.decode(marked.encode(TEXT)) == TEXT
    assert marked.decode([marked.eos_id, marked.pad_id]) == "<|im_end|><|endoftext|>"
    assert marked.chat_template == MARKED
    assert marked.encode("<|im_start|>") == [1]
    assert max(marked.encode(TEXT)) < marked.vocab_size
    assert marked.special_texts == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_tokens_cover_their_characters(tmp_path: Path, trim_offsets: bool) -> None:
    tokenizer = load_tokenizer(save_byte_level(tmp_path, PLAIN, trim_offsets=trim_offsets))
    encoded = tokenizer.encode_batch(["a\n\n n", ""])
    assert encoded[0].starts_T.tolist() == [0, 1, 2, 3]
    assert encoded[0].ends_T.tolist() == [1, 2, 3, 5]
    assert len(encoded[1].ids_T) == 0


def test_stop_tokens_of_a_base_model(tmp_path: Path) -> None:
    """A base model's eos is not what the template ends a turn with; generation_config.json may name both."""
    folder = save_byte_level(tmp_path, PLAIN)
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}'
    )
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.stop_ids, tokenizer.end_ids) == (0, 0, {0}, {0, 2})
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    assert load_tokenizer(folder).stop_ids == {0, 2}


def test_the_template_of_the_settings_replaces_the_folders(marked_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(PLAIN)
    assert load_tokenizer(marked_folder, tmp_path / "own.jinja").chat_template == PLAIN
    with pytest.raises(UserError, match=r"none\.jinja: the chat template cannot be read"):
        load_tokenizer(marked_folder, tmp_path / "none.jinja")


def test_fingerprint_follows_vocabulary_and_template(marked_folder: Path, plain: Tokenizer, tmp_path: Path) -> None:
    marked = load_tokenizer(marked_folder)
    again = load_tokenizer(save_byte_level(tmp_path / "a", MARKED))
    other = load_tokenizer(save_byte_level(tmp_path / "b", MARKED, trim_offsets=True))
    assert marked.fingerprint() == again.fingerprint()
    assert len({marked.fingerprint(), plain.fingerprint(), other.fingerprint()}) == 3


def test_sentencepiece(tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    model = save_sentencepiece(tmp_path, "{{ messages }}")
    tokenizer = load_tokenizer(model)
    assert load_tokenizer(tmp_path).fingerprint() == tokenizer.fingerprint()
    reference = SentencePieceProcessor(model_file=str(model))
    assert tokenizer.encode(TEXT) == reference.encode(TEXT)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    # sentencepiece itself would spell the control symbols out
    assert tokenizer.encode("<s>a</s>") == [1, *reference.encode("a"), 2]
    assert tokenizer.decode([1, *reference.encode("a"), 2, *reference.encode("b")]) == "<s>a</s>b"
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.end_ids) == (2, 2, {2})
    assert tokenizer.vocab_size == len(reference)
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.template_variables == {"bos_token": "<s>", "eos_token": "</s>"}


def test_sentencepiece_offsets_count_characters(tmp_path: Path) -> None:
    encoded = load_tokenizer(save_sentencepiece(tmp_path, None)).encode_batch(["</s>é≥"])[0]
    # </s>, the prefix space, two bytes of é, one piece for ≥
    assert encoded.starts_T.tolist() == [0, 4, 4, 4, 5]
    assert encoded.ends_T.tolist() == [4, 4, 4, 5, 6]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "holds no tokenizer"),
        ({"tokenizer.json": "{"}, "the tokenizer cannot be loaded"),
        ({"tokenizer.model": "text"}, "not a sentencepiece model"),
    ],
)
def test_folders_without_a_usable_tokenizer(tmp_path: Path, content: dict[str, str], said: str) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_eos(tmp_path: Path) -> None:
    folder = save_byte_level(tmp_path, PLAIN)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(UserError, match="has no eos_token"):
        load_tokenizer(folder)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such tokenizer folder"):
        load_tokenizer(tmp_path / "none")

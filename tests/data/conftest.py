"""Tokenizers trained here and now, small but of the kinds that real checkpoints carry."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from qedmeg.data.tokenizer import Tokenizer as QedmegTokenizer
from qedmeg.data.tokenizer import load_tokenizer

# The form of Qwen's template: a turn is <|im_start|>role\ncontent<|im_end|>\n.
TURN = "{{ '<|im_start|>' + message.role + '\\n' }}{BODY}"
LOOP = "{% for message in messages %}" + TURN + "{% endfor %}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
PLAIN = LOOP.replace("{BODY}", "{{ message.content + '<|im_end|>\\n' }}") + PROMPT
MARKED = (
    LOOP.replace(
        "{BODY}",
        "{% if message.role == 'assistant' %}{% generation %}{{ message.content + '<|im_end|>\\n' }}{% endgeneration %}"
        "{% else %}{{ message.content + '<|im_end|>\\n' }}{% endif %}",
    )
    + PROMPT
)
CORPUS = [
    f"Prove that n^2 + {i} is even. Let n = 2k + 1; then (x - {i})^2 ≥ 0, so\n\nthe sum is {i}. user assistant system"
    for i in range(60)
]


def save_byte_level(folder: Path, template: str | None, *, trim_offsets: bool = False) -> Path:
    """A Hugging Face folder with a byte-level BPE tokenizer of Qwen's kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def save_sentencepiece(folder: Path, template: str | None) -> Path:
    """A bare sentencepiece model of Llama 2's kind: control symbols <s> and </s>, byte fallback, no normalisation."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=360,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        num_threads=1,
        minloglevel=2,
    )
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder / "tokenizer.model"


@pytest.fixture(scope="session")
def marked_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_level(tmp_path_factory.mktemp("marked"), MARKED)


@pytest.fixture(scope="session")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_level(tmp_path_factory.mktemp("plain"), PLAIN)


@pytest.fixture(scope="session")
def marked(marked_folder: Path) -> QedmegTokenizer:
    return load_tokenizer(marked_folder)


@pytest.fixture(scope="session")
def plain(plain_folder: Path) -> QedmegTokenizer:
    return load_tokenizer(plain_folder)

"""What is trained on, checked token by token on conversations that fit on a line."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from qedmeg.data.chat import AssistantMask, Conversation, Document, check_mask, check_template, tokenise, trim_after_end
from qedmeg.data.tokenizer import Tokenizer, load_tokenizer
from qedmeg.errors import UserError
from tests.data.conftest import LOOP, MARKED, PLAIN, PROMPT, save_byte_level, save_sentencepiece


def conversation(*contents: str, where: str = "rows.jsonl: row 7") -> Conversation:
    roles = ["user", "assistant"] * len(contents)
    messages = tuple({"role": role, "content": text} for role, text in zip(roles, contents, strict=False))
    return Conversation(messages, where)


def trained(tokenizer: Tokenizer, document: Document) -> list[str]:
    """The texts of the runs of trained tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], document.mask_T, [0]])))
    return [tokenizer.decode(document.tokens_T[a:b].tolist()) for a, b in edges.reshape(-1, 2)]


def with_template(tokenizer: Tokenizer, template: str) -> Tokenizer:
    return dataclasses.replace(tokenizer, chat_template=template)


@pytest.mark.parametrize("how", ["template", "prefix"])
def test_the_assistants_text_and_end_token_are_trained_on(marked: Tokenizer, how: AssistantMask) -> None:
    (document,) = tokenise(marked, [conversation("Prove x ≥ 0", "\n\nLet é 𝔽.\n")], how)
    whole = "<|im_start|>user\nProve x ≥ 0<|im_end|>\n<|im_start|>assistant\n\n\nLet é 𝔽.\n<|im_end|>\n"
    assert marked.decode(document.tokens_T.tolist()) == whole
    # the newline after <|im_end|> stands inside {% generation %} and is not trained on all the same
    assert trained(marked, document) == ["\n\nLet é 𝔽.\n<|im_end|>"]
    assert (document.tokens_T.dtype, document.mask_T.dtype) == (np.int32, np.bool_)


@pytest.mark.parametrize("how", ["template", "prefix"])
def test_every_assistant_turn_is_trained_on(marked: Tokenizer, how: AssistantMask) -> None:
    turns = Conversation(({"role": "system", "content": "S"}, *conversation("a", "b", "c", "d").messages), "x")
    assert trained(marked, tokenise(marked, [turns], how)[0]) == ["b<|im_end|>", "d<|im_end|>"]


def test_both_ways_agree_in_one_batch(marked: Tokenizer) -> None:
    rows = [conversation("a" * n, "Let n = 2k + 1.\n" * n, "why", "so") for n in range(1, 6)]
    by_template, by_prefix = tokenise(marked, rows, "template"), tokenise(marked, rows, "prefix")
    for one, other in zip(by_template, by_prefix, strict=True):
        np.testing.assert_array_equal(one.tokens_T, other.tokens_T)
        np.testing.assert_array_equal(one.mask_T, other.mask_T)


def test_trimmed_offsets_train_on_no_prompt(tmp_path: Path) -> None:
    """A tokenizer that trims white space from its offsets gives the prompt's last newline the place after it."""
    tokenizer = load_tokenizer(save_byte_level(tmp_path, MARKED, trim_offsets=True))
    (document,) = tokenise(tokenizer, [conversation("a", "\n b \n")], "template")
    assert trained(tokenizer, document) == ["\n b \n<|im_end|>"]


@pytest.mark.parametrize("how", ["template", "prefix"])
def test_sentencepiece(tmp_path: Path, how: AssistantMask) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{% generation %}{{ ' ' + m.content + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    tokenizer = load_tokenizer(save_sentencepiece(tmp_path, template))
    check_template(tokenizer, how)
    (document,) = tokenise(tokenizer, [conversation("a", "é b", "c", "Let n")], how)
    assert tokenizer.decode(document.tokens_T.tolist()) == "<s>[INST] a [/INST] é b</s><s>[INST] c [/INST] Let n</s>"
    assert [text.strip() for text in trained(tokenizer, document)] == ["é b</s>", "Let n</s>"]


def test_the_first_byte_token_of_an_answer_is_trained_on(tmp_path: Path) -> None:
    """Of the bytes of a character, sentencepiece gives the place to the last one; the others stand nowhere."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}"
        "{% else %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    tokenizer = load_tokenizer(save_sentencepiece(tmp_path, template))
    for how in ("template", "prefix"):
        (document,) = tokenise(tokenizer, [conversation("é", "é")], how)
        # the prefix space, é of the prompt in two bytes, é of the answer in two, </s>
        assert document.mask_T.tolist() == [False, False, False, True, True, True]


def test_a_template_without_marks_names_the_other_setting(plain: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"has no \{% generation %\} marks.*set data.assistant_mask=prefix"):
        check_template(plain, "template")
    check_template(plain, "prefix")


def test_no_template_at_all(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_byte_level(tmp_path, None))
    with pytest.raises(UserError, match=r"no chat template; set data\.chat_template"):
        check_template(tokenizer, "prefix")


def test_a_template_that_is_not_prefix_preserving_is_refused(plain: Tokenizer) -> None:
    # earlier assistant turns are rendered without their reasoning, as reasoning models' templates do
    forgetful = LOOP.replace(
        "{BODY}", "{{ (message.content if loop.last else message.content.split('</think>')[-1]) + '<|im_end|>\\n' }}"
    )
    rows = [conversation("a", "<think>x</think>b", "c", "d")]
    with pytest.raises(
        UserError, match=r"row 7: message 2: .* not prefix-preserving.*assistant_mask=template"
    ) as caught:
        tokenise(with_template(plain, forgetful + PROMPT), rows, "prefix")
    assert "'<" in str(caught.value)
    assert "'b<|im_end|>" in str(caught.value)
    (document,) = tokenise(with_template(plain, forgetful + PROMPT), [conversation("a", "<think>x</think>b")], "prefix")
    assert trained(plain, document) == ["<think>x</think>b<|im_end|>"]


def test_a_prompt_that_merges_into_the_answer_is_refused(plain: Tokenizer) -> None:
    # the generation prompt ends in "Le", the whole conversation has the one token "Let"
    template = (
        "{{ messages[0].content }}"
        "{% if add_generation_prompt %}Le{% else %}{{ messages[1].content }}<|im_end|>{% endif %}"
    )
    assert len(plain.encode("Le")) == 1
    with pytest.raises(UserError, match="not prefix-preserving"):
        tokenise(with_template(plain, template), [conversation("a ", "Lo")], "prefix")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (LOOP.replace("{BODY}", "{% generation %}{% endgeneration %}{{ message.content }}"), "loss mask is empty"),
        ("{% generation %}{{ messages[0].content }}<|im_end|>{% endgeneration %}", "loss mask is all ones"),
        (
            MARKED.replace("<|im_end|>\\n' }}{% endgeneration %}", "' }}{% endgeneration %}<|im_end|>"),
            "without its end token",
        ),
        ("{% generation %}{{ raise_exception('roles!') }}{% endgeneration %}", "chat template of .* fails: roles!"),
        ("{% generation %}{{ messages[9].content + 1 }}{% endgeneration %}", "chat template of .* fails"),
        ("{% generation %}{% if %}{% endgeneration %}", "chat template of .* fails"),
        (
            "{% generation %}{{ ''.__class__.__mro__[1].__subclasses__() }}{% endgeneration %}",
            "fails: .*unsafe|fails: .*undefined",
        ),
    ],
)
def test_masks_that_would_train_something_else_are_refused(plain: Tokenizer, template: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        tokenise(with_template(plain, template), [conversation("a", "b")], "template")
    assert str(caught.value).startswith("rows.jsonl: row 7")


def test_one_turn_without_end_token_among_several(marked: Tokenizer) -> None:
    tokens_T = np.asarray([5, 6, 2, 5, 7, 8, 5], dtype=np.int32)
    good = Document(tokens_T, np.asarray([0, 1, 1, 0, 0, 0, 0], dtype=np.bool_))
    check_mask(good, frozenset({2}), "x")
    bad = Document(tokens_T, np.asarray([0, 1, 1, 0, 1, 1, 0], dtype=np.bool_))
    with pytest.raises(UserError, match="x: an assistant turn would be trained on without its end token"):
        check_mask(bad, frozenset({2}), "x")


def test_what_follows_the_end_token_is_trimmed() -> None:
    tokens_T = np.asarray([5, 6, 2, 9, 9, 7, 2, 8, 3, 9], dtype=np.int32)
    mask_T = np.asarray([0, 1, 1, 1, 0, 1, 1, 1, 1, 1], dtype=np.bool_)
    assert trim_after_end(tokens_T, mask_T, frozenset({2, 3})).tolist() == [
        bool(x) for x in [0, 1, 1, 0, 0, 1, 1, 1, 1, 0]
    ]


@pytest.mark.parametrize(
    ("contents", "number"), [(("a<|im_end|>\n<|im_start|>assistant\n", "b"), 1), (("a", "b<|endoftext|>"), 2)]
)
def test_control_tokens_as_text_are_refused(marked: Tokenizer, contents: tuple[str, str], number: int) -> None:
    with pytest.raises(UserError, match=rf"row 7: message {number} holds the control token '<\|"):
        tokenise(marked, [conversation(*contents)], "template")


def test_plain_and_marked_templates_render_alike(marked: Tokenizer, plain: Tokenizer) -> None:
    assert PLAIN != MARKED
    rows = [conversation("a", "b")]
    np.testing.assert_array_equal(
        tokenise(plain, rows, "prefix")[0].tokens_T, tokenise(marked, rows, "template")[0].tokens_T
    )

"""Conversations to tokens, with the mask of what is trained on: the assistant's turns, each with its end token.

Two ways to find the turns (DataConfig.assistant_mask). `template`: the {% generation %} marks of the chat template give
the characters the assistant wrote. `prefix`: the conversation is rendered up to each assistant turn with the generation
prompt, and that rendering must be, token for token, the beginning of the whole one: what is trained on is then exactly
what the model is asked for when it generates. Whatever a template puts after the end token is not trained on.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from transformers.utils.chat_template_utils import render_jinja_template

from qedmeg.data.tokenizer import Encoded, Tokenizer
from qedmeg.errors import UserError
from qedmeg.thinking import THINK

AssistantMask = Literal["template", "prefix"]
_GENERATION_MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


@dataclass(frozen=True)
class Conversation:
    """Messages {role, content, ...} that alternate and end with the assistant's, and where they were read."""

    messages: tuple[dict[str, Any], ...]
    where: str
    """`file: row 3: column 'messages'`, for error messages."""


@dataclass(frozen=True)
class Document:
    """The tokens of one conversation; `mask_T` is True where a token is trained on."""

    tokens_T: npt.NDArray[np.int32]
    mask_T: npt.NDArray[np.bool_]


def check_template(tokenizer: Tokenizer, how: AssistantMask) -> None:
    """Raise UserError where the tokenizer has no chat template, or one without the marks that `how` needs."""
    if tokenizer.chat_template is None:
        raise UserError(
            f"{tokenizer.name}: the tokenizer has no chat template; set data.chat_template to a .jinja file"
        )
    if how == "template" and not _GENERATION_MARK.search(tokenizer.chat_template):
        raise UserError(
            f"{tokenizer.name}: the chat template has no {{% generation %}} marks, which "
            "data.assistant_mask='template' needs; set data.assistant_mask=prefix, or mark the assistant's text, end "
            "token included, with {% generation %} and {% endgeneration %} in a template of your own "
            "(data.chat_template)"
        )


def tokenise(tokenizer: Tokenizer, conversations: Sequence[Conversation], how: AssistantMask) -> list[Document]:
    """A document for each conversation, its mask checked. Raises UserError naming the row."""
    for conversation in conversations:
        _refuse_control_tokens(tokenizer, conversation)
    masked = _by_template if how == "template" else _by_prefix
    documents = [
        Document(tokens_T, trim_after_end(tokens_T, mask_T, tokenizer.end_ids))
        for tokens_T, mask_T in masked(tokenizer, conversations)
    ]
    for document, conversation in zip(documents, conversations, strict=True):
        check_mask(document, tokenizer.end_ids, conversation.where)
    return documents


def tokenise_prompts(tokenizer: Tokenizer, conversations: Sequence[Conversation]) -> list[npt.NDArray[np.int32]]:
    """The tokens that a model is given to answer each conversation, the generation prompt at their end.

    Raises UserError naming the row where the template fails or a message holds a control token as text.
    """
    for conversation in conversations:
        _refuse_control_tokens(tokenizer, conversation)
    texts = [
        _render(tokenizer, conversation, len(conversation.messages), prompt=True)[0] for conversation in conversations
    ]
    return [encoded.ids_T for encoded in tokenizer.encode_batch(texts)]


def opens_thought(tokenizer: Tokenizer) -> bool:
    """Whether what a model is given to answer ends with `<think>`: the answer is then thinking until it ends that.

    Raises UserError where the chat template fails.
    """
    asked = Conversation(({"role": "user", "content": "Prove it."},), tokenizer.name)
    return _render(tokenizer, asked, 1, prompt=True)[0].rstrip().endswith(THINK)


def trim_after_end(
    tokens_T: npt.NDArray[np.int32], mask_T: npt.NDArray[np.bool_], end_ids: frozenset[int]
) -> npt.NDArray[np.bool_]:
    """The mask without what follows the last end token of each of its runs (a newline, in many templates)."""
    trimmed_T = mask_T.copy()
    is_end_T = np.isin(tokens_T, list(end_ids))
    for start, stop in _runs(mask_T):
        ends = np.flatnonzero(is_end_T[start:stop])
        if len(ends):
            trimmed_T[start + ends[-1] + 1 : stop] = False
    return trimmed_T


def check_mask(document: Document, end_ids: frozenset[int], where: str) -> None:
    """Raise UserError naming the row where a mask is empty, is all ones, or leaves an end token out.

    Each of the three trains something else than was meant while the loss falls as it should.
    """
    runs = _runs(document.mask_T)
    if not runs:
        raise UserError(f"{where}: nothing would be trained on: the loss mask is empty")
    if document.mask_T.all():
        raise UserError(
            f"{where}: the prompt would be trained on: the loss mask is all ones; the {{% generation %}} marks of the "
            "chat template must hold the assistant's text alone"
        )
    if any(int(document.tokens_T[stop - 1]) not in end_ids for _, stop in runs):
        raise UserError(
            f"{where}: an assistant turn would be trained on without its end token, so that the model would never "
            "stop; the chat template must write it (eos or the like), inside {% generation %} where it has such marks"
        )


def _by_template(
    tokenizer: Tokenizer, conversations: Sequence[Conversation]
) -> list[tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]]:
    texts, spans = [], []
    for conversation in conversations:
        text, marked = _render(tokenizer, conversation, len(conversation.messages), marks=True)
        texts.append(text)
        spans.append(marked)
    encoded = tokenizer.encode_batch(texts)
    return [(tokens.ids_T, _mask_of_spans(tokens, marked)) for tokens, marked in zip(encoded, spans, strict=True)]


def _by_prefix(
    tokenizer: Tokenizer, conversations: Sequence[Conversation]
) -> list[tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]]:
    # For each conversation the whole and, for each assistant turn, what comes before it and what goes through it.
    wholes: list[str] = []
    parts: list[list[tuple[int, str, str]]] = []
    for conversation in conversations:
        messages = conversation.messages
        wholes.append(_render(tokenizer, conversation, len(messages))[0])
        parts.append(
            [
                (i, _render(tokenizer, conversation, i, prompt=True)[0], _render(tokenizer, conversation, i + 1)[0])
                for i, message in enumerate(messages)
                if message["role"] == "assistant"
            ]
        )
    # All in one batch, for the tokenizer's threads, and each once: through the last turn is the whole again.
    texts = list(dict.fromkeys([*wholes, *(text for turns in parts for _, *pair in turns for text in pair)]))
    ids = {text: encoded.ids_T for text, encoded in zip(texts, tokenizer.encode_batch(texts), strict=True)}

    masked = []
    for conversation, whole, turns in zip(conversations, wholes, parts, strict=True):
        whole_T = ids[whole]
        mask_T = np.zeros(len(whole_T), dtype=np.bool_)
        for turn, before, through in turns:
            for part in (before, through):
                _check_prefix(tokenizer, ids[part], whole_T, f"{conversation.where}: message {turn + 1}")
            mask_T[len(ids[before]) : len(ids[through])] = True
        masked.append((whole_T, mask_T))
    return masked


def _check_prefix(
    tokenizer: Tokenizer, part_T: npt.NDArray[np.int32], whole_T: npt.NDArray[np.int32], where: str
) -> None:
    common = min(len(part_T), len(whole_T))
    differs = np.flatnonzero(part_T[:common] != whole_T[:common])
    if len(differs) == 0 and len(part_T) <= len(whole_T):
        return
    at = int(differs[0]) if len(differs) else common
    alone, within = (tokenizer.decode(ids_T[at : at + 4].tolist()) for ids_T in (part_T, whole_T))
    raise UserError(
        f"{where}: the chat template is not prefix-preserving, which data.assistant_mask='prefix' needs: rendered up "
        f"to here, token {at} begins {alone!r}, within the whole conversation {within!r}; set "
        "data.assistant_mask=template with a template that has {% generation %} marks, or give a template "
        "(data.chat_template) that renders a turn alike wherever it stands"
    )


def _mask_of_spans(tokens: Encoded, spans: Sequence[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """True for the tokens that stand for a character within one of the spans."""
    mask_T = np.zeros(len(tokens.ids_T), dtype=np.bool_)
    empty_T = tokens.starts_T == tokens.ends_T  # byte tokens of a character that a later token ends
    for start, stop in spans:
        overlaps_T = (tokens.starts_T < stop) & (tokens.ends_T > start)
        mask_T |= np.where(empty_T, (tokens.starts_T >= start) & (tokens.starts_T < stop), overlaps_T)
    return mask_T


def _runs(mask_T: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(start, stop) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask_T, [False]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _render(
    tokenizer: Tokenizer, conversation: Conversation, messages: int, *, prompt: bool = False, marks: bool = False
) -> tuple[str, list[tuple[int, int]]]:
    """The text of the first `messages` messages and, with `marks`, the character spans of {% generation %} blocks.

    transformers' renderer: a sandbox that knows the `generation` tag and the functions that templates use.
    """
    try:
        texts, spans = render_jinja_template(
            [list(conversation.messages[:messages])],
            chat_template=tokenizer.chat_template,
            add_generation_prompt=prompt,
            return_assistant_tokens_mask=marks,
            **tokenizer.template_variables,
        )
    except Exception as error:  # a template may fail with anything: its own raise_exception, TypeError, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{conversation.where}: the chat template of {tokenizer.name} fails: {reason}") from None
    return texts[0], spans[0] if marks else []


@functools.lru_cache(maxsize=8)
def _control_pattern(tokenizer: Tokenizer) -> re.Pattern[str]:
    texts = tokenizer.special_texts | {tokenizer.decode([token]) for token in tokenizer.end_ids}
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=lambda text: (-len(text), text))))


def control_token(tokenizer: Tokenizer, text: str) -> str | None:
    """The first control token that the text spells; None where it spells none."""
    found = _control_pattern(tokenizer).search(text)
    return found[0] if found else None


def _refuse_control_tokens(tokenizer: Tokenizer, conversation: Conversation) -> None:
    # Text that spells a control token becomes one: a turn would end, or another begin, in the middle of a proof.
    for number, message in enumerate(conversation.messages, start=1):
        for value in message.values():
            found = control_token(tokenizer, value) if isinstance(value, str) else None
            if found:
                raise UserError(
                    f"{conversation.where}: message {number} holds the control token {found!r} as text; "
                    "remove it from the row"
                )

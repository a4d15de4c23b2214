"""Questions whose answer is read: what cannot be read is asked for once more."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from qedmeg.grading.verdict import NoVerdict
from qedmeg.reasoning.call import Call, Message, Reply
from qedmeg.reasoning.session import Session

T = TypeVar("T")
Read = TypeVar("Read", covariant=True)


@dataclass(frozen=True)
class Question(Generic[Read]):
    """A call, and how the text of its reply is read."""

    call: Call
    read: Callable[[str], Read]
    """Raises `NoVerdict`, whose message names no more of the text than the form that is missing."""


async def ask_read(session: Session, questions: Sequence[Question[T]]) -> list[T | None]:
    """The answers to questions that run side by side, in their order.

    Those that cannot be read are asked for once more, at `<path>/again`, with a word on what was missing; None where
    that cannot be read either. A reply that was cut off is read like any other: it mostly ends before its verdict.

    Raises:
        BudgetSpentError, ModelFailedError: as `Session.ask_all`.
    """
    replies = await session.ask_all([question.call for question in questions])
    found = [_read(question, reply) for question, reply in zip(questions, replies, strict=True)]
    unread = {place: answer for place, answer in enumerate(found) if isinstance(answer, NoVerdict)}
    replies = await session.ask_all([_again(questions[place].call, reason) for place, reason in unread.items()])
    for place, reply in zip(unread, replies, strict=True):
        found[place] = _read(questions[place], reply)
    return [None if isinstance(answer, NoVerdict) else answer for answer in found]


def _read(question: Question[T], reply: Reply) -> T | NoVerdict:
    try:
        return question.read(reply.text)
    except NoVerdict as reason:
        return reason


def _again(call: Call, reason: NoVerdict) -> Call:
    last = call.messages[-1]
    note = f"An earlier answer to this could not be read: {reason}. Keep exactly to the form that is asked for."
    asked = Message(last.role, f"{last.content}\n\n{note}")
    return replace(call, path=f"{call.path}/again", messages=(*call.messages[:-1], asked))

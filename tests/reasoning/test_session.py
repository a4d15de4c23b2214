"""Shares of a budget, what is counted, and a scaffold in a model's place when its budget ends."""

import asyncio

import pytest

from qedmeg.reasoning.call import Call, Message, Reply
from qedmeg.reasoning.session import BudgetSpentError, ScaffoldModel, Session, attempt
from tests.reasoning.scripted_model import PROBLEM, MemoryLog, ScriptedModel, cut, said


def call(path: str, max_tokens: int | None = None) -> Call:
    return Call(path, "prover", (Message("user", path),), max_tokens)


def test_calls_side_by_side_share_what_is_left() -> None:
    model = ScriptedModel(lambda call: "x")
    session = Session(PROBLEM, {"prover": model}, MemoryLog(), budget=100)
    asyncio.run(session.ask_all([call("a"), call("b", 20), call("c", 50)]))
    assert [one.max_tokens for one in model.calls] == [33, 20, 33]
    assert (session.tokens, session.replies, session.cut_off, session.seconds) == (30, 3, 0, 1.5)
    asyncio.run(session.ask(call("d")))
    assert model.calls[-1].max_tokens == 70
    with pytest.raises(BudgetSpentError, match="40 of 100 tokens are spent; 61 calls are left out"):
        asyncio.run(session.ask_all([call(f"e {n}") for n in range(61)]))
    assert asyncio.run(session.ask_all([])) == []


@pytest.mark.parametrize(
    ("replies", "ended"),
    [([said("x")], "done"), ([cut("x")], "length"), ([cut()], "length"), ([cut(), cut()], "done")],
)
def test_length_is_said_of_a_single_reply(replies: list[Reply], ended: str) -> None:
    async def scaffold(session: Session) -> str:
        for number in range(len(replies)):
            session.best = (await session.ask(call(str(number)))).text
        return session.best

    model = ScriptedModel(lambda call: replies[int(call.path)])
    assert asyncio.run(attempt(scaffold, Session(PROBLEM, {"prover": model}, MemoryLog()))).ended == ended


@pytest.mark.parametrize(
    ("budget", "text", "finish_reason"),
    [(9, "", "length"), (20, "two", "stop"), (25, "two", "stop"), (30, "three", "stop")],
)
def test_a_scaffold_in_a_models_place_whose_budget_ends(budget: int, text: str, finish_reason: str) -> None:
    """What it has then is its answer, and that is a whole one."""

    async def scaffold(session: Session) -> str:
        for word in ("one", "two", "three"):
            session.best = (await session.ask(call(word))).text or session.best
        return session.best

    model = ScaffoldModel("s", scaffold, {"prover": ScriptedModel(lambda call: call.path)})
    reply = asyncio.run(model.ask(call("outer", budget), MemoryLog()))
    assert (reply.text, reply.finish_reason) == (text, finish_reason)
    assert reply.tokens <= budget

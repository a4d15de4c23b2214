"""Reason, summarise, reason: who is shown what, and what is kept."""

import asyncio

import pytest
from pydantic import ValidationError

from qedmeg.reasoning.call import Call
from qedmeg.reasoning.reasoning_cache import (
    CachePrompts,
    Keep,
    ReasoningCacheSettings,
    State,
    next_state,
    reason_messages,
    run_rounds,
    summarised,
    summary_messages,
)
from qedmeg.reasoning.session import Session
from tests.reasoning.scripted_model import (
    PROBLEM,
    MemoryLog,
    Script,
    ScriptedModel,
    by_path,
    content,
    cut,
    echo,
    run,
    said,
    shown,
)


def thinking(call: Call) -> object:
    return said(echo(call), thinking=f"thinking of {call.path}")


def test_three_rounds_with_a_summary_between_two() -> None:
    solution, model = run("reasoning_cache", thinking)
    assert model.paths == [
        "round 1/reason",
        "round 1/summarise",
        "round 2/reason",
        "round 2/summarise",
        "round 3/reason",
    ]
    assert [call.role for call in model.calls] == ["prover", "summariser", "prover", "summariser", "prover"]
    assert [shown(call) for call in model.calls] == [
        {},
        {"work": "thinking of round 1/reason"},
        {"notes": "by round 1/summarise"},
        {"notes": "by round 1/summarise", "work": "thinking of round 2/reason"},
        {"notes": "by round 2/summarise"},
    ]
    assert solution.text == "by round 3/reason"
    assert "take the place of those until now" in content(model.call("round 2/summarise"))


def test_appended_summaries_stand_one_after_the_other() -> None:
    _, model = run("reasoning_cache", thinking, keep="append")
    assert "will stand after those until now" in content(model.call("round 2/summarise"))
    assert shown(model.call("round 3/reason")) == {"notes": "by round 1/summarise\n\nby round 2/summarise"}


def test_each_kind_of_call_has_its_budget() -> None:
    _, model = run("reasoning_cache", thinking, reason_tokens=30, summary_tokens=20)
    assert [call.max_tokens for call in model.calls] == [30, 20, 30, 20, 30]
    _, model = run("reasoning_cache", thinking, reason_tokens=30, budget=45)
    assert [call.max_tokens for call in model.calls] == [30, 35, 25, 15, 5]


def test_the_states_are_what_rounds_begin_with() -> None:
    model = ScriptedModel(thinking)
    session = Session(PROBLEM, {"prover": model}, MemoryLog())
    rounds = asyncio.run(run_rounds(session, ReasoningCacheSettings()))
    assert rounds.answer == "by round 3/reason"
    assert rounds.states == (
        State(PROBLEM, 1, ""),
        State(PROBLEM, 2, "by round 1/summarise"),
        State(PROBLEM, 3, "by round 2/summarise"),
    )
    # The pure functions make the very calls, for whoever generates by other means.
    for state in rounds.states:
        assert reason_messages(state) == model.call(f"round {state.round}/reason").messages
    asked = summary_messages(rounds.states[1], summarised("thinking of round 2/reason", "x"), "replace")
    assert asked == model.call("round 2/summarise").messages
    assert next_state(rounds.states[1], "by round 2/summarise", "replace") == rounds.states[2]


@pytest.mark.parametrize(
    ("keep", "summary", "kept"),
    [
        ("replace", " new\n", "new"),
        ("append", "new", "old\n\nnew"),
        ("replace", " ", "old"),
        ("append", "", "old"),
    ],
)
def test_the_step_to_the_next_state(keep: Keep, summary: str, kept: str) -> None:
    assert next_state(State("p", 2, "old"), summary, keep) == State("p", 3, kept)
    assert next_state(State("p", 1, ""), "new", keep) == State("p", 2, "new")


def test_a_summariser_of_its_own() -> None:
    prover, summariser = ScriptedModel(thinking), ScriptedModel(echo, "s")
    session = Session(PROBLEM, {"prover": prover, "summariser": summariser}, MemoryLog())
    asyncio.run(run_rounds(session, ReasoningCacheSettings(rounds=2)))
    assert prover.paths == ["round 1/reason", "round 2/reason"]
    assert summariser.paths == ["round 1/summarise"]


def test_thinking_without_an_answer_is_summarised_and_text_where_there_is_no_thinking() -> None:
    script = by_path({"round 1/reason": cut(thinking="long thoughts")}, echo)
    solution, model = run("reasoning_cache", script)
    assert shown(model.call("round 1/summarise")) == {"work": "long thoughts"}
    assert shown(model.call("round 2/summarise"))["work"] == "by round 2/reason"
    assert solution.text == "by round 3/reason"


@pytest.mark.parametrize(
    ("script", "answer", "calls"),
    [
        # The last answer that was not cut off; half of one only where there is no whole one.
        (by_path({"round 3/reason": cut("half")}, echo), "by round 2/reason", 5),
        (by_path({"round 3/reason": cut(thinking="long")}, echo), "by round 2/reason", 5),
        (by_path({f"round {n}/reason": cut(f"half {n}" if n == 1 else "") for n in (1, 2, 3)}, echo), "half 1", 4),
        # Nothing at all is not summarised.
        (by_path({f"round {n}/reason": cut() for n in (1, 2, 3)}, echo), "", 3),
    ],
)
def test_answers_that_were_cut_off(script: Script, answer: str, calls: int) -> None:
    solution, model = run("reasoning_cache", script)
    assert (solution.text, len(model.calls)) == (answer, calls)


def test_a_summary_that_was_cut_off_in_its_thinking_leaves_the_one_before() -> None:
    _, model = run("reasoning_cache", by_path({"round 2/summarise": cut(thinking="hm")}, echo))
    assert shown(model.call("round 3/reason")) == {"notes": "by round 1/summarise"}


def test_the_best_when_the_budget_ends() -> None:
    solution, model = run("reasoning_cache", echo, budget=20)
    assert (solution.text, solution.ended, len(model.calls)) == ("by round 1/reason", "budget spent", 2)
    solution, _ = run("reasoning_cache", echo, budget=49)  # the last call may take 9, and is cut off
    assert (solution.text, solution.ended) == ("by round 2/reason", "done")


def test_the_questions_can_be_put_in_other_words() -> None:
    prompts = CachePrompts(again="{problem} | {summary}", summarise="{problem} | {summary} | {reasoning}")
    _, model = run("reasoning_cache", thinking, prompts=prompts.model_dump(), rounds=2)
    assert [content(call) for call in model.calls] == [
        PROBLEM,
        f"{PROBLEM} |  | thinking of round 1/reason",
        f"{PROBLEM} | by round 1/summarise",
    ]


def test_a_text_that_names_another_is_not_filled_in_again() -> None:
    prompts = CachePrompts(again="{problem} | {summary}", summarise="{problem} | {summary} | {reasoning}")
    state = State("Prove {summary}.", 2, "See {reasoning} <|im_end|>.")
    (message,) = summary_messages(state, "{problem}", "replace", prompts)
    assert message.content == "Prove {summary}. | See {reasoning} < |im_end|>. | {problem}"


def test_words_without_a_place_for_a_text_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"again 'Go on' does not hold \{problem\}"):
        CachePrompts(again="Go on", summarise="{problem} {summary} {reasoning}")

"""One call, whose text is the answer as far as it goes."""

import pytest

from qedmeg.reasoning.call import Reply
from tests.reasoning.scripted_model import PROBLEM, content, cut, run, said


def test_asks_once_and_answers_with_the_text() -> None:
    solution, model = run("single", lambda call: said(" A proof.\n", thinking="Hm."))
    assert model.paths == ["prove"]
    assert f"# Problem\n\n{PROBLEM}\n\n# Your answer" in content(model.calls[0])
    assert (solution.text, solution.ended, solution.tokens, solution.seconds) == ("A proof.", "done", 10, 0.5)


@pytest.mark.parametrize(("reply", "text"), [(cut(thinking="Hm"), ""), (cut("Half a"), "Half a")])
def test_a_reply_that_was_cut_off_is_the_answer_as_it_is(reply: Reply, text: str) -> None:
    solution, _ = run("single", lambda call: reply)
    assert (solution.text, solution.ended) == (text, "length")


def test_the_budget_is_the_most_that_the_call_may_take() -> None:
    solution, model = run("single", lambda call: "A proof.", budget=12)
    assert (model.calls[0].max_tokens, solution.text, solution.tokens) == (12, "A proof.", 10)
    assert run("single", lambda call: "A proof.", budget=0)[0].ended == "budget spent"

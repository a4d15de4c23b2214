"""The last answer that is marked is found, whole and however it is marked; none is made up."""

import time

import pytest

from qedmeg.grading.final_answer import final_answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"So \boxed{5}.", "5"),
        (r"First \boxed{4}. No: \boxed{\frac{1}{2}} it is.", r"\frac{1}{2}"),
        (r"$\boxed{\{1, 2\}}$", r"\{1, 2\}"),
        (r"$\boxed{\left\{ x : x^{2} > 0 \right.}$", r"\left\{ x : x^{2} > 0 \right."),
        (r"\boxed {f(x)=2x}", "f(x)=2x"),
        (r"\fbox{7}", "7"),
        (r"\boxed{\boxed{7}}", r"\boxed{7}"),
        (r"$\boxed{1}$ and $\boxed{2}$.", "1 , 2"),
        (r"$\boxed{1}$, $\boxed{2}$ or $\boxed{3}$", "1 , 2 , 3"),
        (r"Case one gives \boxed{1}. Hence the sum is \boxed{2}.", "2"),
        (r"\boxed{5} and so on, but \boxed{6", "5"),
        (r"\boxed{} \boxed{5} \boxed{ }", "5"),
        (r"} { \boxed{5}", "5"),
        (r"<think>\boxed{4}</think>\boxed{5}", "5"),
        (r"<think>\boxed{4}</think>It is hard.", None),
        ("It is clear.\n\nAnswer: 5", "5"),
        ("**Answer:** $5$", "$5$"),
        ("**Final Answer**: 5 cm", "5 cm"),
        ("Hence the answer is 12.", "12."),
        ("Thus, the final answer is $x = 12$.", "$x = 12$."),
        ("The answer is: 12", "12"),
        ("## Final answer\n\n$n = 3$", "$n = 3$"),
        ("Answer: 4\nAnswer: 5", "5"),
        ("Answer: 4\n" + "More is said.\n" * 10, None),
        (r"Answer: 4. In short: \boxed{5}", "5"),
        ("We answer this at once: it is 5.", None),
        ("5", None),
        ("", None),
    ],
)
def test_what_is_marked(response: str, answer: str | None) -> None:
    assert final_answer(response) == answer


@pytest.mark.parametrize("piece", [r"\boxed{", r"\boxed{1}", "{", "}", "\\", "answer: ", "$ and", r"\boxed{1} and "])
def test_takes_linear_time(piece: str) -> None:
    started = time.perf_counter()
    final_answer(piece * (1_000_000 // len(piece)))
    assert time.perf_counter() - started < 5

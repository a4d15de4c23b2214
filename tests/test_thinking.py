"""Thinking is told from what follows it."""

import pytest

from qedmeg.thinking import split_thinking


@pytest.mark.parametrize(
    ("content", "thinking", "text"),
    [
        ("Clear.", "", "Clear."),
        ("<think>Hm.</think>Clear.", "Hm.", "Clear."),
        ("Hm.</think>\n\nClear.", "Hm.", "Clear."),
        ("<think>Hm. I was cut", "Hm. I was cut", ""),
        ("<think>a</think>b</think>c", "a</think>b", "c"),
        ("", "", ""),
    ],
)
def test_thinking_is_told_apart(content, thinking, text):
    assert split_thinking(content) == (thinking, text)


@pytest.mark.parametrize(
    ("content", "split"),
    [("hm</think>so.", ("hm", "so.")), ("hm", ("hm", "")), ("<think>hm", ("hm", "")), ("", ("", ""))],
)
def test_after_a_prompt_that_opens_it_all_is_thinking_until_it_ends(content, split):
    assert split_thinking(content, begun=True) == split

"""Where a model's thinking ends and its final message begins, in texts that hold both."""

THINK, END_OF_THINK = "<think>", "</think>"


def split_thinking(content: str, *, begun: bool = False) -> tuple[str, str]:
    """The thinking and the final message of a text that may hold both: what stands before the last `</think>` is
    thinking, and all of a text is that begins with `<think>` and never ends it. `begun`: the prompt ended with that.

    >>> split_thinking("<think>Hm.</think>Clear.")
    ('Hm.', 'Clear.')
    """
    thinking, mark, text = content.rpartition(END_OF_THINK)
    if not mark:
        begun = begun or content.lstrip().startswith(THINK)
        thinking, text = (content, "") if begun else ("", content)
    return thinking.strip().removeprefix(THINK).strip(), text.strip()

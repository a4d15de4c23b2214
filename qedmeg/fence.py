"""Text that a model wrote, in a prompt to another one: between lines with a key that its author cannot know, and
without anything that a server would take for a mark of its chat template."""

import hashlib
import re


def harmless(text: str) -> str:
    """The text with a space after each `<` and before each `[` of a word in capitals, so that none of a chat
    template's marks (`<|im_end|>`, `</s>`, `[INST]`) is left in it: some servers take them at their word wherever they
    stand."""
    return re.sub(r"<(?=[^\s=])", "< ", re.sub(r"\[(?=/?[A-Z_]{2,}\])", "[ ", text))


def make_key(*texts: str) -> str:
    """64 bits made from all that is in a prompt and found nowhere in it: the same for the same prompt."""
    whole = "\0".join(texts)
    digest = hashlib.sha256(whole.encode("utf-8", errors="replace"))
    while (key := digest.hexdigest()[:16]) in whole:
        digest.update(b"once more")
    return key


def sendable(text: str) -> str:
    """The text as UTF-8, and so a request or a file, can carry it: a lone surrogate becomes a question mark."""
    return text.encode("utf-8", errors="replace").decode("utf-8")

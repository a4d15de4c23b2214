"""What a scaffold's models are told: the problem, the texts of other models in fences, and the form of the answer."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import jinja2

from qedmeg.fence import harmless, make_key, sendable
from qedmeg.grading.verdict import NoVerdict
from qedmeg.reasoning.call import Message

Shown = str | int | bool | Sequence[str]
_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("qedmeg.reasoning"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Prompt:
    """One question. It is a single message, so that a scaffold may stand where a model is asked."""

    messages: tuple[Message, ...]
    key: str
    """Stands in the fences and in the verdict; whoever wrote the texts in the fences cannot know it."""


def make_prompt(template: str, problem: str, **shown: Shown) -> Prompt:
    """The prompt of `templates/<template>.jinja` about a problem. All texts in `shown` are taken for a model's. The
    same texts give the same prompt."""
    safe = {name: _safe(value) for name, value in shown.items()}
    key = make_key(template, problem, *(text for value in safe.values() for text in _texts(value)))
    text = _ENVIRONMENT.get_template(f"{template}.jinja").render(problem=problem, key=key, **safe)
    return Prompt((Message("user", sendable(text.strip())),), key)


def read_blocks(text: str, name: str, key: str) -> list[str]:
    """What stands between the lines `<name KEY>` and `</name KEY>`, block by block, without blank ends.

    Raises `NoVerdict` where there is none, or where the last one does not end: what it would have said is not known.
    Takes time linear in the length of the text.
    """
    start, end = f"<{name} {key}>", f"</{name} {key}>"
    parts = text.split(start)[1:]
    if not parts:
        raise NoVerdict(f"it has no {start}")
    if end not in parts[-1]:
        raise NoVerdict(f"its last {start} is not followed by {end}")
    return [part.partition(end)[0].strip() for part in parts if end in part]


def read_verdict(text: str, key: str) -> str:
    """What stands in the last verdict. Raises `NoVerdict`."""
    return read_blocks(text, "verdict", key)[-1]


def prompts_hash() -> str:
    """Changes with the wording of the prompts."""
    digest = hashlib.sha256()
    for name in sorted(_ENVIRONMENT.list_templates()):
        digest.update(files("qedmeg.reasoning").joinpath("templates", name).read_bytes())
    return digest.hexdigest()


def _safe(value: Shown) -> Shown:
    if isinstance(value, int):
        return value
    return harmless(value) if isinstance(value, str) else tuple(harmless(text) for text in value)


def _texts(value: Shown) -> Sequence[str]:
    return [str(value)] if isinstance(value, (str, int)) else value

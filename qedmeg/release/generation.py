"""What a released folder generates with: tokenizer and chat template of the training, stops and sampling."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qedmeg.config import SFTConfig
from qedmeg.conversion.verify import TOKENIZER_FILES
from qedmeg.data.chat import Conversation, tokenise
from qedmeg.data.tokenizer import Tokenizer, load_tokenizer
from qedmeg.errors import UserError
from qedmeg.lineage.origin import RunSettings

TEMPLATE_FILE = "chat_template.jinja"


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled by default, and why so."""

    temperature: float
    max_new_tokens: int
    reason: str


def sampling(config: RunSettings, context: int) -> Sampling:
    """That of the run's rollouts. A fine-tuned model samples from its own distribution, for as long as the longest
    document that it was trained on; `context` is the model's."""
    if isinstance(config, SFTConfig):
        most = min(config.data.max_length, context)
        reason = (
            "fine-tuning samples nothing, so this is a choice: the model's own distribution, and as many tokens as the "
            "longest document in training could have"
        )
        return Sampling(1.0, most, reason)
    reason = "as the rollouts of the reinforcement learning were sampled"
    return Sampling(config.rollout.temperature, config.rollout.max_tokens, reason)


def put_tokenizer(folder: Path, config: RunSettings) -> Tokenizer:
    """Let a folder have the tokenizer and chat template that the run was given in place of the model's own.

    Raises:
        UserError: they are not there any more.
    """
    data = config.data
    if data.tokenizer is not None:
        _replace_tokenizer(folder, Path(data.tokenizer).expanduser())
    if data.chat_template is not None:
        path = data.chat_template.expanduser()
        if not path.is_file():
            raise UserError(f"{path}: the chat template of the run (data.chat_template) is not there any more")
        shutil.copyfile(path, folder / TEMPLATE_FILE)
        _edit_json(folder / "tokenizer_config.json", {"chat_template": None})
    _edit_json(folder / "tokenizer_config.json", {"name_or_path": None, "_name_or_path": None})
    return load_tokenizer(folder)


def _replace_tokenizer(folder: Path, source: Path) -> None:
    found = [source] if source.is_file() else [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not found:
        raise UserError(
            f"{source}: the tokenizer of the run (data.tokenizer) is no folder or file here; fetch it there, so that "
            "it can go into the release"
        )
    for name in TOKENIZER_FILES:
        (folder / name).unlink(missing_ok=True)
    for path in found:
        shutil.copyfile(path, folder / ("tokenizer.model" if path == source else path.name))


def write_generation_config(folder: Path, tokenizer: Tokenizer, how: Sampling, config: RunSettings) -> None:
    """Write `generation_config.json`. Nothing is taken from the base model's but its stops: its sampling is not that
    of this one. `top_p` 1 and `top_k` 0 cut nothing off, as training did not; transformers' own top_k is 50."""
    stops = sorted(_stops(tokenizer, config), key=lambda token: (token != tokenizer.eos_id, token))
    values = {
        "do_sample": True,
        "temperature": how.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "max_new_tokens": how.max_new_tokens,
        "eos_token_id": stops[0] if len(stops) == 1 else stops,
        "pad_token_id": tokenizer.pad_id,
    }
    (folder / "generation_config.json").write_text(json.dumps(values, indent=2) + "\n")


def _stops(tokenizer: Tokenizer, config: RunSettings) -> set[int]:
    """Where rollouts stopped; after fine-tuning also what ends an answer in the chat template, which is another token
    than a base model's own end."""
    if not isinstance(config, SFTConfig) or tokenizer.chat_template is None:
        return set(tokenizer.stop_ids)
    messages = ({"role": "user", "content": "Prove it."}, {"role": "assistant", "content": "It is so."})
    turn = Conversation(messages, "a turn of the chat template")
    (document,) = tokenise(tokenizer, [turn], config.data.assistant_mask)
    return {*tokenizer.stop_ids, int(document.tokens_T[document.mask_T][-1])}


def strip_paths(folder: Path) -> None:
    """Take out of `config.json` where the model once lay."""
    _edit_json(folder / "config.json", {"_name_or_path": None})


def _edit_json(path: Path, changes: dict[str, Any]) -> None:
    """Lay changes over an object in a file, None taking a field away; it is left as it is where nothing changes."""
    if not path.is_file():
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    edited = {name: value for name, value in (content | changes).items() if name not in changes or value is not None}
    if edited != content:
        path.write_text(json.dumps(edited, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

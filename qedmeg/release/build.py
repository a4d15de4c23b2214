"""A run's checkpoint as a folder to release: converted, proved, described, and whole or not there at all."""

import dataclasses
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qedmeg.conversion import report
from qedmeg.conversion.convert import hf_to_megatron, megatron_to_hf
from qedmeg.conversion.report import Check, Report
from qedmeg.conversion.stored import MegatronModel, nbytes
from qedmeg.conversion.verify import CHECKS, TOKENIZER_FILES, compare_tensors
from qedmeg.errors import UserError
from qedmeg.evaluation.serving import weights_hash
from qedmeg.lineage import stages as lineage
from qedmeg.lineage.origin import RunSettings, origin, read_run_settings
from qedmeg.lineage.stages import Stage
from qedmeg.model.checkpoint_folder import (
    complete_checkpoints,
    partial_folder,
    publish,
    read_checkpoint_folder,
)
from qedmeg.release.card import Release, card, settings_file
from qedmeg.release.checksums import SUMS_FILE, write_sums
from qedmeg.release.evaluated import read_evaluated
from qedmeg.release.generation import put_tokenizer, sampling, strip_paths, write_generation_config
from qedmeg.release.upload import TOKEN_VARIABLE

_KEPT = ("config.json", "generation_config.json", "model.safetensors.index.json", *TOKENIZER_FILES)
_KEPT_BEGINNINGS = ("license", "notice", "use_policy")
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")  # hold any text, and no paths
_SHORTEST_SECRET = 8


@dataclass(frozen=True)
class Request:
    """What is to be released, and what its card is told."""

    run: Path
    out: Path
    name: str
    """ORG/NAME, or a name without an owner."""
    step: int | None = None
    """None: the newest complete checkpoint."""
    results: Path | None = None
    evaluated: Sequence[str] = ()
    license: str | None = None
    base_model: str | None = None
    limits: str = ""
    overwrite: bool = False


def build(request: Request) -> Report:
    """Write the folder `request.out`; what was found of it. Where the report finds a difference nothing is written.

    Raises:
        UserError: the run has no such checkpoint, what its settings name is gone, or `out` cannot be written.
    """
    kind, config = read_run_settings(request.run)
    path = _checkpoint(request.run, request.step)
    with MegatronModel(read_checkpoint_folder(path)) as source:
        # the folder, and the checkpoint that it is converted back to
        partial = partial_folder(request.out, request.overwrite, 2 * nbytes(source), SUMS_FILE)
    try:
        found = _write(request, kind, config, path, partial)
        if found.equal:
            publish(partial, request.out, mark=False)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return found


def _checkpoint(run: Path, step: int | None) -> Path:
    found = complete_checkpoints(run)
    if not found:
        raise UserError(f"{run}: has no complete checkpoint; train until one is written")
    if step is None:
        return found[max(found)]
    if step not in found:
        raise UserError(f"--step: {run} has no complete checkpoint of step {step}; it has {_listed(found)}")
    return found[step]


def _listed(steps: dict[int, Path]) -> str:
    return ", ".join(map(str, sorted(steps)))


def _write(request: Request, kind: str, config: RunSettings, checkpoint: Path, partial: Path) -> Report:
    model = partial / "model"
    found = megatron_to_hf(checkpoint, model, checks=CHECKS)
    if found.equal:
        found = _with_round_trip(found, model, checkpoint, partial / "round-trip")
    found = dataclasses.replace(
        found, kind="release", first=f"{request.run.resolve().name}, {checkpoint.name}", second=request.name
    )
    if not found.equal:
        return found
    evaluated = read_evaluated(request.results, request.evaluated, weights_hash(model)) if request.results else []
    stages = origin(checkpoint)
    _keep(model, partial)
    tokenizer = put_tokenizer(partial, config)
    strip_paths(partial)
    with MegatronModel(read_checkpoint_folder(checkpoint)) as source:
        how = sampling(config, source.model.max_positions)
    write_generation_config(partial, tokenizer, how, config)
    report.write(found, partial, "verify")
    lineage.write(partial, stages)
    _write_settings(partial, stages)
    told = Release(
        request.name, request.license, request.base_model, request.limits, config, stages, how, found, evaluated
    )
    (partial / "README.md").write_text(card(told), encoding="utf-8")
    refuse_private(partial, request, config)
    write_sums(partial)
    return found


def _with_round_trip(found: Report, model: Path, checkpoint: Path, scratch: Path) -> Report:
    """The report with one check more: the new folder, converted to Megatron again, has the checkpoint's tensors."""
    started = time.monotonic()
    hf_to_megatron(model, scratch, checks=())
    with (
        MegatronModel(read_checkpoint_folder(checkpoint)) as before,
        MegatronModel(read_checkpoint_folder(scratch)) as now,
    ):
        differing = [tensor.name for tensor in compare_tensors(before, now) if not tensor.equal]
    shutil.rmtree(scratch)
    if differing:
        check = Check("round trip", "differs", f"{len(differing)} tensors differ, first {differing[0]}")
    else:
        check = Check(
            "round trip", "equal", "converted to Megatron again, every tensor is the checkpoint's bit for bit"
        )
    seconds = found.seconds | {check.name: time.monotonic() - started}
    return dataclasses.replace(found, checks=[*found.checks, check], seconds=seconds)


def _keep(model: Path, partial: Path) -> None:
    """Move what belongs into a release up out of the converted folder, and leave the rest: a folder that a model was
    once trained in holds all kinds of files."""
    for path in sorted(model.iterdir()):
        if path.name in _KEPT or path.name.lower().startswith(_KEPT_BEGINNINGS) or path.name.endswith(".safetensors"):
            path.rename(partial / path.name)
    templates = model / "additional_chat_templates"
    if templates.is_dir():
        templates.rename(partial / templates.name)
    shutil.rmtree(model)


def _write_settings(partial: Path, stages: Sequence[Stage]) -> None:
    folder = partial / "settings"
    folder.mkdir()
    for number, stage in enumerate(stages, 1):
        if stage.settings is not None:
            name, text = settings_file(number, stage)
            (folder / name).write_text(text, encoding="utf-8")


def refuse_private(folder: Path, request: Request, config: RunSettings) -> None:
    """The last look before a folder is released: no path of this machine in its texts, and no key.

    Raises:
        UserError: naming the file and what it holds; of a key the variable.
    """
    paths = {str(path.resolve()) for path in (request.run, request.out.parent, Path.cwd())} | {f"{Path.home()}/"}
    private = {path.encode(): f"the path {path}" for path in paths if path.count("/") > 1}
    private |= {
        os.environ[name].encode(): f"the value of the environment variable {name}"
        for name in (TOKEN_VARIABLE, *_key_variables(config))
        if len(os.environ.get(name, "")) >= _SHORTEST_SECRET
    }
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.suffix == ".safetensors" or path.name in _VOCABULARIES:
            continue
        content = path.read_bytes()
        for text, what in private.items():
            if text in content:
                raise UserError(f"{path.relative_to(folder)}: would hold {what}; take it out of what it comes from")


def _key_variables(config: RunSettings) -> list[str]:
    judges = getattr(getattr(config, "grader", None), "judges", ())
    return [judge.api_key_env for judge in judges if judge.api_key_env]

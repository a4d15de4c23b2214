"""A run of two stages, fine-tuned by the recipe's own code, and commands run as a user runs them."""

import json
import os
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qedmeg.conversion.convert import megatron_to_hf
from qedmeg.release import build
from tests import sft_runs
from tests.conversion.conftest import Ended

SCRIPT = Path(__file__).parents[2] / "conversion" / "release.py"
QUICK = ("tensors", "config", "tokenizer")
"""Checks that need no engine."""


@pytest.fixture(scope="session")
def two_stages(ranks, tmp_path_factory) -> Path:
    """A folder with `model`, the run `run` from it, `first` converted from that, and the run `second` from `first`."""
    folder = tmp_path_factory.mktemp("stages")
    settings = sft_runs.write_inputs(folder, num_hidden_layers=2, tie_word_embeddings=True)
    assert ranks(sft_runs.train, 1, settings, ["max_steps=2"]) == [0]
    assert megatron_to_hf(folder / "run" / "checkpoints" / "step_00000002", folder / "first", checks=QUICK).equal
    (folder / "more.jsonl").write_text((folder / "rows.jsonl").read_text() * 2)
    again = [f"run_dir={folder}/second", f"model.hf={folder}/first", f"data.train={folder}/more.jsonl", "max_steps=3"]
    assert ranks(sft_runs.train, 1, settings, again) == [0]
    return folder


@pytest.fixture
def stages(two_stages, tmp_path) -> Path:
    """A copy to be changed; its settings name the copy."""
    folder = Path(shutil.copytree(two_stages, tmp_path / "stages"))
    for path in folder.rglob("config.yaml"):
        path.write_text(path.read_text().replace(str(two_stages), str(folder)))
    return folder


@pytest.fixture
def quick(monkeypatch) -> None:
    """Without the checks that start engines."""
    monkeypatch.setattr(build, "CHECKS", QUICK)


@pytest.fixture
def release(capsys, monkeypatch) -> Iterator[Callable[..., Ended]]:
    """`release("--run", folder, ...)`: conversion/release.py within the process."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return Ended(exit_.value.code, *capsys.readouterr())

    return run


def texts(folder: Path) -> str:
    """All of a release but the weights."""
    return "\n".join(
        path.read_text() for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".safetensors"
    )


def lineage(folder: Path) -> list[dict]:
    return json.loads((folder / "lineage.json").read_text())["stages"]


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def environment(**variables: str) -> dict[str, str]:
    """Of a process, without what this one says of the hub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    return kept | variables

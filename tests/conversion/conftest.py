"""Commands of conversion/, run as a user runs them but within the process."""

import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint

SCRIPTS = Path(__file__).parents[2] / "conversion"


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status, and what it wrote."""

    status: int
    out: str
    err: str


@pytest.fixture
def command(capsys, monkeypatch) -> Iterator[Callable[..., Ended]]:
    """`command("hf_to_megatron.py", "--hf", folder, ...)`."""

    def run(script: str, *arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        return Ended(exit_.value.code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory) -> Callable[..., Path]:
    """`hf_folder(family, **config)`: a small checkpoint, made once and not to be changed."""
    made: dict[str, Path] = {}

    def get(family: str = "qwen3", **options: object) -> Path:
        name = repr((family, sorted(options.items())))
        if name not in made:
            made[name] = tmp_path_factory.mktemp(family)
            make_checkpoint(made[name], family, **options)
        return made[name]

    return get

"""What launch/local.py and launch/slurm.py have in common: which recipe, which settings, which run folder."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from qedmeg.errors import UserError, near_miss

# A run folder becomes part of a SLURM file name pattern, of a YAML value and of shell commands: nothing in it may mean
# something to one of them.
_SAFE_PATH = re.compile(r"[\w./+@,=-]+")
_OVERRIDE = re.compile(r"\w+(\.\w+)*=.*", re.DOTALL)


@dataclass(frozen=True)
class Job:
    """A recipe with its settings and its run folder; all paths are absolute."""

    recipe: Path
    config: Path
    overrides: tuple[str, ...]
    """`key=value` settings laid over the config, `run_dir` not among them."""
    run_dir: Path

    def arguments(self, config: Path) -> list[str]:
        """The recipe's command line, its settings file read from `config`."""
        return [str(self.recipe), "--config", str(config), f"run_dir={self.run_dir}", *self.overrides]


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE --config FILE [key=value ...], to be read with `parse_intermixed_args` and given to `read_job`."""
    parser.add_argument("recipe", type=Path, help="the recipe to run, such as recipes/sft.py")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings laid over the config file's")
    parser.add_argument("--config", type=Path, required=True, help="the recipe's settings file (YAML)")


def read_job(recipe: Path, config: Path, overrides: Sequence[str]) -> Job:
    """Check that the files are there and decide the run folder.

    The run folder is `run_dir=` on the command line, else `run_dir` of the settings file, else runs/NAME for a
    settings file NAME.yaml: the same command always finds the same folder, and what is finished there.

    Raises:
        UserError: for a missing file, an argument that is not key=value, or a run folder with characters that SLURM,
            YAML or a shell would read as more than a name.
    """
    if not recipe.is_file():
        neighbours = [path.name for path in recipe.parent.glob("*.py")]
        raise UserError(f"{recipe}: no such recipe{near_miss(recipe.name, neighbours)}")
    if not config.is_file():
        neighbours = [path.name for path in config.parent.glob("*.y*ml")]
        raise UserError(f"--config {config}: no such file{near_miss(config.name, neighbours)}")
    for override in overrides:
        if not _OVERRIDE.fullmatch(override):
            raise UserError(f"argument '{override}': expected key=value, such as max_steps=100")
    given = [override.removeprefix("run_dir=") for override in overrides if override.startswith("run_dir=")]
    name = given[-1] if given else _run_dir_of(config) or f"runs/{config.stem}"
    run_dir = Path(name).expanduser().absolute()
    if not _SAFE_PATH.fullmatch(str(run_dir)):
        raise UserError(f"run_dir '{run_dir}': only letters, digits and ./_+@,=- may be in its path; rename it")
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"run_dir '{run_dir}': is a file; give another with run_dir=FOLDER")
    others = tuple(override for override in overrides if not override.startswith("run_dir="))
    return Job(recipe.absolute(), config.absolute(), others, run_dir)


def _run_dir_of(config: Path) -> str | None:
    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"--config {config}: not valid YAML: {' '.join(str(error).split())}") from None
    value = settings.get("run_dir") if isinstance(settings, dict) else None
    return None if value is None else str(value)

"""Settings: what YAML and overrides become, and that every mistake is named."""

from pathlib import Path
from typing import Literal

import pytest
import yaml
from pydantic import Field

from qedmeg.config import DataConfig
from qedmeg.errors import UserError
from qedmeg.settings import Settings, describe, load_config, save_config


class Optimizer(Settings):
    lr: float = Field(default=1e-5, gt=0)
    """Learning rate at its peak."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's decay rates."""
    kind: Literal["adamw", "muon"] = "adamw"
    """Which optimizer."""


class Recipe(Settings):
    data: DataConfig
    optimizer: Optimizer = Optimizer()
    out: Path
    """Run folder."""
    steps: int = 10
    """How many."""
    note: str | None = None
    """Whatever."""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


MINIMAL = "data: {train: a.jsonl}\nout: runs/x\n"


def message(path: Path, *overrides: str, cls: type[Settings] = Recipe) -> str:
    with pytest.raises(UserError) as caught:
        load_config(cls, path, overrides)
    return str(caught.value)


def test_file_and_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "optimizer:\n  lr: 3e-5\n  betas: [0.9, 1e-1]\nsteps: 45_056\n")
    recipe = load_config(Recipe, path, ["data.seed=7", "optimizer.kind=muon", "data.validation=b.jsonl", "note="])
    assert recipe.optimizer == Optimizer(lr=3e-5, betas=(0.9, 0.1), kind="muon")
    assert (recipe.steps, recipe.data.seed, recipe.data.validation, recipe.note) == (45056, 7, "b.jsonl", None)
    assert recipe.out == Path("runs/x")


@pytest.mark.parametrize(
    ("text", "value"), [("no", "no"), ("010", "010"), ("12:30", "12:30"), ("2024-01-01", "2024-01-01"), ("on", "on")]
)
def test_text_stays_text(tmp_path: Path, text: str, value: str) -> None:
    assert load_config(Recipe, write(tmp_path, MINIMAL + f"note: {text}\n")).note == value


def test_an_override_makes_a_section_that_the_file_lacks(tmp_path: Path) -> None:
    path = write(tmp_path, "out: x\noptimizer:\n")
    assert load_config(Recipe, path, ["data.train=t", "optimizer.lr=2"]).optimizer.lr == 2.0


def test_unknown_key_names_file_key_and_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, "data: {train: a, max_lenth: 5}\nout: x\n")
    assert message(path) == f"{path}: data.max_lenth: unknown setting; did you mean 'max_length'?"
    path = write(tmp_path, MINIMAL)
    assert message(path, "lr=1") == "command line: lr: unknown setting; did you mean 'optimizer.lr'?"
    assert message(path, "data.frobnicate=1") == "command line: data.frobnicate: unknown setting"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("steps: ten", "steps: 'ten': should be a valid integer"),
        ("steps: 1.0", "steps: 1.0: should be a valid integer"),
        ("steps: true", "steps: True: should be a valid integer"),
        ("optimizer: {lr: '3e-5'}", "optimizer.lr: '3e-5': should be a valid number"),
        ("optimizer: {lr: 0}", "optimizer.lr: 0: should be greater than 0"),
        ("optimizer: {lr: .nan}", "optimizer.lr: nan: should be a finite number"),
        ("optimizer: {kind: sgd}", "optimizer.kind: 'sgd': should be 'adamw' or 'muon'"),
        ("optimizer: 3", "optimizer: 3: should be a section of settings"),
    ],
)
def test_wrong_values_name_file_field_value_and_what_is_allowed(tmp_path: Path, line: str, said: str) -> None:
    path = write(tmp_path, MINIMAL + line + "\n")
    assert message(path) == f"{path}: {said}"


def test_all_problems_at_once_a_line_each(tmp_path: Path) -> None:
    path = write(tmp_path, "data: {train: a, seed: x, too_long: cut}\nstep: 3\n")
    lines = message(path, "optimizer.lr=-1").splitlines()
    assert sorted(lines) == sorted(
        [
            f"{path}: data.seed: 'x': should be a valid integer",
            f"{path}: data.too_long: 'cut': should be 'error' or 'drop'",
            f"{path}: step: unknown setting; did you mean 'steps'?",
            f"{path}: out: missing and has no default: Run folder.",
            "command line: optimizer.lr: -1: should be greater than 0",
        ]
    )


def test_settings_that_do_not_go_together(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    assert message(path, "data.max_length=5000").startswith(
        f"{path} with the command line: data: max_length 5000 is greater than tokens_per_microbatch 4096"
    )
    assert "not both" in message(path, "data.validation=b", "data.validation_fraction=0.1")
    assert "data.columns: give either messages" in message(path, "data.columns={messages: m, prompt: p, proof: q}")
    assert "prompt and proof are given together" in message(path, "data.columns.prompt=question")


def test_duplicate_keys_are_errors(tmp_path: Path) -> None:
    path = write(tmp_path, "data:\n  train: a\n  seed: 1\n  train: b\nout: x\n")
    assert message(path) == f"{path}:4: 'train' is given twice, first on line 2; keep one"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: [1, 2", "not valid YAML"),
        ("- 1\n", "expected settings ('key: value' lines), found [1]"),
        ("a: &x [*x]\n", "not usable as settings"),
        ("a: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
    ],
)
def test_files_that_are_no_settings(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    assert str(path) in message(path)
    assert said in message(path)
    assert "\n" not in message(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert message(tmp_path / "none.yaml") == f"{tmp_path}/none.yaml: no such settings file"
    assert "cannot be read" in message(tmp_path)


@pytest.mark.parametrize("override", ["data.seed", "=3", "a b=1", "data..seed=1"])
def test_malformed_overrides(tmp_path: Path, override: str) -> None:
    assert message(write(tmp_path, MINIMAL), override).startswith(f"command line: '{override}': expected key=value")


def test_an_override_below_a_value(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "steps: 3\n")
    assert message(path, "steps.x=1") == "command line: steps.x: 'steps' is not a section but a value"


def test_saved_settings_read_back_equal(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "optimizer: {lr: 1e-7}\nnote: '3e-5'\n")
    for note in ("no", "010", "3e-5", "12:30", "null", "é: #"):
        recipe = load_config(Recipe, path).model_copy(update={"note": note})
        save_config(recipe, tmp_path / "resolved.yaml")
        assert load_config(Recipe, tmp_path / "resolved.yaml") == recipe
        # another reader, of YAML 1.1, sees the same
        assert yaml.safe_load((tmp_path / "resolved.yaml").read_text())["note"] == note
    assert list(tmp_path.glob("*.tmp")) == []


def test_settings_are_frozen_and_described() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Optimizer().lr = 1.0  # type: ignore[misc]
    text = describe(Recipe)
    assert "optimizer.kind ('adamw' | 'muon', default 'adamw')\n    Which optimizer." in text
    assert "data.train (str, required)\n    Training rows:" in text
    assert "data.columns.proof (str | None, default None)" in text


def test_every_data_setting_is_documented() -> None:
    assert [name for name, field in DataConfig.model_fields.items() if not field.description] == []

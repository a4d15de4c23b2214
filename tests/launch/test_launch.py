"""qedmeg/launch.py: which files, which run folder."""

from pathlib import Path

import pytest

from qedmeg.errors import UserError
from qedmeg.launch import read_job


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sft.py").touch()
    (tmp_path / "tiny.yaml").write_text("steps: 3\n")
    (tmp_path / "named.yaml").write_text("run_dir: runs/from-config\n")
    return tmp_path


def test_run_folder_is_the_same_each_time_and_absolute(files: Path) -> None:
    recipe = Path("sft.py")
    assert read_job(recipe, Path("tiny.yaml"), []).run_dir == files / "runs/tiny"
    assert read_job(recipe, Path("named.yaml"), []).run_dir == files / "runs/from-config"
    assert read_job(recipe, Path("named.yaml"), ["run_dir=here"]).run_dir == files / "here"


def test_arguments_follow_the_recipe_interface(files: Path) -> None:
    job = read_job(Path("sft.py"), Path("tiny.yaml"), ["a.b=x y", "run_dir=r", "c=1=2"])
    assert job.overrides == ("a.b=x y", "c=1=2")
    assert job.arguments(Path("/copy.yaml")) == [
        str(files / "sft.py"), "--config", "/copy.yaml", f"run_dir={files}/r", "a.b=x y", "c=1=2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "config", "override", "message"),
    [
        ("sfft.py", "tiny.yaml", "a=1", r"sfft\.py: no such recipe; did you mean 'sft\.py'\?"),
        ("sft.py", "tinny.yaml", "a=1", r"--config tinny\.yaml: no such file; did you mean 'tiny\.yaml'\?"),
        ("sft.py", "broken.yaml", "a=1", r"--config broken\.yaml: not valid YAML"),
        ("sft.py", "tiny.yaml", "nproc", r"argument 'nproc': expected key=value"),
        ("sft.py", "tiny.yaml", "run_dir=a b", r"run_dir '.*a b': only letters"),
        ("sft.py", "tiny.yaml", "run_dir=%j", r"run_dir '.*%j': only letters"),
        ("sft.py", "tiny.yaml", "run_dir=sft.py", r"run_dir '.*sft\.py': is a file"),
    ],
)
def test_mistakes_are_named(files: Path, recipe: str, config: str, override: str, message: str) -> None:
    (files / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(UserError, match=message) as caught:
        read_job(Path(recipe), Path(config), [override])
    assert "\n" not in str(caught.value)

"""What the viewer shows in tests: an evaluation and a run, made once a module."""

from pathlib import Path

import pytest

from tests.viewer.made import evaluation, training


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("files")
    return evaluation(folder / "eval" / "results.sqlite"), training(folder / "grpo")

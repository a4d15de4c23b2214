"""Small models in version 1 and 2, and one real vLLM server for all tests of rollouts."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.rollout import policies


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a model of version 1 in `1` and one of version 2 in `2`."""
    folder = tmp_path_factory.mktemp("policies")
    policies.make_policies(folder)
    return folder


@pytest.fixture(scope="session")
def models(policy_folder: Path) -> dict[int, Any]:
    """The models by version, in transformers."""
    return {version: policies.load(policy_folder, version) for version in (1, 2)}


@pytest.fixture(scope="session")
def vllm_server(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a vLLM server with random weights. Who started it is killed in the end, which must end it too."""
    log = tmp_path_factory.mktemp("server") / "vllm.log"
    command = [sys.executable, "-m", "tests.rollout.held_server", f"{policy_folder / '1'}", f"{log}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            address = holder.stdout.readline().strip()
            assert address, "the server was not started"
            yield address
            started = psutil.Process(holder.pid).children(recursive=True)
        finally:
            holder.kill()
    assert len(started) >= 2, f"a server has two processes: {started}"
    _, alive = psutil.wait_procs(started, timeout=10)
    for process in alive:
        process.kill()
    assert not alive, f"they outlived who started them: {alive}"

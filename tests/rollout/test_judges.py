"""Judges that a run serves itself: a real vLLM server in the rollout process, and servers that do not come up."""

import asyncio
import re
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from qedmeg import device
from qedmeg.config import GraderConfig, JudgeConfig, JudgeServerConfig
from qedmeg.errors import RunFailed, UserError
from qedmeg.grading import calibration
from qedmeg.grading.panel import Panel
from qedmeg.rollout import server
from qedmeg.rollout.client import RolloutClient, RolloutFailed
from qedmeg.rollout.judges import judge_gpus, served_judges
from qedmeg.rollout.sample import Batch
from tests.checkpoints import make_checkpoint
from tests.rollout.collecting import Setting, make_setting
from tests.rollout.scripted import COMMAND, Script
from tests.rollout.vllm_server import DIES_WHEN_ASKED

SECONDS = 180.0
DIES = "print('ValueError: no room for keys'); exit(3)"
HANGS = "import time; print('loading', flush=True); time.sleep(600)"


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return make_setting(tmp_path_factory.mktemp("setting"))


def grader(folder: Path, **serve: Any) -> GraderConfig:
    """A judge that serves a folder, and answers in a few tokens."""
    served = JudgeServerConfig(**{"folder": folder, "max_length": 4096, "start_seconds": SECONDS} | serve)
    return GraderConfig(judges=(JudgeConfig(serve=served, max_tokens=8, attempts=1, breaker_failures=1000),))


def begin(client: RolloutClient) -> tuple[list[psutil.Process], "Future[Batch]"]:
    """Ask for the first batch; the processes of the judge's server, and what becomes of the batch."""
    client.pause()
    client.resume(0)
    children = psutil.Process(client._process.pid).children(recursive=True)
    asking = ThreadPoolExecutor(1)
    batch = asking.submit(client.batch, 0)
    asking.shutdown(wait=False)
    return children, batch


@pytest.mark.vllm
def test_a_run_serves_its_judge_and_ends_it(
    setting: Setting, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of random weights gives no verdict: its grades fail, and none is a zero."""
    monkeypatch.setenv("VLLM_API_KEY", "a key for all servers of the run")
    config = setting.config(tmp_path / "run").model_copy(update={"grader": grader(setting.model)})
    Script().write(config.run_dir)
    with RolloutClient(config, config.run_dir, setting.model, command=COMMAND) as client:
        processes, batch = begin(client)
        assert len(processes) >= 2, "a server has two"
        said, deadline = "", time.monotonic() + SECONDS
        while "graders are failing" not in said:
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
            said += capfd.readouterr().err
        assert re.search(r"\d+ unreadable answer of the last", said)
        assert re.search(rf"the last failure: judge {setting.model.name}-\w{{8}} at http://127\.0\.0\.1:", said)
        assert "cut off after max_tokens 8" in said
    assert isinstance(batch.exception(SECONDS), RolloutFailed)
    assert not psutil.wait_procs(processes, timeout=10)[1]


@pytest.mark.parametrize(("program", "kind"), [(DIES, UserError), (DIES_WHEN_ASKED, RunFailed)])
def test_a_run_ends_when_its_judge_does(setting: Setting, tmp_path: Path, program: str, kind: type[Exception]) -> None:
    """Before it was up, it is the user's to mend; thereafter the run has failed."""
    config = setting.config(tmp_path / "run").model_copy(update={"grader": grader(setting.model)})
    Script(judge=program).write(config.run_dir)
    log = config.run_dir / "logs" / "vllm_judge_0.log"
    with (
        pytest.raises(kind) as told,
        RolloutClient(config, config.run_dir, setting.model, command=COMMAND) as client,
    ):
        begin(client)[1].result(SECONDS)
    assert told.type is kind
    lines = str(told.value).splitlines()
    named = rf"judge {setting.model.name}-\w{{8}}: the vLLM server at http://127\.0\.0\.1:\d+"
    assert re.fullmatch(rf"{named} ended with status 3; its log {log}", lines[0])
    assert lines[1] == "its first error: ValueError: no room for keys"


def start(config: GraderConfig, logs: Path) -> None:
    async def scene() -> None:
        async with served_judges(config, logs) as (_, up):
            await up

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("program", "seconds", "says"),
    [
        (DIES, SECONDS, r"ended with status 3; its log {log}\nits first error: ValueError: no room for keys\n"),
        (HANGS, 0.5, r"no answer within serve\.start_seconds 0\.5 \(.*\); its log {log}\n(.|\n)*loading"),
    ],
)
def test_a_server_that_does_not_come_up_ends_the_program(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, seconds: float, says: str
) -> None:
    monkeypatch.setattr(server, "command", lambda *_, **__: [sys.executable, "-c", program])
    config, log = tmp_path / "judge.yaml", tmp_path / "out" / "logs" / "vllm_judge_0.log"
    serve = f"{{folder: {setting.model}, start_seconds: {seconds}}}"
    config.write_text(f"judges: [{{serve: {serve}, max_tokens: null}}]\n")
    arguments = ["--config", config, "--embedded", 2, "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["calibrate.py", *map(str, arguments)])
    before = psutil.Process().children()
    with pytest.raises(UserError, match=rf"^judge {setting.model.name}-\w+: .*" + says.format(log=log)):
        calibration.main()
    assert psutil.Process().children() == before


def test_the_grader_is_its_folder_and_not_its_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "command", lambda *_, **__: [sys.executable, "-c", HANGS])

    async def address_and_version(folder: Path) -> tuple[str, str]:
        async with served_judges(grader(folder), tmp_path / "logs") as (config, _):
            (judge,) = config.judges
            panel = Panel(config)
            await panel.close()
            return judge.base_url, panel.version

    async def scene() -> None:
        make_checkpoint(tmp_path / "judge", num_hidden_layers=1)
        (first, before), (second, again) = [await address_and_version(tmp_path / "judge") for _ in range(2)]
        assert first.startswith("http://127.0.0.1:")
        assert first != second
        assert before == again
        make_checkpoint(tmp_path / "judge", num_hidden_layers=2)
        assert (await address_and_version(tmp_path / "judge"))[1] != before

    asyncio.run(scene())


def test_folders_are_looked_at_before_anything_is_started(setting: Setting, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere/config\.json: no such file"):
        start(grader(tmp_path / "nowhere"), tmp_path / "logs")
    with pytest.raises(UserError, match=r"max_tokens 8 leaves no room for a prompt in a context of 8 tokens"):
        start(grader(setting.model, max_length=8), tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


def test_a_judge_has_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def places(*servers: dict[str, Any], taken: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        return judge_gpus([JudgeServerConfig(folder=Path("judge"), **one) for one in servers], taken)

    assert places({}, {"tp": 8}) == [(), ()]  # on a CPU
    monkeypatch.setattr(device, "has_gpu", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")
    assert places({}, {"tp": 2}, taken=("0", "1")) == [("4",), ("2", "3")]
    assert places({}, {"tp": 2, "devices": (4, 2)}, taken=("0", "1")) == [("3",), ("4", "2")]
    with pytest.raises(UserError, match=r"it takes serve\.tp 2 GPUs of its own, and .* leave 1;"):
        places({"tp": 2}, taken=("0", "1", "2", "3"))
    for servers in ([{"devices": (1,)}], [{"devices": (4,)}, {"devices": (4,)}]):
        with pytest.raises(UserError, match=r"GPU [14] is that of the trainer, of an engine or of another judge"):
            places(*servers, taken=("0", "1"))

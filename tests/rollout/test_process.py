"""The real rollout process over real pipes, with scripted engines and graders (see `scripted.py`)."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from qedmeg.config_rl import GRPOConfig
from qedmeg.config_validation import ValidationConfig
from qedmeg.errors import UserError
from qedmeg.rollout import client as client_module
from qedmeg.rollout.client import RolloutClient, RolloutFailed, WeightsNeeded
from qedmeg.rollout.process import main
from qedmeg.rollout.protocol import EngineLost
from qedmeg.rollout.sample import Batch
from qedmeg.rollout.validation import VALIDATION_FILE
from tests.rollout.collecting import GROUP, PROMPTS, Setting, check, collect, content, make_setting, query
from tests.rollout.scripted import COMMAND, GRADED_FILE, Script, lines


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return make_setting(tmp_path_factory.mktemp("setting"))


def started(config: GRPOConfig, setting: Setting, script: Script) -> RolloutClient:
    script.write(config.run_dir)
    return RolloutClient(config, config.run_dir, setting.model, command=COMMAND)


def step(client: RolloutClient, number: int) -> Batch:
    """What the trainer does before it trains."""
    client.pause()
    for engine in client.engines():
        engine.init_transfer({"world_size": engine.workers + 1})
        engine.start_update()
        engine.update({"names": ["a"]})
        engine.finish_update(number)
    client.resume(number)
    return client.batch(number)


def go_on(client: RolloutClient, number: int) -> None:
    """Step after step, from `number` on, until there is an error."""
    for later in range(number, number + 1000):
        step(client, later)


def test_the_process_does_what_a_trainer_asks(
    setting: Setting, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")  # as under torchrun
    monkeypatch.setenv("LOCAL_RANK", "0")
    config = setting.config(tmp_path / "run", failure_pause_seconds=0.1, max_failure_rate=0.2)
    validated = {"benchmark": str(setting.rows), "scaffold_settings": {"prompt": "{problem}"}}
    config = config.model_copy(update={"validation": ValidationConfig(**validated)})
    with started(config, setting, Script(generate_seconds=0.02, outage=(13, 20), lose_weights_at=3)) as client:
        environment = psutil.Process(client._process.pid).environ()
        assert not {"RANK", "LOCAL_RANK"} & environment.keys()
        (engine,) = client.engines()
        assert (engine.name, engine.workers, engine.gpus) == ("scripted", 1, ("GPU of scripted",))
        with pytest.raises(EngineLost, match="scripted: it was told to fail"):
            engine.update({"fail": True})
        prompts = [np.arange(5, dtype=np.int32), np.arange(3, dtype=np.int32)]
        logprobs = client.prompt_logprobs("scripted", prompts)
        np.testing.assert_array_equal(logprobs[0], -np.arange(1, 5, dtype=np.float32) / 3)
        with pytest.raises(RolloutFailed, match="step 0 was asked for while the engines have weights of version None"):
            client.batch(0)
        with pytest.raises(WeightsNeeded):
            step(client, 0)
        batches = [step(client, 0)]
        # a signal that stops the job reaches the process too: the trainer still needs it
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(client._process.pid, number)
        batches += [step(client, 1)]
        check(batches, max_lag=0)
        assert [len(batch.groups) for batch in batches] == [PROMPTS, PROMPTS]  # step 1 in spite of the outage
        assert client.validate(1, "hash")["graded"] == 12
        assert (config.run_dir / VALIDATION_FILE).exists()
        batches += [step(client, 2)]
    assert client._process.returncode == 0
    with pytest.raises(RolloutFailed, match="was closed"):
        client.engines()
    client.close()
    assert "rollouts: graders are failing" in capfd.readouterr().err
    for stray in ("a print before it begins", "a print of C before it begins", "a print", "a print of C"):
        assert f"{stray}\n" in client.log.read_text()
    # the same as in one process and without validation: the pipes change nothing, and neither does that
    alone = tmp_path / "alone"
    alone.mkdir()
    undisturbed, _ = collect(setting, setting.config(alone), Script(), steps=3)
    assert content([batches[0], batches[2]]) == content([undisturbed[0], undisturbed[2]])


def test_when_the_process_is_killed_or_hangs_the_trainer_hears_of_it_and_can_go_on(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = setting.config(tmp_path / "run", max_lag=1)
    script = Script(generate_seconds=0.05, grade_seconds=0.02)
    with started(config, setting, script) as client:
        first = [step(client, number) for number in range(2)]
        client.pause()
        client.resume(2)
        killer = threading.Timer(0.12, os.kill, [client._process.pid, signal.SIGKILL])
        killer.start()
        begin = time.monotonic()
        with pytest.raises(
            RolloutFailed, match=r"ended with status -9; the last lines of .*rollout_process.log:\n"
        ) as told:
            go_on(client, 2)
        assert time.monotonic() - begin < 5
        assert "a print of C" in str(told.value)
        with pytest.raises(RolloutFailed, match="ended with status -9"):
            client.engines()
    with started(config, setting, script) as client:
        batches = [step(client, number) for number in range(4)]
        monkeypatch.setattr(client_module, "SECONDS_SILENT", 3.0)
        monkeypatch.setattr(client_module, "SECONDS_TO_CLOSE", 1.0)
        os.kill(client._process.pid, signal.SIGSTOP)
        with pytest.raises(RolloutFailed, match=r"hangs: it was silent for 3 s; see .*rollout_process.log"):
            client.engines()
    assert client._process.returncode == -signal.SIGKILL
    assert content(batches[:2]) == content(first)
    check(batches, max_lag=1)
    (stored,) = query(config.run_dir, "SELECT count(*) FROM grades")[0]
    assert 0 <= len(lines(config.run_dir / GRADED_FILE)) - stored < 2 * PROMPTS * GROUP  # those in hand when killed


def test_mistakes_are_told_as_the_users(setting: Setting, tmp_path: Path) -> None:
    config = setting.config(tmp_path / "run", max_tokens=16384)
    with pytest.raises(
        UserError, match=r"rollout.max_tokens: 16384: the model's context of 16384 tokens leaves no room"
    ):
        started(config, setting, Script())


def test_the_process_ends_when_its_trainer_is_killed(setting: Setting, tmp_path: Path) -> None:
    """Though a process that the trainer forked still holds the pipe open."""
    trainer = f"""
import os, sys, time
from pathlib import Path
from tests.rollout.collecting import Setting
from tests.rollout.scripted import COMMAND, Script
from qedmeg.rollout.client import RolloutClient
from qedmeg.settings import load_config
from qedmeg.config_rl import GRPOConfig
config = load_config(GRPOConfig, {str(tmp_path / "grpo.yaml")!r})
Script().write(config.run_dir)
client = RolloutClient(config, config.run_dir, config.model.hf, command=COMMAND)
if os.fork() == 0:
    time.sleep(60)
print(client._process.pid, flush=True)
time.sleep(60)
"""
    from qedmeg.settings import save_config

    save_config(setting.config(tmp_path / "run"), tmp_path / "grpo.yaml")
    with subprocess.Popen([sys.executable, "-c", trainer], stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        rollouts = psutil.Process(int(process.stdout.readline()))
        process.kill()
        process.wait()
        try:
            rollouts.wait(10)
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_help_has_an_example(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["process", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert "python -m qedmeg.rollout.process --config" in capsys.readouterr().out

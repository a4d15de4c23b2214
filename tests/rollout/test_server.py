"""A real vLLM server: what it answers, how it starts, and that it ends."""

import argparse
import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qedmeg import __main__
from qedmeg.config_rl import RolloutConfig
from qedmeg.errors import UserError
from qedmeg.rollout import serve, server
from qedmeg.rollout.engine import rollout_options
from qedmeg.rollout.fleet import Request
from qedmeg.rollout.remote import RemoteFleet
from qedmeg.rollout.sample import Sample
from qedmeg.rollout.server import EngineRefused, Server, ServerProcess, wait_until_up
from tests.rollout import policies


@pytest.mark.vllm
def test_generation_and_a_change_of_weights_in_flight(vllm_server: str, models: dict[int, Any]) -> None:
    async def scene() -> None:
        config = RolloutConfig(servers=(vllm_server,), start_seconds=180, concurrency=16)
        fleet = RemoteFleet(config, policies.MAX_LENGTH, addresses=config.servers)
        await fleet.start()
        assert fleet.live() == [(vllm_server, 1)]
        assert fleet.gpus(vllm_server) == []  # its worker is asked, which is on a CPU
        await policies.send(fleet, models[1], 1)
        await temperature_is_in_the_logprobs(fleet)
        await weights_change(fleet)
        await prompt_logprobs(fleet)
        await fleet.close()

    async def temperature_is_in_the_logprobs(fleet: RemoteFleet) -> None:
        how = policies.sampling(0.7)
        samples = await policies.generate(fleet, policies.batch(), how)
        for sample in samples:
            assert sample.versions == ((1, 0),)
            np.testing.assert_allclose(sample.logprobs_T, policies.reference(models, sample, 0.7), atol=1e-4)
            assert sample.finish_reason == ("stop" if sample.tokens_T[-1] in how.stop_ids else "length")
        assert {sample.finish_reason for sample in samples} == {"stop", "length"}
        again = await policies.generate(fleet, policies.batch(), how)
        same = [np.array_equal(a.tokens_T, b.tokens_T) for a, b in zip(samples, again, strict=True)]
        assert sum(same) > len(same) / 2  # the seeds arrived; sums may differ in their last bits

    async def weights_change(fleet: RemoteFleet) -> None:
        for sample in await policies.change_in_flight(fleet, models[2], 2):
            np.testing.assert_allclose(sample.logprobs_T, policies.reference(models, sample, 1.0), atol=1e-4)

    async def prompt_logprobs(fleet: RemoteFleet) -> None:
        prompts = [request.prompt_P for request in policies.batch()[::4]]
        for prompt, logprobs in zip(prompts, await fleet.prompt_logprobs(vllm_server, prompts), strict=True):
            rest = Sample(prompt[:1], prompt[1:], logprobs, ((2, 0),), "length")
            np.testing.assert_allclose(logprobs, policies.reference(models, rest, 1.0), atol=1e-4)

    asyncio.run(scene())


@pytest.mark.vllm
def test_what_a_server_finds_fault_with(vllm_server: str) -> None:
    async def scene() -> None:
        asked = Server(vllm_server)
        await wait_until_up(asked, None, 180)
        assert await asked.describe() == (1, policies.MAX_LENGTH)
        long = Request(np.zeros(policies.MAX_LENGTH + 1, dtype=np.int32), 0)
        with pytest.raises(EngineRefused, match=r"status 400: .*320"):
            await asked.generate(long, policies.sampling(), 30)
        await asked.close()

    asyncio.run(scene())


def test_a_server_that_dies_while_it_starts_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "print('line'); print('ValueError: no room for keys'); [print('more', i) for i in range(99)]; exit(3)"
    monkeypatch.setattr(server, "command", lambda *_, **__: [sys.executable, "-c", program])

    async def scene() -> None:
        process = ServerProcess(tmp_path, {}, tmp_path / "vllm_0.log")
        asked = Server(process.address)
        with pytest.raises(UserError) as told:
            await wait_until_up(asked, process, 20)
        await asked.close()
        lines = str(told.value).splitlines()
        assert lines[0].endswith(f"ended with status 3; its log {tmp_path / 'vllm_0.log'}")
        assert lines[1] == "its first error: ValueError: no room for keys"
        assert lines[-1] == "more 98"
        assert "more 86" not in lines

    asyncio.run(scene())


def test_a_server_started_here_has_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import time; print('loading', flush=True); time.sleep(60)"
    monkeypatch.setattr(server, "command", lambda *_, **__: [sys.executable, "-c", program])

    async def scene() -> None:
        process = ServerProcess(tmp_path, {}, tmp_path / "vllm_0.log")
        asked = Server(process.address)
        with pytest.raises(UserError, match=r"no answer within rollout\.start_seconds 1 (.|\n)*loading"):
            await wait_until_up(asked, process, 1.0)
        await asked.close()
        process.close()
        assert "was killed by signal 15" in str(process.ended())

    asyncio.run(scene())


def serve_command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    return serve.main(parser.parse_args(arguments))


def test_serve_runs_the_server_that_a_run_would_start(
    policy_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *arguments: ran.extend(arguments))
    monkeypatch.setenv("RANK", "3")
    port = server.free_port()
    folder = policy_folder / "1"
    serve_command("--model", f"{folder}", "--port", f"{port}", "--max-length", "300", "--concurrency", "8")
    program, command, environment = ran
    options = rollout_options(300, 1, 8, None)
    assert command == server.command(folder, "127.0.0.1", port, options)
    assert program == command[0]
    assert command[command.index("--logprobs-mode") + 1] == "processed_logprobs"
    assert command[command.index("--load-format") + 1] == "dummy"
    assert "--no-enable-chunked-prefill" in command  # of a seeded prompt that is cut, a CPU's engine dies
    assert not {"True", "False"} & {*command}  # of which vLLM would make the name of a model
    assert environment["VLLM_SERVER_DEV_MODE"] == "1"
    assert "RANK" not in environment
    assert server.PARENT not in environment  # it outlives the shell that started it
    assert "warning" not in capsys.readouterr().err
    serve_command("--model", f"{folder}", "--port", f"{port}", "--host", "0.0.0.0")
    assert f"warning: whoever reaches 0.0.0.0 port {port} can change this model's weights" in capsys.readouterr().err


def test_mistakes_in_serve(policy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("started in spite of a mistake"))
    folder = f"{policy_folder / '1'}"
    with pytest.raises(UserError, match=r"nowhere/config\.json: no such file"):
        serve_command("--model", "nowhere")
    with pytest.raises(UserError, match="--max-length: 16385 is not between 2 and the model's context of 16384"):
        serve_command("--model", folder, "--max-length", "16385")
    with pytest.raises(UserError, match="--tp: 0 is less than 1"):
        serve_command("--model", folder, "--tp", "0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--host 127.0.0.1 --port {port}: Address already in use"):
            serve_command("--model", folder, "--port", f"{port}")
    with pytest.raises(UserError, match="give an address of this machine"):
        serve_command("--model", folder, "--host", "203.0.113.9")


def test_serve_has_help_with_an_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["qedmeg", "serve", "--help"])
    with pytest.raises(SystemExit):
        __main__.main()
    out = capsys.readouterr().out
    assert "python -m qedmeg serve --model Qwen3-4B --host 10.0.0.7" in out

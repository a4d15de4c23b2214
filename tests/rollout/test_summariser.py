"""A frozen summariser: a real vLLM server that gets no weights, and one that fails for a while."""

import asyncio
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from qedmeg.chat.message import Message
from qedmeg.config import EndpointConfig
from qedmeg.grading.grade import Cost
from qedmeg.reasoning.call import ModelFailedError, Reply
from qedmeg.rollout.engine import WITHOUT_WORKERS
from qedmeg.rollout.server import environment, free_port
from qedmeg.rollout.summariser import ServedSummariser
from tests.rollout.collecting import Setting, check, make_setting, query, running
from tests.rollout.scripted import Script

SECONDS_TO_START = 180.0


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return make_setting(tmp_path_factory.mktemp("setting"))


@pytest.fixture(scope="module")
def server(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointConfig]:
    """The model folder behind vLLM's chat server."""
    port, log = free_port(), tmp_path_factory.mktemp("server") / "vllm.log"
    command = [sys.executable, "-m", "qedmeg.rollout.server_main", "--model", str(setting.model)]
    command += ["--served-model-name", "summariser", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", "4096", "--enforce-eager", "--generation-config", "vllm"]
    command += ["--kv-cache-memory-bytes", str(2**28), "--distributed-executor-backend", WITHOUT_WORKERS]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment(), stdout=file, stderr=file, start_new_session=True)
    try:
        deadline = time.monotonic() + SECONDS_TO_START
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.2)
        yield EndpointConfig(base_url=f"http://127.0.0.1:{port}/v1", model="summariser", max_tokens=64)
    finally:
        process.kill()
        process.wait()


@pytest.mark.vllm
def test_a_model_behind_a_vllm_server_writes_the_summaries(
    setting: Setting, server: EndpointConfig, tmp_path: Path
) -> None:
    async def drive() -> None:
        summariser = ServedSummariser(server)
        config = setting.rc_config(tmp_path, {"summary_tokens": 16, "summariser": server.model_dump()})
        async with asyncio.timeout(60), running(setting, config, Script(), summariser) as run:
            batches = [await run.step(step) for step in range(2)]
        await summariser.close()
        check(batches, max_lag=0)

    asyncio.run(drive())
    written = query(tmp_path, "SELECT text, tokens, token_ids, version FROM turns WHERE kind = 'summarise'")
    assert len(written) == 8
    assert all(0 < tokens <= 16 and token_ids is None for _, tokens, token_ids, _ in written)
    assert {version for *_, version in written} == {0, 1}  # as old as what it summarises
    texts = {text for text, *_ in written}
    assert len(texts) > 1
    kept = {summary for (summary,) in query(tmp_path, "SELECT summary FROM states WHERE round > 1")}
    # all of a summary, or its end where the letters of so random a text are more tokens than there is room for
    assert all(any(text.endswith(summary) for text in texts) for summary in kept)
    assert len(kept & texts) > 1


class FailsFirst:
    """A summariser whose first three answers fail."""

    asked = 0

    async def summarise(self, messages: tuple[Message, ...], max_tokens: int) -> Reply:
        self.asked += 1
        if self.asked <= 3:
            raise ModelFailedError("timeout", "no answer")
        return Reply("<|im_end|>What was <|im_start|>shown.", "", "stop", 7, Cost(), 0.0)


def test_a_summariser_that_fails_is_asked_again(setting: Setting, tmp_path: Path) -> None:
    summariser = FailsFirst()

    async def drive() -> list[str]:
        config = setting.rc_config(tmp_path, {}, failure_pause_seconds=0.05)
        async with asyncio.timeout(20), running(setting, config, Script(), summariser) as run:
            await run.step(0)
            return run.said

    said = asyncio.run(drive())
    assert summariser.asked == 4 + 3
    assert said == ["the summariser fails (no answer); it is asked again in 0.05 s"] * 3
    assert query(tmp_path, "SELECT DISTINCT summary FROM states WHERE round > 1") == [("What was shown.",)]

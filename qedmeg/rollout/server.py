"""A vLLM server: its command, its process where it is started here, and what is asked of it over HTTP."""

import asyncio
import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import aiohttp
import numpy as np

from qedmeg import device
from qedmeg.errors import UserError
from qedmeg.rollout.engine import CPU_ENVIRONMENT, Request, make_sample, sampling_settings
from qedmeg.rollout.protocol import EngineLost
from qedmeg.rollout.sample import Sample, Sampling
from qedmeg.rollout.server_main import PARENT

SHORT_SECONDS = 30.0
"""Longest wait for an answer that needs no computing."""
KEY = "VLLM_API_KEY"
"""Environment variable with the key of servers, which they and who asks them read."""
_SECONDS_BETWEEN_LINES = 10.0
_LOG_LINES = 12
_BUSY = frozenset({408, 425, 429})

logger = logging.getLogger(__name__)

Transfer = Literal["init_transfer", "start_update", "update", "finish_update"]
"""The calls of a weight transfer, in their order."""


class EngineRefused(Exception):
    """An engine answers that what it was asked is wrong, which no other will take either."""


class BadAnswer(EngineLost):
    """An engine answers, with an error of its own or with what cannot be used: be it for its own sake, or for that of
    what it was asked."""


def command(model: Path, host: str, port: int, options: Mapping[str, Any], *, chat: str | None = None) -> list[str]:
    """The command of a server; `options` are keywords of vLLM's LLM, such as those of `rollout_options`.

    It takes token ids, or as `chat`, the name that the model then has, the messages of conversations.
    """
    flags = ["--model", str(model), "--served-model-name", chat or "policy", "--host", host, "--port", str(port)]
    flags += ["--disable-uvicorn-access-log", *([] if chat else ["--tokens-only"])]
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):  # after a switch, "False" would be read as the name of a model
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return [sys.executable, "-m", "qedmeg.rollout.server_main", *flags]


def environment(**more: str) -> dict[str, str]:
    """The environment of a server; what is set already stays."""
    chosen = {
        "VLLM_SERVER_DEV_MODE": "1",  # the routes that pause, resume and change weights
        "VLLM_HOST_IP": "127.0.0.1",  # its workers talk among themselves
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # as `server_main` needs it; on GPUs vLLM would fork
        **({} if device.has_gpu() else CPU_ENVIRONMENT),
    }
    return {**chosen, **_without_a_job(), **more}


def _without_a_job() -> dict[str, str]:
    """This process's environment without what torchrun told it, and what vLLM in one process needs."""
    job = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
    not_for_servers = {*job, "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_LEVEL", PARENT}
    return {name: value for name, value in os.environ.items() if name not in not_for_servers}


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class ServerProcess:
    """A server started on this machine, on loopback. It ends with this process, in whatever way that ends.

    Made on a thread that lasts as long as the process: the kernel takes its thread's end for the parent's.
    """

    def __init__(
        self,
        model: Path,
        options: Mapping[str, Any],
        log: Path,
        gpus: Sequence[str] = (),
        *,
        chat: str | None = None,
    ) -> None:
        """Start it; its output goes into the file `log`. `gpus` are all that it sees; none given: all there are.
        `chat`: see `command`."""
        self.log, self._chat = log, chat
        self._model, self._options, self._port = model, options, free_port()
        self._visible = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
        self.address = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        """Start it, or start it again after its end, at the same address."""
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                command(self._model, "127.0.0.1", self._port, self._options, chat=self._chat),
                env=environment(**self._visible, **{PARENT: f"{os.getpid()}"}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for who started it, which then ends it
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ended(self) -> str | None:
        """How it ended, with the last lines of its log; None while it runs."""
        status = self._process.poll()
        if status is None:
            return None
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"the vLLM server at {self.address} {how}; {self.told()}"

    def told(self) -> str:
        """The first error and the last lines of its log since it was started."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            lines = [line.rstrip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if re.search(r"\b\w+Error: ", line)]
        first = [f"its first error: {errors[0]}"] if errors else []
        return "\n".join([f"its log {self.log}", *first, "its last lines:", *lines[-_LOG_LINES:]])

    def close(self, seconds: float = 10.0) -> None:
        """End it; it is killed where it takes longer than `seconds`. Its workers end with it."""
        self._process.terminate()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Server:
    """What is asked of one vLLM server, over HTTP. Belongs to one event loop.

    Every call raises `EngineLost` where the server does not answer in time, `BadAnswer` of them where it reports an
    error of its own or its answer cannot be used, and `EngineRefused` where it finds fault with what it was asked.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        key = os.environ.get(KEY)
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {key}"} if key else None,
            # A connection each: one that was kept might be closed by the server just when it is used again.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
        )

    async def close(self) -> None:
        await self._session.close()

    async def health(self, seconds: float = SHORT_SECONDS) -> None:
        """Returns when the server and its engine process live."""
        await self._ask("GET", "/health", seconds)

    async def describe(self, seconds: float = SHORT_SECONDS) -> tuple[int, int]:
        """Its number of tensor-parallel workers, and its context in tokens."""
        world = await self._ask("GET", "/get_world_size", seconds)
        models = await self._ask("GET", "/v1/models", seconds)
        try:
            return int(world["world_size"]), int(models["data"][0]["max_model_len"])
        except (KeyError, IndexError, TypeError, ValueError):
            raise BadAnswer(self.address, "what answers there is no vLLM server") from None

    async def gpus(self, seconds: float = SHORT_SECONDS) -> list[str]:
        """The UUIDs of the GPUs that its workers compute on; on CPUs none."""
        answer = await self._ask("POST", "/collective_rpc", seconds, {"method": "gpus"})
        try:
            return [str(gpu) for worker in answer["results"] for gpu in worker]
        except (KeyError, TypeError):
            raise BadAnswer(self.address, "its workers do not tell their GPUs") from None

    async def weight_version(self, seconds: float = SHORT_SECONDS) -> str:
        """The version of the weights it was last sent; 'default' before the first. The engine itself answers, between
        two steps: a hanging one does not."""
        answer = await self._ask("GET", "/weight_info", seconds)
        try:
            return str(answer["weight_version"])
        except (KeyError, TypeError):
            raise BadAnswer(self.address, "it does not tell the version of its weights") from None

    async def pause(self, seconds: float = SHORT_SECONDS) -> None:
        """Stop generating after the step under way; what is under way waits, and its keys and values are forgotten."""
        await self._ask("POST", "/pause", seconds, parameters={"mode": "keep"})

    async def resume(self, seconds: float = SHORT_SECONDS) -> None:
        """Go on, with whatever weights there are by now."""
        await self._ask("POST", "/resume", seconds)

    async def transfer(self, method: Transfer, info: Mapping[str, Any], seconds: float) -> None:
        """A call of a weight transfer; of `finish_update`, `info` is {"version": number}."""
        route, body = {
            "init_transfer": ("/init_weight_transfer_engine", {"init_info": info}),
            "start_update": ("/start_weight_update", None),
            "update": ("/update_weights", {"update_info": info}),
            "finish_update": ("/finish_weight_update", {"weight_version": f"{info.get('version')}"}),
        }[method]
        await self._ask("POST", route, seconds, body)

    async def generate(self, request: Request, sampling: Sampling, seconds: float) -> Sample:
        """One sample. Giving up the call gives up the generation."""
        answer = await self._generate(request.prompt_P, sampling_settings(sampling, request), seconds)
        try:
            choice = answer["choices"][0]
            logprobs = [told["logprob"] for told in choice["logprobs"]["content"]]
            spans = [(str(span["version"]), int(span["start"])) for span in choice["weight_versions"] or ()]
            return make_sample(request.prompt_P, choice["token_ids"], logprobs, spans, choice["finish_reason"])
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise BadAnswer(self.address, f"it answered with no sample: {error}") from None

    async def prompt_logprobs(self, prompt_P: np.ndarray, seconds: float) -> np.ndarray:
        """float32 logprobs [P - 1] of a prompt's tokens 1, 2, ..., always at temperature 1."""
        settings = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "detokenize": False}
        answer = await self._generate(prompt_P, settings, seconds)
        try:
            told = answer["prompt_logprobs"][1:]
            logprobs = [
                position[str(token)]["logprob"] for token, position in zip(prompt_P[1:].tolist(), told, strict=True)
            ]
            return np.array(logprobs, dtype=np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise BadAnswer(self.address, f"it answered without logprobs of the prompt: {error!r}") from None

    async def _generate(self, prompt_P: np.ndarray, settings: dict[str, Any], seconds: float) -> Any:
        body = {"token_ids": prompt_P.tolist(), "sampling_params": settings}
        return await self._ask("POST", "/inference/v1/generate", seconds, body)

    async def _ask(
        self,
        method: str,
        route: str,
        seconds: float,
        body: Any = None,
        parameters: Mapping[str, str] | None = None,
    ) -> Any:
        """The JSON of an answer; None where it has no content."""
        try:
            async with self._session.request(
                method,
                self.address + route,
                json=body,
                params=parameters,
                timeout=aiohttp.ClientTimeout(total=seconds),
            ) as response:
                status, content = response.status, await response.read()
        except TimeoutError:
            raise EngineLost(self.address, f"{route}: no answer within {seconds:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise EngineLost(self.address, f"{route}: {error or type(error).__name__}") from None
        if status >= 400:
            reason = f"{route}: status {status}: {' '.join(content.decode(errors='replace').split())[:300]}"
            if status in _BUSY:
                raise EngineLost(self.address, reason)
            if status >= 500:
                raise BadAnswer(self.address, reason)
            raise EngineRefused(f"{self.address}{reason}")
        try:
            return json.loads(content) if content.strip() else None
        except ValueError:
            raise BadAnswer(self.address, f"{route}: the answer is no JSON") from None


async def wait_until_up(
    server: Server, process: ServerProcess | None, seconds: float, setting: str = "rollout.start_seconds"
) -> None:
    """Wait for a server to answer, with a line in the log now and then. `setting` says how long.

    Raises:
        UserError: the process ended; it has the last lines of its log. Or it did not answer in time.
    """
    started = shown = time.monotonic()
    while True:
        try:
            return await server.health(5.0)
        except (EngineLost, EngineRefused) as error:
            reason = error.reason if isinstance(error, EngineLost) else str(error)
        ended = process.ended() if process else None
        if ended:
            raise UserError(ended)
        now = time.monotonic()
        if now - started > seconds:
            log = f"; {process.told()}" if process else "; is the address right, and is the server running?"
            raise UserError(f"{server.address}: no answer within {setting} {seconds:g} ({reason}){log}")
        if now - shown > _SECONDS_BETWEEN_LINES:
            shown = now
            where = f", its log: {process.log}" if process else f" ({reason})"
            logger.warning("waiting for the vLLM server at %s, %.0f s%s", server.address, now - started, where)
        await asyncio.sleep(0.5)

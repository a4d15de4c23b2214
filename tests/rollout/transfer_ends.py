"""Both ends of a weight transfer for tests: the trainer's ranks, and vLLM as it runs in a run: in a process that is not
the trainer's, or as a server."""

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qedmeg.rollout.engine import RolloutEngine, rollout_options
from qedmeg.rollout.protocol import EngineLost
from qedmeg.rollout.server import ServerProcess
from qedmeg.rollout.weight_transfer import TransferReport, WeightSender

START_SECONDS = 180.0
CALL_SECONDS = 60.0
LENGTH = 2048


def options(tp: int) -> dict[str, Any]:
    """Of an engine whose weights come by transfer alone."""
    return rollout_options(LENGTH, tp, concurrency=16, kv_cache_gib=0.0625)


# --- the trainer's ranks ---------------------------------------------------------------------------------------------


def build(folder: Path, sizes: dict[str, int], dtype: torch.dtype = torch.float32) -> tuple[Any, list[Any]]:
    """This rank's model chunks, not yet filled."""
    from qedmeg import parallel
    from qedmeg.model import build, families

    model, parallelism = families.read_architecture(folder), parallel.Parallelism(**sizes)
    parallel.check(parallelism, model, world_size=torch.distributed.get_world_size())
    parallel.initialize(parallelism, seed=1)
    return model, [chunk.to(dtype) for chunk in build.build_model(model, parallelism, build.Compute(dtype=dtype))]


def send_each(
    folders: Sequence[Path],
    sizes: dict[str, int],
    engines: Sequence[Any],
    seconds: float = CALL_SECONDS,
    first_version: int = 1,
    after: Callable[[Any], Any] | None = None,
) -> tuple[list[TransferReport], list[dict[str, Any]]]:
    """On each rank: send the weights of each folder in turn. The reports, and what `after` says of each engine then."""
    from qedmeg.model import weights

    model, chunks = build(folders[0], sizes)
    sender = WeightSender(chunks, model, seconds)
    leads = torch.distributed.get_rank() == 0
    reports, told = [], []
    for version, folder in enumerate(folders, first_version):
        weights.load_hf(chunks, model, folder)
        reports.append(sender.send(version, engines if leads else ()))
        told.append({engine.name: after(engine) for engine in engines} if leads and after else {})
    sender.close()
    return reports, told


# --- engines ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PipeControl:
    """An engine in another process, called over a socket file."""

    name: str
    workers: int
    path: str
    seconds: float = CALL_SECONDS
    gpus: tuple[str, ...] = ()

    def init_transfer(self, info: dict[str, Any]) -> None:
        self.call("init_transfer", info)

    def start_update(self) -> None:
        self.call("start_update")

    def update(self, info: dict[str, Any]) -> None:
        self.call("update", info)

    def finish_update(self, version: int) -> None:
        self.call("finish_update", version)

    def call(self, method: str, *arguments: Any) -> Any:
        try:
            with Client(self.path, "AF_UNIX") as connection:
                connection.send((method, arguments))
                if not connection.poll(self.seconds):
                    raise EngineLost(self.name, f"{method}: no answer in {self.seconds:g} s")
                worked, answer = connection.recv()
        except (OSError, EOFError) as error:
            raise EngineLost(self.name, f"{method}: {type(error).__name__}") from None
        if not worked:
            raise EngineLost(self.name, answer)
        return answer


def serve(path: str, engine: Any) -> None:
    """Answer `PipeControl` for ever, each call on a thread of its own."""

    def answer(connection: Any) -> None:
        with connection:
            method, arguments = connection.recv()
            try:
                connection.send((True, getattr(engine, method)(*arguments)))
            except Exception as error:
                connection.send((False, getattr(error, "reason", f"{type(error).__name__}: {error}")))

    with Listener(path, "AF_UNIX", backlog=16) as listener:
        while True:
            threading.Thread(target=answer, args=(listener.accept(),), daemon=True).start()


class _Engine(RolloutEngine):
    """The engine of the rollout process, and what the tests ask of it besides."""

    def greedy(self, prompts: list[list[int]], tokens: int) -> list[tuple[list[int], list[float]]]:
        return self._answers(prompts, tokens, temperature=0.0)

    def sampled(self, prompts: list[list[int]], tokens: int) -> list[tuple[list[int], list[float]]]:
        """As rollouts are."""
        return self._answers(prompts, tokens, temperature=1.0, seed=1)

    def _answers(self, prompts: list[list[int]], tokens: int, **sampling: float) -> list[tuple[list[int], list[float]]]:
        from vllm import SamplingParams

        asked: list[Any] = [{"prompt_token_ids": prompt} for prompt in prompts]
        settings = SamplingParams(max_tokens=tokens, logprobs=0, ignore_eos=True, detokenize=False, **sampling)
        choices = [output.outputs[0] for output in self._llm.generate(asked, settings, use_tqdm=False)]
        return [
            (list(c.token_ids), [told[t].logprob for t, told in zip(c.token_ids, c.logprobs, strict=True)])
            for c in choices
        ]

    def logprobs(self, prompts: list[list[int]]) -> list[np.ndarray]:
        return self.prompt_logprobs([np.array(prompt) for prompt in prompts])


def host_engine(folder: Path, path: str, options: dict[str, Any]) -> None:
    """The process of `EngineInProcess`."""
    serve(path, _Engine(folder, options))


class EngineInProcess:
    """An engine in a process of its own, as in the rollout process."""

    def __init__(
        self, folder: Path, tp: int, scratch: Path, host: Callable[..., None] = host_engine, **more: Any
    ) -> None:
        path = str(scratch / f"llm-{time.monotonic_ns()}")
        self.control = PipeControl("local", tp, path)
        self.process = multiprocessing.get_context("spawn").Process(
            target=host, args=(folder, path, options(tp) | more)
        )
        self.process.start()

    def wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not Path(self.control.path).exists():
            assert self.process.is_alive(), "the engine has ended"
            assert time.monotonic() < deadline, "the engine does not start"
            time.sleep(0.1)

    def close(self) -> None:
        self.process.kill()
        self.process.join()


@dataclass(frozen=True)
class HttpControl:
    """A vLLM server."""

    name: str
    workers: int
    seconds: float = CALL_SECONDS
    gpus: tuple[str, ...] = ()

    def init_transfer(self, info: dict[str, Any]) -> None:
        self.post("init_weight_transfer_engine", {"init_info": info})

    def start_update(self) -> None:
        self.post("start_weight_update")

    def update(self, info: dict[str, Any]) -> None:
        self.post("update_weights", {"update_info": info})

    def finish_update(self, version: int) -> None:
        self.post("finish_weight_update", {"weight_version": str(version)})

    def logprobs(self, prompts: list[list[int]]) -> list[np.ndarray]:
        answers = [self._generate(prompt, {"max_tokens": 1, "prompt_logprobs": 0}) for prompt in prompts]
        return [
            np.array([told[str(token)]["logprob"] for token, told in zip(p[1:], a["prompt_logprobs"][1:], strict=True)])
            for p, a in zip(prompts, answers, strict=True)
        ]

    def greedy(self, prompts: list[list[int]], tokens: int) -> list[tuple[list[int], list[float]]]:
        return [self.sample(prompt, tokens, temperature=0.0)[:2] for prompt in prompts]

    def sample(self, prompt: list[int], tokens: int, temperature: float = 1.0, seed: int = 0) -> Any:
        """Token ids, their logprobs, and (version, first index) of each weight version."""
        settings = {"max_tokens": tokens, "temperature": temperature, "seed": seed, "logprobs": 0, "ignore_eos": True}
        choice = self._generate(prompt, settings)["choices"][0]
        logprobs = [told["logprob"] for told in choice["logprobs"]["content"]]
        return choice["token_ids"], logprobs, [(span["version"], span["start"]) for span in choice["weight_versions"]]

    def _generate(self, prompt: list[int], settings: dict[str, Any]) -> Any:
        body = {"token_ids": prompt, "sampling_params": settings | {"detokenize": False}}
        return json.loads(self.post("inference/v1/generate", body))

    def post(self, route: str, body: Any = None) -> bytes:
        request = urllib.request.Request(
            f"{self.name}/{route}", json.dumps(body or {}).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=self.seconds) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            raise EngineLost(self.name, f"{route}: status {error.code}: {error.read().decode()[:500]}") from None
        except OSError as error:
            raise EngineLost(self.name, f"{route}: {error}") from None


class VllmServer:
    """A server, as the fleet starts it."""

    def __init__(self, folder: Path, tp: int, scratch: Path) -> None:
        self.process = ServerProcess(folder, options(tp), scratch / f"server-{time.monotonic_ns()}.log")
        self.control = HttpControl(self.process.address, tp)

    def wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self.process.ended() is None, self.process.ended()
            assert time.monotonic() < deadline, self.process.told()
            try:
                urllib.request.urlopen(f"{self.control.name}/health", timeout=2).close()
                return
            except OSError:
                time.sleep(0.3)

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        self.process.close()

"""What the trainer's rank 0 asks of the rollout process: to start it, send its engines weights, get batches.

with RolloutClient(config, run_dir, model_folder) as client:
    client.pause(); sender.send(version, client.engines()); client.resume(version)
    batch = client.batch(step)
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qedmeg import device
from qedmeg.config import GraderConfig
from qedmeg.config_rl import AdvantageConfig, ProblemConfig, RolloutConfig
from qedmeg.config_validation import ValidationConfig
from qedmeg.errors import RunFailed, UserError
from qedmeg.rollout.engine import CPU_ENVIRONMENT
from qedmeg.rollout.protocol import CONFIG_FILE, EngineLost, ProcessConfig
from qedmeg.rollout.protocol import WeightsNeeded as WeightsNeeded
from qedmeg.rollout.sample import Batch
from qedmeg.rollout.store import STORE_FILE, read_batch
from qedmeg.rollout.weight_transfer import EngineControl
from qedmeg.settings import save_config

COMMAND = (sys.executable, "-m", "qedmeg.rollout.process")
LOG_FILE = Path("logs", "rollout_process.log")
LOG_LINES = 20
"""So many of the last lines of its log are part of the error when it dies."""
SECONDS_BESIDE_ENGINES = 300.0
"""To start in, beside rollout.start_seconds: importing, reading problems, waiting for an earlier process to end."""
SECONDS_BESIDE_CALLS = 60.0
SECONDS_SILENT = 120.0
"""It says that it is alive every few seconds; silent for so long, it hangs."""
SECONDS_TO_CLOSE = 60.0
# torchrun's, which would make vLLM believe that it is one of the trainer's ranks, or leave it a single thread
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "OMP_NUM_THREADS")


class RolloutFailed(RunFailed):
    """The rollout process died, hangs, or could not do what it was asked."""


class _TooLate(RolloutFailed):
    """It did not answer in time."""


class RolloutSettings(Protocol):
    """The sections of a recipe's settings that rollouts depend on; `advantage` and `cache` too, where there are any."""

    @property
    def data(self) -> ProblemConfig: ...
    @property
    def rollout(self) -> RolloutConfig: ...
    @property
    def grader(self) -> GraderConfig: ...
    @property
    def validation(self) -> ValidationConfig | None: ...


@dataclass(frozen=True)
class Engine:
    """An engine of the rollout process, for the transfer of weights: `qedmeg.rollout.weight_transfer.EngineControl`."""

    name: str
    workers: int
    gpus: tuple[str, ...]
    client: "RolloutClient"

    def init_transfer(self, info: dict[str, Any]) -> None:
        self._call("init_transfer", info)

    def start_update(self) -> None:
        self._call("start_update", {})

    def update(self, info: dict[str, Any]) -> None:
        self._call("update", info)

    def finish_update(self, version: int) -> None:
        self._call("finish_update", {"version": version})

    def _call(self, method: str, info: dict[str, Any]) -> None:
        self.client.call(self.name, method, info)


class RolloutClient:
    """Starts the rollout process of a run and speaks to it, from any thread. Every call has a deadline.

    Raises, in every call:
        UserError: what the process says the user must mend.
        RolloutFailed: it has died (with the last lines of its log), hangs, or failed in what it was asked.
    """

    def __init__(
        self, config: RolloutSettings, run_dir: Path, model_folder: Path, *, command: Sequence[str] = COMMAND
    ) -> None:
        """Start it and wait until its engines and judges are up. `model_folder` is a Hugging Face folder, whose weights
        are not needed: engines are sent theirs."""
        self.store = run_dir.absolute() / STORE_FILE
        self.log = run_dir.absolute() / LOG_FILE
        # the process keeps these deadlines towards engines: its own error, which says more, comes first
        self._transfer_seconds = config.rollout.transfer_seconds + SECONDS_BESIDE_CALLS
        self._generate_seconds = config.rollout.generate_seconds + SECONDS_BESIDE_CALLS
        self._lock = threading.Lock()
        self._pending: dict[int, Future[Any]] = {}
        self._asked = 0
        self._ready: Future[None] = Future()
        self._end: Exception | None = None
        self._closing = False
        self._last_sign = time.monotonic()
        self._process = self._start(config, run_dir, model_folder, command)
        self._reader = threading.Thread(target=self._read, name="rollout-process", daemon=True)
        self._reader.start()
        try:
            judges = (judge.serve.start_seconds for judge in config.grader.judges if judge.serve is not None)
            seconds = config.rollout.start_seconds + max(judges, default=0.0) + SECONDS_BESIDE_ENGINES
            self._wait(self._ready, "start", seconds, silent=seconds)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "RolloutClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def engines(self) -> list[EngineControl]:
        """The engines that answer now."""
        live = self._ask("engines", self._transfer_seconds)
        return [Engine(name, workers, tuple(gpus), self) for name, workers, gpus in live]

    def pause(self) -> None:
        """No engine generates from now on; requests are kept."""
        self._ask("pause", self._transfer_seconds)

    def resume(self, version: int) -> None:
        """The engines that were sent this version go on."""
        self._ask("resume", self._transfer_seconds, version=version)

    def call(self, engine: str, method: str, info: dict[str, Any]) -> None:
        """One call of the weight transfer to an engine. Raises `EngineLost`."""
        try:
            self._ask("call", self._transfer_seconds, name=engine, call=method, info=info)
        except _TooLate as error:
            raise EngineLost(engine, str(error)) from None

    def prompt_logprobs(self, engine: str, prompts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """For each prompt of P tokens the engine's float32 logprobs [P - 1] of its tokens 1, 2, ... Raises
        `EngineLost`."""
        found = self._ask(
            "prompt_logprobs",
            self._generate_seconds,
            name=engine,
            prompts=[prompt.tolist() for prompt in prompts],
        )
        return [np.array(logprobs, dtype=np.float32) for logprobs in found]

    def batch(self, step: int) -> Batch:
        """The groups of a step, the same whenever it is asked for; waits as long as rollouts and grades come in.

        Raises:
            WeightsNeeded: publish the weights again, then ask again.
        """
        self._ask("batch", None, step=step)
        return read_batch(self.store, step)

    def validate(self, version: int, weights: str) -> dict[str, float]:
        """What to log of the validation of this version, which the engines must have until it is done: waits as long as
        it goes on. `weights` is a hash of them: what another life of the run has found of the same counts.

        Raises:
            WeightsNeeded: publish the weights again, then ask again.
        """
        found: dict[str, float] = self._ask("validate", None, version=version, weights=weights)
        return found

    def close(self) -> None:
        """End the process with its engines. May be called again."""
        self._closing = True
        if self._process.stdin and not self._process.stdin.closed:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._reader.join(SECONDS_TO_CLOSE)
        if self._reader.is_alive():
            self._kill()
            self._reader.join()

    def _start(
        self, config: RolloutSettings, run_dir: Path, model_folder: Path, command: Sequence[str]
    ) -> "subprocess.Popen[bytes]":
        self.log.parent.mkdir(parents=True, exist_ok=True)
        told = ProcessConfig(
            run_dir=run_dir.absolute(),
            model_folder=model_folder.absolute(),
            data=config.data,
            rollout=config.rollout,
            grader=config.grader,
            advantage=getattr(config, "advantage", AdvantageConfig()),
            trainer_gpus=int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.has_gpu() else 0,
            cache=getattr(config, "cache", None),
            validation=config.validation,
        )
        save_config(told, run_dir / CONFIG_FILE)
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*command, "--config", str(run_dir / CONFIG_FILE)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=({} if device.has_gpu() else CPU_ENVIRONMENT)
                | {name: value for name, value in os.environ.items() if not name.startswith(_TORCHRUN)},
                start_new_session=True,  # a Ctrl-C is the trainer's to act on
            )

    def _ask(self, method: str, seconds: float | None, **arguments: Any) -> Any:
        """The answer to a request. Without `seconds` it is waited for as long as the process shows life: it keeps
        deadlines of its own."""
        answer: Future[Any] = Future()
        with self._lock:
            if self._end is not None:
                raise self._end
            self._asked += 1
            self._pending[self._asked] = answer
            line = json.dumps({"id": self._asked, "method": method, "arguments": arguments}).encode() + b"\n"
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):  # it has died, which the reader tells of
                self._process.stdin.write(line)
                self._process.stdin.flush()
        return self._wait(answer, method, seconds, SECONDS_SILENT)

    def _wait(self, answer: "Future[Any]", method: str, seconds: float | None, silent: float) -> Any:
        begin = time.monotonic()
        while not wait([answer], 1.0).done:
            now = time.monotonic()
            if seconds is not None and now - begin > seconds:
                raise _TooLate(f"the rollout process did not answer '{method}' within {seconds:g} s; see {self.log}")
            if now - max(self._last_sign, begin) > silent:
                raise RolloutFailed(f"the rollout process hangs: it was silent for {silent:g} s; see {self.log}")
        return answer.result()

    def _read(self) -> None:
        """Take what the process says, until its end."""
        assert self._process.stdout is not None
        end: Exception | None = None
        try:
            for line in self._process.stdout:
                self._last_sign = time.monotonic()
                try:
                    message = json.loads(line)
                except ValueError:  # printed by an import, before the process could see to it
                    with self.log.open("ab") as log:
                        log.write(line)
                    continue
                if "fatal" in message:
                    end = _error(message["fatal"], self.log)
                else:
                    self._take(message)
        finally:
            self._kill()  # engines that it left behind
            status = self._process.wait()
            self._finish(end or RolloutFailed(f"the rollout process ended with status {status}{self._log_tail()}"))

    def _take(self, message: dict[str, Any]) -> None:
        if "say" in message:
            print(f"rollouts: {message['say']}", file=sys.stderr, flush=True)
        elif "ready" in message:
            self._ready.set_result(None)
        elif "id" in message:
            with self._lock:
                answer = self._pending.pop(message["id"])
            if "error" in message:
                answer.set_exception(_error(message["error"], self.log))
            else:
                answer.set_result(message["result"])

    def _finish(self, end: Exception) -> None:
        with self._lock:
            self._end = RolloutFailed("the rollout process was closed") if self._closing else end
            pending = [*self._pending.values(), self._ready]
            self._pending.clear()
        for answer in pending:
            if not answer.done():
                answer.set_exception(self._end)

    def _kill(self) -> None:
        """End all processes of its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _log_tail(self) -> str:
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 2**16))
            lines = log.read().decode(errors="replace").splitlines()[-LOG_LINES:]
        return f"; the last lines of {self.log}:\n" + "\n".join(lines)


def _error(told: dict[str, Any], log: Path) -> Exception:
    match told["kind"]:
        case "user":
            return UserError(told["message"])
        case "run failed":
            return RunFailed(told["message"])
        case "engine lost":
            return EngineLost(told["name"], told["message"])
        case "weights needed":
            return WeightsNeeded(told["message"])
    return RolloutFailed(f"the rollout process failed: {told['message']}; see {log}")

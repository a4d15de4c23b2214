"""A stand-in for an engine: the same link, without vLLM and a model, in a process that dies or hangs as it is told.

How an engine dies between two given buckets cannot be had from vLLM, nor an engine of another machine from one machine.
"""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tests.forked import processes
from tests.rollout.transfer_ends import PipeControl, serve

DAWDLED_SECONDS = 0.8


@dataclass(frozen=True)
class Behaviour:
    """What a stand-in does when it comes to bucket `bucket`: `hang`, `die`, `raise`, or nothing. Or it does `dawdle`
    from there on: takes each so slowly that it never hangs."""

    what: str = ""
    bucket: int = 3
    other_machine: bool = False
    """It cannot map the trainer's memory."""


class _StandInHere:
    def __init__(self, workers: int, behaviour: Behaviour, folder: Path) -> None:
        self.workers, self.behaviour, self.folder = workers, behaviour, folder
        self.links: list[Any] = []

    def init_transfer(self, info: dict[str, Any]) -> None:
        from qedmeg.rollout.gloo_link import EngineLink, SharedMemory

        memory = SharedMemory(**info["memory"])
        if self.behaviour.other_machine:
            memory = replace(memory, token="00" * 16)
        self.links = [None] * self.workers

        def join(number: int) -> None:
            where = info["master_address"], info["master_port"]
            self.links[number] = EngineLink(*where, number + 1, info["world_size"], info["seconds"], memory)

        self._on_all(join)

    def start_update(self) -> None:
        assert self.links, "no trainer has connected"

    def update(self, info: dict[str, Any]) -> None:
        self._on_all(lambda number: self._receive(number, info))

    def _receive(self, number: int, info: dict[str, Any]) -> None:
        from safetensors.torch import save_file

        from qedmeg.model.export import ExportedTensor, lay_out

        link, loaded = self.links[number], {}
        names = iter(zip(info["names"], info["dtype_names"], info["shapes"], strict=True))
        link.restart()
        for bucket, count in enumerate(info["buckets"]):
            tensors = [
                ExportedTensor(n, getattr(torch, d), tuple(s)) for n, d, s in (next(names) for _ in range(count))
            ]
            buffer = link.receive(sum(tensor.bytes for tensor in tensors))
            if bucket == self.behaviour.bucket and number == self.workers - 1:
                self._misbehave()
            if bucket >= self.behaviour.bucket and self.behaviour.what == "dawdle":
                time.sleep(DAWDLED_SECONDS)
            loaded |= {name: tensor.clone() for name, tensor in lay_out(tensors, buffer)}
            link.release()
        save_file(loaded, self.folder / f"worker-{number}.safetensors")

    def _misbehave(self) -> None:
        if self.behaviour.what == "hang":
            time.sleep(3600)
        if self.behaviour.what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.behaviour.what == "raise":
            for link in self.links:
                link.close()
            raise ValueError("cannot load this")

    def finish_update(self, version: int) -> None:
        (self.folder / "version").write_text(str(version))

    def end(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def stop(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def pid(self) -> int:
        return os.getpid()

    def _on_all(self, do: Callable[[int], None]) -> None:
        errors: list[BaseException] = []

        def run(number: int) -> None:
            try:
                do(number)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(self.workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]


def host_stand_in(path: str, workers: int, behaviour: Behaviour, folder: Path) -> None:
    """The process of `StandIn`: it starts the engine, and again whenever that has ended."""
    torch.set_num_threads(1)
    while True:
        engine = os.fork()
        if not engine:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: when this process ends
            serve(path, _StandInHere(workers, behaviour, folder))
        os.waitpid(engine, 0)
        os.unlink(path)
        behaviour = Behaviour()


class StandIn:
    """Receives weights into files, with so many workers, and dies or hangs as told; then it is started again."""

    def __init__(self, folder: Path, name: str, workers: int = 1, behaviour: Behaviour | None = None) -> None:
        self.folder = folder / f"{name}-{time.monotonic_ns()}"
        self.folder.mkdir()
        path = str(self.folder / "socket")
        self.control = PipeControl(name, workers, path)
        self.process = processes.Process(
            target=host_stand_in, args=(path, workers, behaviour or Behaviour(), self.folder)
        )
        self.process.start()

    def wait(self) -> None:
        deadline = time.monotonic() + 60
        while not Path(self.control.path).exists():
            assert self.process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def holds(self) -> tuple[int | None, list[dict[str, torch.Tensor]]]:
        """Version and weights by worker."""
        from safetensors.torch import load_file

        version = self.folder / "version"
        files = sorted(self.folder.glob("*.safetensors"))
        return int(version.read_text()) if version.exists() else None, [load_file(file) for file in files]

    def close(self) -> None:
        self.process.kill()
        self.process.join()

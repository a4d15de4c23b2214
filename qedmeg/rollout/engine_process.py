"""An engine for rollouts in a process of its own: several generate side by side, and grading waits for none of them.

Over a pair of sockets go calls, answered in their order, and between the answers the samples of a batch as they finish.
Both ends are this project's processes of one user; either ends with the other.
"""

import asyncio
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from qedmeg.errors import UserError
from qedmeg.rollout.engine import Request, RolloutEngine
from qedmeg.rollout.protocol import EngineLost
from qedmeg.rollout.sample import Sample, Sampling

SECONDS_TO_END = 10.0

logger = logging.getLogger(__name__)

Found = list[tuple[int, Sample]] | Exception
"""Samples that have finished, each with its request's index; or why there will be no more."""


class EngineProcess:
    """The rollout process's end. It belongs to the event loop that it was made in."""

    def __init__(self, name: str, model: Path, options: dict[str, Any], threads: int | None = None) -> None:
        """Start it, with `threads` for its arithmetic, or as many as it finds cores; wait for `started`."""
        self.name = name
        ours, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "qedmeg.rollout.engine_process", f"{theirs.fileno()}"],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=os.environ | ({"OMP_NUM_THREADS": f"{threads}"} if threads else {}),
            )
        self._connection = ours
        self._loop = asyncio.get_running_loop()
        self._answers: deque[asyncio.Future[Any]] = deque()
        self._found: Callable[[Found], None] = lambda _: None
        self._end: EngineLost | None = None
        threading.Thread(target=self._read, name=name, daemon=True).start()
        self.started = self._ask((model, options))
        """Done when it may be called."""

    async def call(self, method: str, *arguments: Any) -> Any:
        """What a method of its `RolloutEngine` returns, or `pause` or `resume`.

        Raises:
            EngineLost: it has ended.
            Exception: what the method raises.
        """
        return await self._ask((method, arguments))

    async def begin(self, requests: Sequence[Request], sampling: Sampling, found: Callable[[Found], None]) -> None:
        """Begin a batch; `found` is told of its samples as they finish, until it is complete or `abort` is called."""
        self._found = found
        await self.call("begin", requests, sampling)

    def fail(self, reason: str) -> None:
        """Tell who waits for the batch under way, if one is, that there will be no more of it."""
        self._found(EngineLost(self.name, reason))

    async def abort(self) -> None:
        """Give up the batch under way."""
        self._found = lambda _: None
        with suppress(EngineLost):
            await self.call("abort")

    async def close(self) -> None:
        """End it."""
        ended = self._ask(("close", ()))  # which nothing but its end answers
        try:
            await asyncio.to_thread(self._process.wait, SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
        await asyncio.gather(ended, return_exceptions=True)

    def _ask(self, what: Any) -> "asyncio.Future[Any]":
        answer: asyncio.Future[Any] = self._loop.create_future()
        if self._end is not None:
            answer.set_exception(self._end)
            return answer
        self._answers.append(answer)
        with suppress(OSError):  # it has ended: the reader will say so
            self._connection.send(what)
        return answer

    def _read(self) -> None:
        try:
            while True:
                message = self._connection.recv()
                self._loop.call_soon_threadsafe(self._take, *message)
        except (EOFError, OSError):
            with suppress(RuntimeError):  # the loop has ended too
                self._loop.call_soon_threadsafe(self._take, "end", None)

    def _take(self, kind: str, what: Any) -> None:
        match kind:
            case "found":
                self._found(what)
            case "answer":
                self._resolve(self._answers.popleft(), what)
            case "end":
                status = self._process.poll()
                told = "" if status is None else f" with status {status}"
                self._end = EngineLost(self.name, f"the engine's process has ended{told}; its log says why")
                self._found(self._end)
                while self._answers:
                    self._resolve(self._answers.popleft(), self._end)

    @staticmethod
    def _resolve(answer: "asyncio.Future[Any]", what: Any) -> None:
        if answer.done():  # nobody waits for it any more
            return
        if isinstance(what, Exception):
            answer.set_exception(what)
        else:
            answer.set_result(what)


def _serve(connection: Connection, engine: RolloutEngine) -> None:
    """Answer calls, and generate while there is something to; until it is told to close, or the other end is closed
    (EOFError)."""
    going = True
    while True:
        if engine.busy and going and not connection.poll():
            found = _tried(engine.step)
            if isinstance(found, Exception):
                engine.abort()
            if found:
                connection.send(("found", found))
            continue
        method, arguments = connection.recv()
        if method == "close":
            return
        if method in ("pause", "resume"):
            going = method == "resume"
            connection.send(("answer", None))
        else:
            connection.send(("answer", _tried(getattr(engine, method), *arguments)))


def _tried(function: Callable[..., Any], *arguments: Any) -> Any:
    """What it returns, or the exception that it raises, in a form that can be sent."""
    try:
        return function(*arguments)
    except Exception as error:
        if type(error) in (ValueError, UserError):
            return error
        logger.exception("%s", getattr(function, "__name__", function))
        return RuntimeError(f"{type(error).__name__}: {error}")


def main(descriptor: int) -> None:
    """The engine's process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # for the rollout process to act on
        signal.signal(number, lambda *_: None)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    with suppress(EOFError, BrokenPipeError, ConnectionResetError), Connection(descriptor) as connection:
        engine = _tried(RolloutEngine, *connection.recv())
        failed = isinstance(engine, Exception)
        connection.send(("answer", engine if failed else None))
        if not failed:
            _serve(connection, engine)
    os._exit(0)  # whatever threads vLLM has


if __name__ == "__main__":
    main(int(sys.argv[1]))

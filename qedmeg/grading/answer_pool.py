"""Processes that compare answers, each within a deadline and a bound on memory: what is hostile costs one of them."""

import asyncio
import contextlib
import json
import sys

from qedmeg.grading.answer_text import Comparison

START_SECONDS = 300
"""A process that starts imports sympy, on a busy machine slowly."""


class AnswerPool:
    """Compares answers in processes that are started when they are first needed. Belongs to one event loop.

    A comparison that takes longer than `seconds`, or more than `megabytes` of address space, is undecided: its process
    is ended, and another takes its place.
    """

    def __init__(self, processes: int = 2, seconds: int = 5, megabytes: int = 2048) -> None:
        self.seconds, self.megabytes = seconds, megabytes
        self._free = asyncio.Semaphore(processes)
        self._idle: list[asyncio.subprocess.Process] = []

    async def compare(self, reference: str, answer: str, statement: str) -> Comparison:
        """Whether an answer is the reference's, for the problem with this statement.

        Raises RuntimeError when no process can be started.
        """
        question = json.dumps({"reference": reference, "answer": answer, "statement": statement}) + "\n"
        async with self._free:
            process = self._idle.pop() if self._idle else await self._start()
            try:
                async with asyncio.timeout(self.seconds):
                    same, reason = await _ask(process, question)
            except TimeoutError:
                await _end(process)
                return Comparison(None, f"not compared within {self.seconds} s")
            except (OSError, ValueError):  # it has ended: out of memory, or of C stack
                await _end(process)
                return Comparison(None, "its comparison took too much memory")
            except BaseException:  # cancelled: it would go on with what nobody waits for
                await _end(process)
                raise
            self._idle.append(process)
            return Comparison(same, reason)

    async def close(self) -> None:
        """End the processes."""
        while self._idle:
            await _end(self._idle.pop())

    async def _start(self) -> asyncio.subprocess.Process:
        command = (sys.executable, "-m", "qedmeg.grading.answer_worker", str(self.seconds), str(self.megabytes))
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        try:
            async with asyncio.timeout(START_SECONDS):
                ready = await process.stdout.readline() if process.stdout else b""
        except BaseException:
            await _end(process)
            raise
        if ready != b"ready\n":
            await _end(process)
            raise RuntimeError(f"{' '.join(command)} did not start; what it printed says why")
        return process


async def _ask(process: asyncio.subprocess.Process, question: str) -> tuple[bool | None, str]:
    assert process.stdin is not None  # pipes were asked for
    assert process.stdout is not None
    process.stdin.write(question.encode())
    await process.stdin.drain()
    same, reason = json.loads(await process.stdout.readline())
    return same, reason


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()

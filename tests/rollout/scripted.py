"""Stand-ins for the rollout process's engines and graders, and the process with them.

`ScriptedFleet` stands in for vLLM engines: it answers the embedded problems with whole and damaged proofs, drawn by the
request's seed, after a delay. `ScriptedGrader` is the symbolic grader, which may be slow or fail. Both write a line for
each thing that they were asked to a file that outlives them, so that nothing is counted twice unseen over kills.

As a program it is the rollout process with these two, or with judges where there are any, which kills itself where it
is told to:

    python tests/rollout/scripted.py --config FOLDER/rollout_process.yaml      with FOLDER/script.json
"""

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from qedmeg.config import GraderConfig  # noqa: E402
from qedmeg.data.problems import Problem, demonstration, generate, reference_proof  # noqa: E402
from qedmeg.data.tokenizer import Tokenizer, load_tokenizer  # noqa: E402
from qedmeg.grading import symbolic  # noqa: E402
from qedmeg.grading.grade import Cost, Failed, Grade  # noqa: E402
from qedmeg.grading.grader import Grader, ProofProblem  # noqa: E402
from qedmeg.grading.panel import Panel  # noqa: E402
from qedmeg.rollout import process, server  # noqa: E402
from qedmeg.rollout.engine import Request  # noqa: E402
from qedmeg.rollout.protocol import EngineLost  # noqa: E402
from qedmeg.rollout.sample import Sample, Sampling  # noqa: E402
from qedmeg.rollout.store import Store  # noqa: E402

SCRIPT_FILE, GENERATED_FILE, GRADED_FILE = "script.json", "generated.txt", "graded.txt"
COMMAND = (sys.executable, str(Path(__file__).resolve()))


@dataclass(frozen=True)
class Script:
    """How engines and graders behave."""

    generate_seconds: float = 0.0
    """A rollout takes up to twice as long."""
    slow: float = 0.0
    """Share of rollouts that take a second."""
    grade_seconds: float = 0.0
    failing: float = 0.0
    """Share of proofs, drawn by their text, whose grade fails."""
    refused: float = 0.0
    """Share of proofs, drawn by their text, that graders refuse."""
    outage: tuple[int, int] = (0, 0)
    """All grades between these two, counted from 0, fail."""
    same: float = 0.0
    """Share of prompts that all rollouts prove."""
    thinking: bool = False
    kill: tuple[str, int, str] = ("", 0, "")
    """Store's method at whose n-th call (from 1) the process kills itself, and whether `before` or `after` it."""
    judge: str = ""
    """Program of the judges' servers, which is given the port, in place of vLLM's."""
    lose_weights_at: int = -1
    """After so many samples the engines say that they were started anew, until they are sent weights again."""
    refuses_weights: bool = False
    """The engine takes no weights, and says at its resumption that it needs them."""
    pause_seconds: float = 0.0
    """What a pause takes."""
    resumes: bool = True
    """Whether it can be resumed."""

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SCRIPT_FILE).write_text(json.dumps(asdict(self)))


@dataclass
class ScriptedFleet:
    """A stand-in for vLLM engines; one engine of one worker, named "scripted"."""

    script: Script
    log: Callable[[str], None]
    tokenizer: Tokenizer
    problems: dict[str, Problem]
    version: int = -1
    samples: int = 0
    sent: int = 0
    """How often it was resumed with weights."""
    delays: random.Random = field(default_factory=lambda: random.Random(0))
    going: asyncio.Event = field(default_factory=asyncio.Event)
    calls: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    one_batch_at_a_time = False

    async def start(self) -> None:
        pass

    async def generate(self, requests: Sequence[Request], sampling: Sampling) -> AsyncIterator[tuple[int, Sample]]:
        tasks = [asyncio.create_task(self._one(i, request, sampling)) for i, request in enumerate(requests)]
        try:
            for done in asyncio.as_completed(tasks):
                yield await done
        finally:
            for task in tasks:
                task.cancel()

    async def _one(self, index: int, request: Request, sampling: Sampling) -> tuple[int, Sample]:
        draw = random.Random(request.seed)
        await self.going.wait()
        first = self.version
        self.log(f"{request.seed}")
        if self.delays.random() < self.script.slow:
            await asyncio.sleep(1.0)
        elif self.script.generate_seconds:
            await asyncio.sleep(self.delays.uniform(0, 2 * self.script.generate_seconds))
        await self.going.wait()
        text = self._text(draw, self.tokenizer.decode(request.prompt_P.tolist()))
        tokens = [*self.tokenizer.encode(text), self.tokenizer.eos_id][: sampling.max_tokens]
        spans = ((first, 0),) if first == self.version or len(tokens) < 2 else ((first, 0), (self.version, 1))
        logprobs = [-draw.random() for _ in tokens]
        ended = tokens[-1] == self.tokenizer.eos_id
        self.samples += 1
        return index, Sample(
            prompt_P=request.prompt_P,
            tokens_T=np.array(tokens, dtype=np.int32),
            logprobs_T=np.array(logprobs, dtype=np.float32),
            versions=spans,
            finish_reason="stop" if ended else "length",
        )

    def _text(self, draw: random.Random, prompt: str) -> str:
        # of a state of the reasoning cache, the prompt holds more than the statement
        problem = next(problem for statement, problem in self.problems.items() if statement in prompt)
        if "Write notes on work" in prompt:
            return f"Notes {draw.getrandbits(20)} on this: {'go on. ' * draw.randrange(1, 9)}"
        if random.Random(problem.id).random() < self.script.same:
            return reference_proof(problem)
        proof = demonstration(problem, draw, incomplete=0.6, drop=0.5)
        if not self.script.thinking:
            return proof
        return (
            f"hm </think> no {proof}"
            if (what := draw.random()) < 0.2
            else (f"hm, perhaps {reference_proof(problem)}" if what < 0.4 else f"a </think> b </think>\n\n{proof}")
        )

    def live(self) -> list[tuple[str, int]]:
        return [("scripted", 1)]

    def gpus(self, name: str) -> list[str]:
        return [f"GPU of {name}"]

    def needs_weights(self) -> bool:
        lost = (self.sent == 1 and 0 <= self.script.lose_weights_at <= self.samples) or self.script.refuses_weights
        return lost and self.going.is_set()

    async def pause(self) -> None:
        self.going.clear()
        await asyncio.sleep(self.script.pause_seconds)

    async def resume(self, version: int) -> None:
        if not self.script.resumes:
            raise ValueError("it cannot be resumed")
        self.version, self.sent = version, self.sent + 1
        self.going.set()

    async def call(self, name: str, method: str, info: Mapping[str, Any]) -> None:
        self.calls.append((method, info))
        if self.script.refuses_weights:
            raise EngineLost(name, "size mismatch:\n  it serves another model")
        if info.get("fail"):
            raise EngineLost(name, "it was told to fail")

    async def prompt_logprobs(self, name: str, prompts: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [-prompt[1:].astype(np.float32) / 3 for prompt in prompts]

    async def close(self) -> None:
        pass


@dataclass
class ScriptedGrader:
    """The symbolic grader, slower and less reliable."""

    script: Script
    log: Callable[[str], None]
    version: str = "scripted"
    asked: int = 0
    draw: random.Random = field(default_factory=lambda: random.Random(0))

    async def grade(self, problem: Problem | ProofProblem, proof: str, again: int = 0) -> Grade:
        assert isinstance(problem, Problem)
        number, self.asked = self.asked, self.asked + 1
        if self.script.grade_seconds:
            await asyncio.sleep(self.draw.uniform(0, 2 * self.script.grade_seconds))
        cost = Cost(requests=1, prompt_tokens=10, completion_tokens=1)
        fails = random.Random(proof).random() < self.script.failing
        if fails or self.script.outage[0] <= number < self.script.outage[1]:
            self.log("failed")
            return Failed("timeout", "no answer", cost, of_grader=True)
        if random.Random(f"refused {proof}").random() < self.script.refused:
            self.log("refused")
            return Failed("refused", "not such a proof", cost)
        self.log("graded")
        graded = symbolic.grade(problem, proof)
        return type(graded)(graded.points, graded.of, graded.items, self.version, cost)

    async def close(self) -> None:
        pass


def problems(count: int = 12) -> list[Problem]:
    return generate("train", count, seed=3)


def appender(path: Path) -> Callable[[str], None]:
    """Writes lines that a kill right after it does not lose."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    return lambda line: (os.write(file, f"{line}\n".encode()), None)[1]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def kill_at(method: str, number: int, when: str, of: type = Store) -> None:
    original, calls = getattr(of, method), [0]

    def wrapped(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **named)
        if calls[0] == number and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(of, method, wrapped)


def main() -> int:
    run_dir = Path(sys.argv[sys.argv.index("--config") + 1]).parent
    told = json.loads((run_dir / SCRIPT_FILE).read_text())
    script = Script(**{name: tuple(value) if isinstance(value, list) else value for name, value in told.items()})
    if script.kill[1]:
        kill_at(*script.kill)
    if script.judge:
        server.command = lambda model, host, port, *_, **__: [sys.executable, "-c", script.judge, f"{port}"]
    os.write(1, b"a print of C before it begins\n")
    print("a print before it begins")

    def make_fleet(
        config: object, run_dir: Path, model_folder: Path, max_length: int, trainer_gpus: int
    ) -> ScriptedFleet:
        os.write(1, b"a print of C\n")
        print("a print", flush=True)
        by_statement = {problem.statement: problem for problem in problems()}
        return ScriptedFleet(script, appender(run_dir / GENERATED_FILE), load_tokenizer(model_folder), by_statement)

    def make_grader(config: GraderConfig) -> Grader:
        return Panel(config) if config.judges else ScriptedGrader(script, appender(run_dir / GRADED_FILE))

    return process.main(make_fleet, make_grader)


if __name__ == "__main__":
    sys.exit(main())

"""The rollout process: engines, grader and store in a process beside the trainer, whose rank 0 starts it.

It takes requests on stdin and answers on stdout (`qedmeg.rollout.protocol`), whatever else would be printed goes to
stderr. It ends, with its engines, when its parent does.
"""

import argparse
import asyncio
import gc
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qedmeg.config import GraderConfig
from qedmeg.config_rl import RolloutConfig
from qedmeg.data.prompts import load_prompts
from qedmeg.data.tokenizer import load_tokenizer
from qedmeg.errors import EXIT_USER_ERROR, RunFailed, UserError
from qedmeg.grading.grader import Grader, ProofProblem
from qedmeg.grading.graders import Graders
from qedmeg.grading.panel import make_grader
from qedmeg.model.families import read_architecture
from qedmeg.rollout.collect import Collector
from qedmeg.rollout.fleet import Fleet, gpus_in_use, make_fleet
from qedmeg.rollout.judges import served_judges
from qedmeg.rollout.prompt_source import ProblemOrder, PromptSource
from qedmeg.rollout.protocol import SECONDS_BETWEEN_SIGNS, EngineLost, ErrorKind, ProcessConfig, WeightsNeeded
from qedmeg.rollout.state_prompts import make_state_prompts
from qedmeg.rollout.state_source import StateSource, cache_identity
from qedmeg.rollout.store import STORE_FILE, Store
from qedmeg.rollout.summariser import ServedSummariser
from qedmeg.rollout.validation_plan import read_validation
from qedmeg.settings import load_config

if TYPE_CHECKING:
    from qedmeg.rollout.validation import Validator

LINE_BYTES = 2**28
"""Longest request."""
SECONDS_TO_END = 30.0
"""Time to end engines in; then they are left to notice by themselves."""

FleetMaker = Callable[[RolloutConfig, Path, Path, int, int], Fleet]
GraderMaker = Callable[[GraderConfig], Grader]

logger = logging.getLogger("qedmeg.rollout.process")


class Channel:
    """The way to the trainer: what was stdout. Prints of this process and its children go to stderr from now on."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self._out = os.dup(1)
        os.dup2(2, 1)
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Write one line. Nothing happens when nobody reads any more: the process then ends for another reason."""
        data = json.dumps(message).encode() + b"\n"
        with self._lock, suppress(BrokenPipeError):
            while data:
                data = data[os.write(self._out, data) :]

    def say(self, text: str) -> None:
        """Tell a person."""
        logger.info("%s", text)
        self.send({"say": text})


class _Told(logging.Handler):
    """Warnings are for people too."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(logging.WARNING)
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        self._channel.send({"say": record.getMessage()})


async def serve(config: ProcessConfig, channel: Channel, make_fleet: FleetMaker, make_grader: GraderMaker) -> None:
    """Make batches until the trainer closes the pipe or is gone. Raises what ends it otherwise."""
    tokenizer = load_tokenizer(config.data.tokenizer or config.model_folder, config.data.chat_template)
    context, max_tokens = read_architecture(config.model_folder).max_positions, config.rollout.max_tokens
    if max_tokens >= context:
        raise UserError(
            f"rollout.max_tokens: {max_tokens}: the model's context of {context} tokens leaves no room for a prompt; "
            "lower it"
        )
    prompts = load_prompts(config.data, tokenizer, context - max_tokens)
    if not config.grader.judges and any(isinstance(prompt.problem, ProofProblem) for prompt in prompts):
        raise UserError("grader.judges: none, and the symbolic grader knows the embedded problems only; set a judge")
    identity = {"data.seed": str(config.data.seed), "problems, prompt and tokenizer": prompts.fingerprint[:12]}
    longest = max(len(prompt.tokens_P) for prompt in prompts) + max_tokens
    asks = None
    if config.cache is not None:
        asks = make_state_prompts(tokenizer, prompts, config.data, config.rollout, config.cache, context)
        longest = max(longest, asks.room.whole)
        identity |= cache_identity(config.cache)
    validation = None
    if config.validation is not None:
        validation, validated = read_validation(config.validation, config.rollout, config.grader, tokenizer, context)
        longest = max(longest, validated)
    async with AsyncExitStack() as ending:
        store = ending.enter_context(closing(Store(config.run_dir / STORE_FILE, identity)))
        taken = gpus_in_use(config.rollout, config.trainer_gpus)  # make_fleet changes what this process sees
        grading, judges_up = await ending.enter_async_context(
            served_judges(config.grader, config.run_dir / "logs", taken)
        )
        fleet = make_fleet(config.rollout, config.run_dir, config.model_folder, longest, config.trainer_gpus)
        ending.push_async_callback(fleet.close)
        source: PromptSource = ProblemOrder(prompts, config.data.seed)
        if asks is not None:
            summariser = None
            if asks.cache.summariser is not None:
                summariser = ServedSummariser(asks.cache.summariser)
                ending.push_async_callback(summariser.close)
            source = StateSource(config, prompts, asks, fleet, store, summariser, channel.say)
        grader = make_grader(grading)
        ending.push_async_callback(grader.close)
        validator = None
        if validation is not None:
            from qedmeg.rollout.validation import Validator  # seconds to import, of statistics and plots

            graders = Graders(grading, grader)
            ending.push_async_callback(graders.close)
            validator = Validator(config, validation, longest, tokenizer, fleet, graders, channel.say)
            ending.callback(validator.close)
        collector = Collector(config, source, tokenizer, fleet, grader, store, channel.say)
        service = _Service(collector, fleet, judges_up, validator, channel)
        ending.push_async_callback(service.give_up)
        ending.callback(_exit_in, SECONDS_TO_END)  # the first that is done in the end, whatever hangs in the others
        await _until_the_trainer_ends(service)


class _Service:
    """Answers requests, each in a task of its own."""

    def __init__(
        self,
        collector: Collector,
        fleet: Fleet,
        judges_up: Awaitable[None],
        validator: "Validator | None",
        channel: Channel,
    ) -> None:
        self.collector, self.fleet, self.validator, self.channel = collector, fleet, validator, channel
        self._judges_up = judges_up
        self._under_way: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Start the engines while the judges' servers start too, and collect."""
        engines = asyncio.create_task(self.fleet.start())
        try:
            await asyncio.gather(engines, self._judges_up)
        finally:
            engines.cancel()  # where a judge has failed before
        gc.freeze()  # as the trainer does
        self.channel.send({"ready": True})
        await self.collector.run()

    async def read(self) -> None:
        """Take requests until the pipe is closed."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=LINE_BYTES)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        _watch_parent(loop, reader)
        while line := await reader.readline():
            task = asyncio.create_task(self._answer(json.loads(line)))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def show_life(self) -> None:
        """Say that the loop turns."""
        while True:
            self.channel.send({"alive": True})
            await asyncio.sleep(SECONDS_BETWEEN_SIGNS)

    async def give_up(self) -> None:
        """End what is being done for requests: nobody waits for the answers."""
        tasks = list(self._under_way)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, request: dict[str, Any]) -> None:
        try:
            answer = {"result": await self._do(request["method"], **request["arguments"])}
        except EngineLost as error:
            answer = {"error": {"kind": "engine lost", "name": error.name, "message": error.reason}}
        except Exception as error:
            if _kind(error) == "failed":
                logger.exception("%s", request["method"])
            answer = {"error": {"kind": _kind(error), "message": str(error) or type(error).__name__}}
        self.channel.send({"id": request["id"], **answer})

    async def _do(self, method: str, **arguments: Any) -> Any:
        match method:
            case "engines":
                return [(name, workers, self.fleet.gpus(name)) for name, workers in self.fleet.live()]
            case "pause":
                return await self.collector.pause()
            case "resume":
                return await self.collector.resume(arguments["version"])
            case "call":
                return await self.fleet.call(arguments["name"], arguments["call"], arguments["info"])
            case "batch":
                return await self.collector.batch(arguments["step"])
            case "prompt_logprobs":
                prompts = [np.array(prompt, dtype=np.int32) for prompt in arguments["prompts"]]
                found = await self.fleet.prompt_logprobs(arguments["name"], prompts)
                return [logprobs.tolist() for logprobs in found]
            case "validate" if self.validator is not None:
                return await self.validator.validate(arguments["version"], arguments["weights"])
        raise ValueError(f"no such method: {method}")


async def _until_the_trainer_ends(service: _Service) -> None:
    tasks = [asyncio.create_task(work) for work in (service.read(), service.run(), service.show_life())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _kind(error: Exception) -> ErrorKind:
    if isinstance(error, WeightsNeeded):
        return "weights needed"
    if isinstance(error, RunFailed):
        return "run failed"
    return "user" if isinstance(error, UserError) else "failed"


def _watch_parent(loop: asyncio.AbstractEventLoop, reader: asyncio.StreamReader) -> None:
    """End when the parent does: a process that it forked may hold the pipe open."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        _exit_in(SECONDS_TO_END)
        with suppress(RuntimeError):  # it has ended already
            loop.call_soon_threadsafe(reader.feed_eof)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _exit_in(seconds: float) -> None:
    """End the process then, whatever hangs in it."""
    timer = threading.Timer(seconds, os._exit, [1])
    timer.daemon = True
    timer.start()


def main(make_fleet: FleetMaker = make_fleet, make_grader: GraderMaker = make_grader) -> int:
    """Run the rollout process of one run; the exit status."""
    parser = argparse.ArgumentParser(
        description="Generate and grade rollouts for a trainer, whose rank 0 starts this and speaks JSON lines to it.",
        epilog="example:\n  python -m qedmeg.rollout.process --config runs/grpo/rollout_process.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="its resolved settings, which the trainer writes")
    arguments = parser.parse_args()
    # A signal that stops a job reaches this process too; the trainer still needs it to finish its step. Not SIG_IGN,
    # which would be passed on to servers.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    channel = Channel()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("qedmeg").addHandler(_Told(channel))
    try:
        asyncio.run(serve(load_config(ProcessConfig, arguments.config), channel, make_fleet, make_grader))
    except Exception as error:
        kind = _kind(error)
        if kind == "failed":
            logger.exception("the rollout process ends")
        message = str(error) if isinstance(error, UserError | RunFailed) else f"{type(error).__name__}: {error}"
        channel.send({"fatal": {"kind": kind, "message": message}})
        return EXIT_USER_ERROR if kind == "user" else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A collector with scripted engines and graders in this process, driven as a trainer does, and what it must keep to."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qedmeg.config import GraderConfig, ModelConfig
from qedmeg.config_rc import CacheConfig, RCConfig
from qedmeg.config_rl import GRPOConfig, ProblemConfig, RolloutConfig
from qedmeg.data.prompts import PromptSet, load_prompts
from qedmeg.data.tokenizer import Tokenizer, load_tokenizer
from qedmeg.grading.grade import Graded
from qedmeg.rollout.collect import Collector
from qedmeg.rollout.prompt_source import ProblemOrder, PromptSource
from qedmeg.rollout.protocol import ProcessConfig
from qedmeg.rollout.sample import Batch
from qedmeg.rollout.state_prompts import make_state_prompts
from qedmeg.rollout.state_source import StateSource
from qedmeg.rollout.store import STORE_FILE, Store, read_batch
from qedmeg.rollout.summariser import Summariser
from tests.checkpoints import make_checkpoint
from tests.data.conftest import PLAIN, save_byte_level
from tests.rollout.scripted import (
    GENERATED_FILE,
    GRADED_FILE,
    Script,
    ScriptedFleet,
    ScriptedGrader,
    appender,
    problems,
)

PROMPTS, GROUP, MAX_TOKENS = 3, 4, 400


@dataclass(frozen=True)
class Setting:
    """A model folder with problems."""

    model: Path
    rows: Path
    tokenizer: Tokenizer
    prompts: PromptSet

    def config(self, run_dir: Path, *, thinking: bool = False, **rollout: Any) -> GRPOConfig:
        """Three groups of four a step. With lag servers are asked for, which the scripted engines stand in for."""
        rollout = {"max_tokens": MAX_TOKENS, "start": int(rollout.get("max_lag", 0) > 0), "start_seconds": 60} | rollout
        return GRPOConfig(
            run_dir=run_dir,
            model=ModelConfig(hf=self.model),
            data=ProblemConfig(
                train=str(self.rows), prompts_per_step=PROMPTS, rollouts_per_prompt=GROUP, seed=5, thinking=thinking
            ),
            rollout=RolloutConfig(**rollout),
            grader=GraderConfig(),
        )

    def rc_config(self, run_dir: Path, cache: dict[str, Any], *, prompts: int = 4, **rollout: Any) -> RCConfig:
        """The same from states of the reasoning cache."""
        grpo = self.config(run_dir, **rollout)
        sections = {name: getattr(grpo, name) for name in type(grpo).model_fields}
        sections["data"] = grpo.data.model_copy(update={"prompts_per_step": prompts})
        return RCConfig(**sections, cache=CacheConfig(**({"rounds": 2, "summary_tokens": 60} | cache)))


def make_setting(folder: Path) -> Setting:
    """Write a model folder (random weights, a byte-level tokenizer) and rows of embedded problems."""
    make_checkpoint(folder / "model", vocab_size=400, num_hidden_layers=1)
    save_byte_level(folder / "model", PLAIN)
    rows = folder / "problems.jsonl"
    rows.write_text("".join(json.dumps(problem.to_json()) + "\n" for problem in problems()))
    tokenizer = load_tokenizer(folder / "model")
    return Setting(folder / "model", rows, tokenizer, load_prompts(ProblemConfig(train=str(rows)), tokenizer, 10_000))


@dataclass
class Run:
    """A collector that runs, with what it works with."""

    collector: Collector
    fleet: ScriptedFleet
    grader: ScriptedGrader
    store: Store
    said: list[str] = field(default_factory=list)

    async def step(self, step: int) -> Batch:
        """What a trainer does before it trains."""
        await self.collector.pause()
        await self.collector.resume(step)
        await self.collector.batch(step)
        return read_batch(self.store.path, step)


@asynccontextmanager
async def running(
    setting: Setting, config: GRPOConfig, script: Script, summariser: Summariser | None = None
) -> AsyncIterator[Run]:
    """A collector over the run folder of `config`."""
    folder = config.run_dir
    told = ProcessConfig(
        run_dir=folder,
        model_folder=setting.model,
        data=config.data,
        rollout=config.rollout,
        grader=config.grader,
        advantage=config.advantage,
        cache=getattr(config, "cache", None),
    )
    store = Store(folder / STORE_FILE, {"data.seed": "5"})
    by_statement = {problem.statement: problem for problem in problems()}
    fleet = ScriptedFleet(script, appender(folder / GENERATED_FILE), setting.tokenizer, by_statement)
    grader = ScriptedGrader(script, appender(folder / GRADED_FILE))
    said: list[str] = []
    source: PromptSource = ProblemOrder(setting.prompts, config.data.seed)
    if told.cache is not None:
        asks = make_state_prompts(
            setting.tokenizer, setting.prompts, told.data, told.rollout, told.cache, context=10_000
        )
        source = StateSource(told, setting.prompts, asks, fleet, store, summariser, said.append)
    collector = Collector(told, source, setting.tokenizer, fleet, grader, store, said.append)
    work = asyncio.create_task(collector.run())
    run = Run(collector, fleet, grader, store, said)
    driver = asyncio.current_task()
    work.add_done_callback(lambda task: task.cancelled() or driver is None or driver.cancel())
    try:
        yield run
    except asyncio.CancelledError:
        if work.done() and not work.cancelled():
            work.result()  # raises
        raise
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        store.close()


def collect(
    setting: Setting, config: GRPOConfig, script: Script, steps: int, train_seconds: float = 0.0, first: int = 0
) -> tuple[list[Batch], Run]:
    """The batches of steps `first` to `steps` - 1, training for a while after each."""

    async def drive() -> tuple[list[Batch], Run]:
        async with asyncio.timeout(60), running(setting, config, script) as run:
            batches = []
            for step in range(first, steps):
                batches.append(await run.step(step))
                await asyncio.sleep(train_seconds)
            return batches, run

    return asyncio.run(drive())


def content(batches: Sequence[Batch]) -> list[Any]:
    """All that a trainer learns from, to compare: not the store's ids, which follow the order of arrival."""
    return [
        [
            (
                group.id,
                group.problem,
                group.state,
                [
                    (
                        rollout.attempt,
                        rollout.sample.prompt_P.tobytes(),
                        rollout.sample.tokens_T.tobytes(),
                        rollout.sample.logprobs_T.tobytes(),
                        rollout.sample.versions,
                        rollout.grade.points,
                    )
                    for rollout in group.rollouts
                ],
            )
            for group in batch.groups
        ]
        + [
            [(one.sample.prompt_P.tobytes(), one.sample.tokens_T.tobytes(), one.reward) for one in summaries.rollouts]
            for summaries in batch.summaries
        ]
        for batch in batches
    ]


def check(batches: Sequence[Batch], max_lag: int) -> None:
    """What holds of every run: whole groups of grades, none used twice, none too old, the oldest first."""
    used: set[int] = set()
    for batch in batches:
        ids = [group.id for group in batch.groups]
        assert ids == sorted(ids)
        assert not used & set(ids), f"step {batch.step} uses groups again: {used & set(ids)}"
        used |= set(ids)
        for group in batch.groups:
            assert len(group.rollouts) >= 2
            assert len({rollout.id for rollout in group.rollouts}) == len(group.rollouts)
            for rollout in group.rollouts:
                assert isinstance(rollout.grade, Graded)
                assert batch.step - rollout.sample.oldest_version <= max_lag
                np.testing.assert_array_equal(rollout.sample.prompt_P, group.rollouts[0].sample.prompt_P)


def query(run_dir: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(run_dir / STORE_FILE)) as database:
        return database.execute(sql).fetchall()

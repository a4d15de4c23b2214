"""Validation of the weights that are trained: the harness of evaluations over the run's own engines and grader.

Each weight version has a run in the file of results, `step 40` and where asked for `step 40 greedy`; its score is what
`eval/stats.py` tells of it there. A validation that was cut off goes on where it was, asks and grades nothing twice.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from qedmeg.data.tokenizer import Tokenizer
from qedmeg.evaluation.generate import generate
from qedmeg.evaluation.grade import grade
from qedmeg.evaluation.plan import Plan
from qedmeg.evaluation.results import EvaluationRun, Results
from qedmeg.evaluation.stats import summaries
from qedmeg.evaluation.summary import Summary
from qedmeg.evaluation.workers import work_through
from qedmeg.grading.graders import Graders
from qedmeg.monitor.metrics import validation_note
from qedmeg.monitor.validation_metrics import validation_metrics
from qedmeg.reasoning.session import PROVER
from qedmeg.rollout.fleet import Fleet
from qedmeg.rollout.fleet_model import FleetModel
from qedmeg.rollout.protocol import EngineLost, ProcessConfig, WeightsNeeded
from qedmeg.rollout.remote import NoEngine
from qedmeg.rollout.sample import Sampling

VALIDATION_FILE = "validation.sqlite"
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_LINES = 10.0
ATTEMPTS_AT_ONCE = 1024
"""The engines see to it that they have no more than they can take."""


@dataclass(frozen=True)
class _Half:
    """The attempts of a validation that are sampled alike."""

    run: EvaluationRun
    model: FleetModel


class Validator:
    """Validates weight versions, one at a time. Belongs to one event loop; the fleet must be started."""

    def __init__(
        self,
        config: ProcessConfig,
        plan: Plan,
        longest: int,
        tokenizer: Tokenizer,
        fleet: Fleet,
        graders: Graders,
        say: Callable[[str], None],
    ) -> None:
        """`longest`: prompt and reply that the engines take, in tokens. `say` is told what a person should see."""
        assert config.validation is not None
        self._config, self._validation, self._plan = config, config.validation, plan
        self._max_length = config.validation.max_length or longest
        self._tokenizer, self._fleet, self._graders, self._say = tokenizer, fleet, graders, say
        self._results = Results(config.run_dir / VALIDATION_FILE)

    def close(self) -> None:
        """Close the file of results."""
        self._results.close()

    async def validate(self, version: int, weights: str) -> dict[str, float]:
        """What to log of the weights of this version, which the engines have and keep until it is done; `weights` is a
        hash of them.

        Raises:
            WeightsNeeded: send the engines their weights, and ask again.
            RuntimeError: the engines have died, hang, or have been sent other weights.
        """
        began = time.monotonic()
        halves = [self._half(version, weights, f"step {version}", self._validation.temperature)]
        if self._validation.greedy:
            halves.append(self._half(version, weights, f"step {version} greedy", 0.0, samples=1))
        found: dict[str, Summary] = {}

        async def work(half: _Half) -> None:
            found[half.run.name] = await self._evaluate(half)

        working = asyncio.create_task(work_through(halves, len(halves), work))
        try:
            await self._watch(working, version, [half.model for half in halves])
        except (EngineLost, NoEngine, TimeoutError) as error:
            raise RuntimeError(f"validation of step {version}: {error}") from error
        finally:
            working.cancel()
            await asyncio.gather(working, *(half.model.close() for half in halves), return_exceptions=True)
        metrics = validation_metrics(*(found[half.run.name] for half in halves))
        seconds = time.monotonic() - began
        self._say(f"step {version}: {validation_note(metrics)}; {seconds:.0f} s")
        return metrics | {"seconds": seconds}

    def _half(self, version: int, weights: str, name: str, temperature: float, samples: int | None = None) -> _Half:
        """A run, begun or found again."""
        validation, rollout = self._validation, self._config.rollout
        sampling = Sampling(
            temperature=temperature,
            max_tokens=validation.max_tokens or rollout.max_tokens,
            stop_ids=tuple(sorted(self._tokenizer.stop_ids)),
            seed=validation.seed,
        )
        title = self._config.run_dir.name
        answers = {
            "model": title,
            "weights": weights,
            "temperature": temperature,
            "max_tokens": sampling.max_tokens,
            "max_length": self._max_length,
        }
        graders = {self._graders.of(one.problem).version for one in self._plan.problems}
        run = self._plan.run(
            name, title, samples or validation.samples, {PROVER: answers}, grader=", ".join(sorted(graders))
        )
        self._begin(run)
        model = FleetModel(name, self._fleet, self._tokenizer, sampling, self._max_length, version)
        return _Half(run, model)

    def _begin(self, run: EvaluationRun) -> None:
        """What an earlier life of the run has of this version is of use where nothing that a score depends on is
        another: neither weights nor problems, settings or grader."""
        known = next((old for old in self._results.runs() if old.name == run.name), None)
        if known is not None:
            same = replace(known, samples=run.samples) == run and known.samples <= run.samples
            if not same or self._results.problems(run.name) != self._plan.problems:
                self._say(f"{run.name} was validated with other weights or settings, and is validated anew")
                self._results.forget(run.name)
        self._results.begin(run, self._plan.problems)

    async def _evaluate(self, half: _Half) -> Summary:
        run, plan = half.run, self._plan
        await generate(
            self._results,
            run.name,
            plan.problems,
            run.samples,
            plan.scaffold,
            {PROVER: half.model},
            budget=plan.budget,
            concurrency=ATTEMPTS_AT_ONCE,
        )
        await grade(self._results, run.name, self._graders, share_again=0.0, times=0, concurrency=ATTEMPTS_AT_ONCE)
        (summary,) = await asyncio.to_thread(summaries, self._results, [run.name])  # as eval/stats.py does
        return summary

    async def _watch(self, working: "asyncio.Task[None]", version: int, models: Sequence[FleetModel]) -> None:
        """Wait until the work is done, or will not be. Judges and servers keep deadlines of their own; of an engine
        that hangs nobody else would hear."""
        patience, replies = 2 * self._config.rollout.generate_seconds, 0
        since = said = time.monotonic()
        while not (await asyncio.wait([working], timeout=SECONDS_BETWEEN_LOOKS))[0]:
            if self._fleet.needs_weights():
                raise WeightsNeeded("no engine that answers has the weights that it should have")
            now, before = time.monotonic(), replies
            replies = sum(model.replies for model in models)
            if replies > before or not any(model.under_way for model in models):
                since = now
            if now - since > patience:
                raise TimeoutError(f"the engines answered nothing for {now - since:.0f} s")
            if now - said > SECONDS_BETWEEN_LINES:
                said = now
                self._say(f"validation of step {version}: {replies} replies so far")
        working.result()

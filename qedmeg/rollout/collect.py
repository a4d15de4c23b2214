"""From prompts to graded groups: rollouts are generated and graded side by side, and each step gets its batch.

A loop looks at what there is and does what is due: nothing that it decides by is kept in memory alone, so that it goes
on from the store as if it had never stopped.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from qedmeg.data.tokenizer import Tokenizer
from qedmeg.errors import UserError, first_error
from qedmeg.grading.grade import Failed, Grade
from qedmeg.grading.grader import Grader
from qedmeg.rollout import schedule
from qedmeg.rollout.fleet import Fleet, Request
from qedmeg.rollout.grading import NO_PROOF, PatientGrader, no_proof, proof_of
from qedmeg.rollout.live_group import LiveGroup, graded, slot_of
from qedmeg.rollout.prompt_source import PromptSource
from qedmeg.rollout.protocol import ProcessConfig, WeightsNeeded
from qedmeg.rollout.sample import Sample, Sampling
from qedmeg.rollout.store import Store
from qedmeg.rollout.stored_rows import StoredGroup

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_LOOKS = 1.0


class Collector:
    """Makes batches of graded groups. Belongs to one event loop; `run` must be running for anything to happen.

    The store must be open, the fleet started. `say` is told what a person should see.
    """

    def __init__(
        self,
        config: ProcessConfig,
        prompts: PromptSource,
        tokenizer: Tokenizer,
        fleet: Fleet,
        grader: Grader,
        store: Store,
        say: Callable[[str], None],
    ) -> None:
        self._config, self._prompts, self._tokenizer = config, prompts, tokenizer
        self._fleet, self._store, self._say = fleet, store, say
        self._grader = PatientGrader(
            grader, config.rollout.max_failure_rate, config.rollout.failure_pause_seconds, self._keep_failure, say
        )
        self._sampling = Sampling(
            temperature=config.rollout.temperature,
            max_tokens=config.rollout.max_tokens,
            stop_ids=tuple(sorted(tokenizer.stop_ids)),
            seed=config.data.seed,
        )
        self._version: int | None = None
        self._paused = True
        self._groups: dict[int, LiveGroup] = {}
        self._grading = 0
        self._changed = asyncio.Event()
        self._next_step = store.next_step
        self._asked: asyncio.Future[None] | None = None
        """Of the trainer, which waits for the batch of the next step."""
        self._waited: defaultdict[str, float] = defaultdict(float)
        """Seconds of its wait, by what was being done."""
        self._last_progress = time.monotonic()
        prompts.connect(self._begin, self._mark_progress)

    async def run(self) -> None:
        """Collect until it is cancelled. Raises what went wrong in an engine, a grader or the store."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                if anew := self._store.withdraw_grades(self._grader.version, NO_PROOF):
                    self._say(f"the grader is another one than before: {anew} proofs are graded again")
                for stored in self._store.groups():
                    self._take_up(stored)
                await self._loop()
        except BaseExceptionGroup as group:
            raise first_error(group) from None

    async def batch(self, step: int) -> None:
        """Wait until a step has been given its groups, which the store has then; at once where it was before.

        Raises:
            WeightsNeeded: send the engines their weights, and ask again.
            UserError: the store lacks steps before this one.
            RuntimeError: the engines have not been sent weights that this step may use.
        """
        if step < self._next_step:
            return
        self._check_follows(step, "step")
        version, max_lag = self._version, self._config.rollout.max_lag
        if version is None or not step - max_lag <= version <= step:
            raise RuntimeError(f"step {step} was asked for while the engines have weights of version {version}")
        if self._asked is not None:
            raise RuntimeError(f"step {step} was asked for twice at the same time")
        self._asked = asyncio.get_running_loop().create_future()
        self._last_progress = time.monotonic()
        self._changed.set()
        try:
            await self._asked
        finally:
            self._asked = None

    async def pause(self) -> None:
        """No token is generated from now on."""
        self._paused = True
        await self._fleet.pause()

    async def resume(self, version: int) -> None:
        """Go on with weights of this version."""
        self._check_follows(version, "weights of version")
        await self._fleet.resume(version)
        self._version, self._paused = version, False
        self._changed.set()

    def _check_follows(self, step: int, what: str) -> None:
        if step > self._next_step:
            raise UserError(
                f"{self._store.path}: holds the batches of {self._next_step} steps, and {what} {step} was asked for: "
                "it is not the file that belongs to the checkpoint; put it back, or start a new run from the "
                "checkpoint's weights in another run_dir"
            )

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def _loop(self) -> None:
        said = time.monotonic()
        while True:
            self._changed.clear()
            self._advance()
            since, doing = time.monotonic(), self._doing()
            try:
                async with asyncio.timeout(SECONDS_BETWEEN_LOOKS):
                    await self._changed.wait()
            except TimeoutError:
                pass
            now = time.monotonic()
            if not self._is_waited_for:
                said = now
                continue
            self._waited[doing] += now - since
            if now - said > SECONDS_BETWEEN_LINES:
                said = now
                self._say(self._progress())
            if self._fleet.needs_weights() and self._asked is not None:
                self._asked.set_exception(WeightsNeeded("no engine that answers has the weights that it should have"))
            self._check_progress(now)

    @property
    def _is_waited_for(self) -> bool:
        """Whether the trainer waits for the next step's batch."""
        return self._asked is not None and not self._asked.done()

    def _advance(self) -> None:
        """Do what is due."""
        step, max_lag = self._next_step, self._config.rollout.max_lag
        for group in list(self._groups.values()):
            self._settle(group, step)
        dropped = self._store.dropped(step)
        wanted = schedule.groups_wanted(
            self._config.data.prompts_per_step, self._config.rollout.max_refills, len(dropped["zero variance"])
        )
        generating = self._prompts.is_busy or any(group.generating for group in self._groups.values())
        idle = not self._grading and not generating
        if self._is_waited_for and (max_lag > 0 or idle):
            chosen = self._chosen(wanted, dropped["zero variance"])
            if chosen:
                self._assign(step, chosen)
                return
        if self._paused or self._version is None or schedule.is_too_old(self._version, step, max_lag):
            return
        if max_lag == 0 and not (self._is_waited_for and idle):
            return
        count = schedule.groups_to_begin(
            prompts_per_step=self._config.data.prompts_per_step,
            max_lag=max_lag,
            version=self._version,
            next_step=step,
            alive=len(self._groups),
            wanted=wanted,
            asked=self._is_waited_for,
        )
        self._begin_groups(count, self._version)
        if max_lag > 0 or not self._prompts.is_busy:
            self._generate_what_lacks()

    def _settle(self, group: LiveGroup, step: int) -> None:
        """Leave out what has become too old, and decide on a group of which all is done."""
        rollout = self._config.rollout
        for place, slot in group.slots.items():
            if slot.status != "too old" and schedule.is_too_old(slot.oldest_version, step, rollout.max_lag):
                self._store.mark_too_old(slot.rollout, step)
                group.slots[place] = replace(slot, status="too old")
                group.ready = False
        if group.ready or group.generating:
            return
        advantage = self._config.advantage if rollout.drop_zero_variance else None
        fate = schedule.fate(
            group.slots, group.size, rollout.regrades, rollout.min_graded, advantage, rollout.max_tokens
        )
        if fate == "ready":
            self._store.make_ready(group.id)
            group.ready = True
        elif fate != "open":
            self._store.drop(group.id, fate, step)
            del self._groups[group.id]

    def _chosen(self, wanted: int, zero_variance: Sequence[int]) -> list[int]:
        """The groups of the next step, the oldest first; none while there are too few."""
        most = self._config.data.prompts_per_step
        ready = sorted(group.id for group in self._groups.values() if group.ready)
        if ready and len(ready) >= wanted:
            return ready[:most]
        # Nothing but groups without variance, and all refills used up: they are what there is.
        return list(zero_variance[-most:]) if wanted == 0 else []

    def _assign(self, step: int, chosen: Sequence[int]) -> None:
        assert self._asked is not None
        left = sum(group.ready for group in self._groups.values() if group.id not in chosen)
        # without those that are used after all, where there is nothing else
        dropped = {reason: len(set(groups) - set(chosen)) for reason, groups in self._store.dropped(step).items()}
        stats = self._store.counts(step) | {f"groups_dropped/{reason}": count for reason, count in dropped.items()}
        stats |= {f"seconds_{doing}": self._waited[doing] for doing in ("generate", "grade", "paused")}
        stats |= {"groups_refilled": sum(dropped.values()), "queue_length": left} | self._prompts.counts(step)
        self._store.assign(step, chosen, stats)
        for group in chosen:
            self._groups.pop(group, None)
        self._next_step, self._waited = step + 1, defaultdict(float)
        self._asked.set_result(None)
        self._changed.set()

    def _begin_groups(self, count: int, version: int) -> None:
        first, size = self._store.next_group, self._config.data.rollouts_per_prompt
        if count == 0:
            return
        queue = schedule.Queue(self._next_step, len(self._groups), self._config.data.prompts_per_step)
        with self._store.transaction():
            prompts = self._prompts.draw(first, count, version, queue)
            for number, prompt in enumerate(prompts, start=first):
                self._store.begin_group(number, prompt.problem.id, prompt.tokens_P, size)
                self._groups[number] = LiveGroup(number, prompt.problem, prompt.tokens_P, size)

    def _generate_what_lacks(self) -> None:
        """Without lag all that groups lack is one batch, in order; with it each group is asked for by itself."""
        batch: list[tuple[LiveGroup, int, int]] = []
        for group in sorted(self._groups.values(), key=lambda group: group.id):
            if group.ready:
                continue
            lacking = schedule.to_generate(group.slots, group.size, self._config.rollout.regrades)
            batch += [(group, place, attempt) for place, attempt in lacking if place not in group.generating]
        for group, place, _ in batch:
            group.generating.add(place)
        if self._config.rollout.max_lag == 0:
            batches = [batch] if batch else []
        else:
            batches = [list(lacking) for _, lacking in groupby(batch, lambda one: one[0].id)]
        for one in batches:
            self._begin(self._generate(one))

    # --- generating and grading -------------------------------------------------------------------------------------

    async def _generate(self, batch: Sequence[tuple[LiveGroup, int, int]]) -> None:
        requests = [
            Request(
                prompt_P=group.prompt_P,
                seed=schedule.rollout_seed(self._config.data.seed, group.id, place, attempt),
            )
            for group, place, attempt in batch
        ]
        missing = set(range(len(batch)))
        async for index, sample in self._fleet.generate(requests, self._sampling):
            missing.remove(index)
            group, place, attempt = batch[index]
            self._add_sample(group, place, attempt, sample)
        if missing:
            raise RuntimeError(f"the engines gave no sample for {len(missing)} of {len(batch)} requests")

    def _add_sample(self, group: LiveGroup, place: int, attempt: int, sample: Sample) -> None:
        if self._config.rollout.max_lag == 0 and self._version is not None and sample.oldest_version < self._version:
            # left out as too old, it would be generated again and again
            raise RuntimeError(
                f"an engine went on with weight version {self._version} and generated with {sample.oldest_version}"
            )
        proof = proof_of(self._tokenizer, sample, thinking=self._config.data.thinking)
        rollout = self._store.add_sample(group.id, place, attempt, sample, proof)
        group.generating.remove(place)
        group.slots[place] = slot_of(rollout, attempt, sample)
        self._mark_progress()
        if not schedule.is_too_old(sample.oldest_version, self._next_step, self._config.rollout.max_lag):
            self._begin_grading(group, place, proof)

    def _take_up(self, stored: StoredGroup) -> None:
        """Go on with a group that an earlier process left."""
        prompt = self._prompts.prompt_of(stored.id)
        group = LiveGroup(stored.id, prompt.problem, prompt.tokens_P, stored.size)
        self._groups[stored.id] = group
        for rollout in stored.rollouts:
            slot = slot_of(rollout.id, rollout.attempt, rollout.sample)
            group.slots[rollout.place] = replace(slot, status="too old") if rollout.too_old else slot
            if rollout.too_old:
                continue
            if rollout.grade is not None:
                group.slots[rollout.place] = graded(slot, rollout.grade)
            else:
                self._begin_grading(group, rollout.place, rollout.proof)

    def _begin_grading(self, group: LiveGroup, place: int, proof: str | None) -> None:
        self._grading += 1
        self._begin(self._grade(group, place, proof))

    async def _grade(self, group: LiveGroup, place: int, proof: str | None) -> None:
        slot = group.slots[place]
        try:
            if proof is None:
                grade: Grade = no_proof(group.problem)
            else:
                grade = await self._grader.grade(group.problem, proof, slot.rollout)
        finally:
            self._grading -= 1
        self._store.add_grade(slot.rollout, grade)
        if group.slots[place].status == "ungraded":  # and has not become too old meanwhile
            group.slots[place] = graded(slot, grade)
        self._mark_progress()

    def _keep_failure(self, rollout: int, failed: Failed) -> None:
        self._store.add_grade(rollout, failed, counts=False)
        self._mark_progress()

    # --- what is said -----------------------------------------------------------------------------------------------

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.create_task(work)

    def _mark_progress(self) -> None:
        self._last_progress = time.monotonic()
        self._changed.set()

    def _doing(self) -> str:
        if self._prompts.is_busy or any(group.generating for group in self._groups.values()):
            return "generate"
        return "paused" if self._grader.is_paused else "grade"

    def _progress(self) -> str:
        groups = self._groups.values()
        ready, generating = sum(group.ready for group in groups), sum(len(group.generating) for group in groups)
        return (
            f"step {self._next_step}: {ready} of {self._config.data.prompts_per_step} groups ready, {generating} "
            f"rollouts being generated, {self._grading} graded"
            f"{', prompts are being generated' if self._prompts.is_busy else ''}"
        )

    def _check_progress(self, now: float) -> None:
        """Engines and graders keep their own deadlines: this is for one that does not."""
        judges = (judge.deadline_seconds for judge in self._config.grader.judges)
        patience = 2 * self._config.rollout.generate_seconds + max(judges, default=60.0)
        if now - self._last_progress > patience + self._config.rollout.failure_pause_seconds:
            raise RuntimeError(
                f"no rollout was generated or graded for {now - self._last_progress:.0f} s: {self._progress()}"
            )

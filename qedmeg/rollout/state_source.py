"""Prompts from the reasoning cache: chains are rolled out by the policy as it is, and their states wait in a buffer."""

from collections.abc import Callable, Sequence

from qedmeg.config_rc import CacheConfig
from qedmeg.data.problems import Problem
from qedmeg.data.prompts import Prompt, PromptSet
from qedmeg.grading.grader import ProofProblem
from qedmeg.reasoning.reasoning_cache import State
from qedmeg.rollout import schedule, states
from qedmeg.rollout.chains import Chain, Roller
from qedmeg.rollout.fleet import Fleet
from qedmeg.rollout.prompt_source import Begin
from qedmeg.rollout.protocol import ProcessConfig
from qedmeg.rollout.sample import Sampling
from qedmeg.rollout.schedule import Queue
from qedmeg.rollout.state_prompts import StatePrompts
from qedmeg.rollout.store import Store
from qedmeg.rollout.stored_chains import Chains
from qedmeg.rollout.summariser import Summariser


class StateSource:
    """A `PromptSource` of states. Chains take the problems in their order; see `qedmeg.rollout.states` for the rest.

    Without lag the chains of a version are rolled out first, all side by side, and then the step's states are drawn;
    with it chains are rolled out beside groups, and a state may be drawn once its chain is done. Where summaries are
    trained, they would lag too far behind if they stood back for older states: those get groups when no chain that may
    still give a fork is being rolled out.
    """

    def __init__(
        self,
        config: ProcessConfig,
        problems: PromptSet,
        prompts: StatePrompts,
        fleet: Fleet,
        store: Store,
        summariser: Summariser | None,
        say: Callable[[str], None],
    ) -> None:
        self._config, self._cache, self._problems, self._prompts = config, prompts.cache, problems, prompts
        self._fleet, self._summariser, self._say = fleet, summariser, say
        self._chains = Chains(store)
        self._rolling = 0
        self._taken_up = False
        self._in_vain: tuple[object, ...] | None = None
        """What `draw` was asked in vain, with the chains that were under way: the answer stays until one of them is
        done or the question is another. It comes with every reply and grade, and the buffer takes time to read."""

    def connect(self, begin: Begin, changed: Callable[[], None]) -> None:
        self._begin, self._changed = begin, changed
        rollout, seed = self._config.rollout, self._config.data.seed
        stop_ids = tuple(sorted(self._prompts.tokenizer.stop_ids))
        self._roller = Roller(
            config=self._cache,
            prompts=self._prompts,
            chains=self._chains,
            fleet=self._fleet,
            reasoning=Sampling(rollout.temperature, self._cache.reason_tokens or rollout.max_tokens, stop_ids, seed),
            summary=Sampling(rollout.temperature, self._cache.summary_tokens, stop_ids, seed),
            seed=seed,
            summariser=self._summariser,
            pause_seconds=rollout.failure_pause_seconds,
            changed=changed,
            say=self._say,
        )

    @property
    def is_busy(self) -> bool:
        return self._rolling > 0

    def draw(self, first: int, count: int, version: int, queue: Queue) -> Sequence[Prompt]:
        max_lag = self._config.rollout.max_lag
        self._take_up()
        if (max_lag == 0 and self.is_busy) or self._in_vain == (count, version, queue, self._rolling):
            return []
        self._chains.drop_over_aged(version - self._cache.max_age, queue.step)
        drawn = states.draw(
            self._chains.buffered(),
            count,
            self._cache,
            version=version,
            queue=queue,
            max_lag=max_lag,
            seed=self._config.data.seed,
        )
        begun = states.chains_to_begin(
            self._cache,
            self._config.data.prompts_per_step,
            begun=self._chains.begun(version),
            rolling=self._rolling,
            lacking=count - len(drawn),
        )
        self._begin_chains(begun, version)
        if self.is_busy and max_lag == 0:
            return []
        if self.is_busy and self._cache.train == "both":
            drawn = tuple(one for one in drawn if one.fork is not None)
        # after the chains that were begun now: when they are done, it is worth asking again
        self._in_vain = None if drawn else (count, version, queue, self._rolling)
        for group, one in enumerate(drawn, start=first):
            self._chains.keep_draw(group, one, version)
        return [self._prompt(*self._chains.state(one.state)) for one in drawn]

    def prompt_of(self, group: int) -> Prompt:
        return self._prompt(*self._chains.state_of(group))

    def counts(self, step: int) -> dict[str, float]:
        return self._chains.counts(step)

    def _prompt(self, chain: int, round: int, summary: str) -> Prompt:
        problem = self._problem(chain)
        return Prompt(problem, self._prompts.of(State(problem.statement, round, summary)))

    def _problem(self, chain: int) -> Problem | ProofProblem:
        return self._problems[schedule.prompt_of(chain, self._config.data.seed, len(self._problems))].problem

    def _take_up(self) -> None:
        """Go on with the chains that an earlier process left."""
        if self._taken_up:
            return
        self._taken_up = True
        self._roll_out([Chain.of(stored, self._problem(stored.id).statement) for stored in self._chains.unfinished()])

    def _begin_chains(self, count: int, version: int) -> None:
        first = self._chains.next_chain
        chains = []
        for number in range(first, first + count):
            problem = self._problem(number)
            chains.append(Chain(number, problem.statement, {(1, 0): self._chains.begin(number, problem.id, version)}))
        self._roll_out(chains)

    def _roll_out(self, chains: Sequence[Chain]) -> None:
        """Without lag all of them side by side, with it each by itself."""
        apart = self._config.rollout.max_lag > 0
        for part in [[chain] for chain in chains] if apart else [chains] if chains else []:
            self._rolling += len(part)
            self._begin(self._rolled_out(part))

    async def _rolled_out(self, chains: Sequence[Chain]) -> None:
        await self._roller.roll_out(chains)
        self._rolling -= len(chains)
        self._changed()


def cache_identity(cache: CacheConfig) -> dict[str, str]:
    """What of the cache may not change while a run goes on, by setting: chains that are begun would be another's."""
    fixed = ("rounds", "keep", "prompts", "train")
    return {f"cache.{name}": str(getattr(cache, name)) for name in fixed} | {
        "summaries of a state": f"{cache.siblings}"
    }

"""Rolls out chains of the reasoning cache: reason, summarise, reason again from the summary, with a run's engines.

What is due follows from the turns and states that the store has, so that a chain goes on where a process that was
killed left it. Rolled out side by side, the same turns of all chains are one batch.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from qedmeg.config_rc import CacheConfig
from qedmeg.reasoning.call import ModelFailedError
from qedmeg.reasoning.reasoning_cache import State, summarised
from qedmeg.rollout.fleet import Fleet, Request
from qedmeg.rollout.sample import Sample, Sampling
from qedmeg.rollout.state_prompts import StatePrompts
from qedmeg.rollout.states import Kind, turn_seed
from qedmeg.rollout.stored_chains import Chains, ChainState, StoredChain, Turn
from qedmeg.rollout.summariser import Summariser


@dataclass(eq=False)
class Chain:
    """A chain that is being rolled out."""

    id: int
    statement: str
    states: dict[tuple[int, int], ChainState]
    """By round and place."""
    reasoning: dict[int, Turn] = field(default_factory=dict)
    """By round."""

    def before(self, round: int) -> ChainState:
        """What the round begins with."""
        return self.states[round, 0]

    def state(self, round: int) -> State:
        """The same, as prompts are made of it."""
        return State(self.statement, round, self.before(round).summary)

    @property
    def round(self) -> int:
        """The last round that has a state."""
        return max(round for round, place in self.states if place == 0)

    @classmethod
    def of(cls, stored: StoredChain, statement: str) -> "Chain":
        """What the store has of it."""
        return cls(
            stored.id,
            statement,
            {(state.round, state.place): state for state in stored.states},
            {turn.round: turn for turn in stored.turns if turn.kind == "reason"},
        )


@dataclass(frozen=True)
class Roller:
    """Rolls chains out. `changed` is called when there is another turn, `say` told what a person should see."""

    config: CacheConfig
    prompts: StatePrompts
    chains: Chains
    fleet: Fleet
    reasoning: Sampling
    summary: Sampling
    seed: int
    summariser: Summariser | None
    pause_seconds: float
    """Before a summariser that failed is asked again."""
    changed: Callable[[], None]
    say: Callable[[str], None]

    async def roll_out(self, chains: Sequence[Chain]) -> None:
        """All rounds of these chains, side by side."""
        open_ = list(chains)
        while open_:
            await self._reason([chain for chain in open_ if self._reasons_next(chain)])
            await self._summarise([(chain, place) for chain in open_ for place in self._places_due(chain)])
            for chain in open_:
                if self._is_done(chain):
                    self.chains.finish(chain.id)
                    self.changed()
            open_ = [chain for chain in open_ if not self._is_done(chain)]

    def _round(self, chain: Chain) -> int:
        """The round that is under way: all places of the state before it are there."""
        round = chain.round
        whole = round == 1 or all((round, place) in chain.states for place in range(self.config.siblings))
        return round if whole else round - 1

    def _is_done(self, chain: Chain) -> bool:
        return self._round(chain) > self.config.rounds

    def _reasons_next(self, chain: Chain) -> bool:
        return not self._is_done(chain) and self._round(chain) not in chain.reasoning

    def _places_due(self, chain: Chain) -> list[int]:
        round = self._round(chain)
        if self._is_done(chain) or round not in chain.reasoning:
            return []
        return [place for place in range(self.config.siblings) if (round + 1, place) not in chain.states]

    async def _reason(self, chains: Sequence[Chain]) -> None:
        def keep(index: int, sample: Sample) -> None:
            chain = chains[index]
            turn = self._turn(self._round(chain), "reason", 0, sample)
            self.chains.add_turn(chain.id, turn)
            chain.reasoning[turn.round] = turn

        asked = [(chain, self._round(chain), 0, self.prompts.of(chain.state(self._round(chain)))) for chain in chains]
        await self._generate(asked, "reason", self.reasoning, keep)

    async def _summarise(self, due: Sequence[tuple[Chain, int]]) -> None:
        """A round that brought forth nothing is not summarised: the state after it is the one before."""
        asked: list[tuple[Chain, int, int, np.ndarray]] = []
        waiting: list[Awaitable[None]] = []
        for chain, place in due:
            round = self._round(chain)
            turn = chain.reasoning[round]
            reasoning = summarised(turn.thinking, turn.text)
            if not reasoning:
                self._add_state(chain, round, place, None)
            elif self.summariser is not None:
                waiting.append(self._ask(self.summariser, chain, round, reasoning))
            else:
                asked.append((chain, round, place, self.prompts.summarise_tokens(chain.state(round), reasoning)))

        def keep(index: int, sample: Sample) -> None:
            chain, round, place, _ = asked[index]
            self._add_state(chain, round, place, self._turn(round, "summarise", place, sample))

        await self._generate(asked, "summarise", self.summary, keep)
        await asyncio.gather(*waiting)

    async def _generate(
        self,
        asked: Sequence[tuple[Chain, int, int, np.ndarray]],
        kind: Kind,
        sampling: Sampling,
        keep: Callable[[int, Sample], None],
    ) -> None:
        requests = [
            Request(prompt_P, turn_seed(self.seed, chain.id, round, kind, place))
            for chain, round, place, prompt_P in asked
        ]
        left = len(requests)
        if requests:
            async for index, sample in self.fleet.generate(requests, sampling):
                keep(index, sample)
                left -= 1
                self.changed()
        if left:
            raise RuntimeError(f"the engines gave no sample for {left} of {len(requests)} turns of chains")

    async def _ask(self, summariser: Summariser, chain: Chain, round: int, reasoning: str) -> None:
        """Ask a frozen summariser until it answers: a chain without a summary would be one of fewer rounds."""
        messages = self.prompts.summarise(chain.state(round), reasoning)
        while True:
            try:
                reply = await summariser.summarise(messages, self.summary.max_tokens)
                break
            except ModelFailedError as failure:
                self.say(f"the summariser fails ({failure}); it is asked again in {self.pause_seconds:g} s")
                await asyncio.sleep(self.pause_seconds)
        clean = self.prompts.cleaned
        turn = Turn(
            round=round,
            kind="summarise",
            place=0,
            version=chain.reasoning[round].version,
            tokens=reply.tokens,
            thinking=clean(reply.thinking),
            text=clean(reply.text),
            truncated=reply.finish_reason == "length",
        )
        self._add_state(chain, round, 0, turn)
        self.changed()

    def _turn(self, round: int, kind: Kind, place: int, sample: Sample) -> Turn:
        thinking, text = self.prompts.read(sample.tokens_T)
        return Turn(
            round=round,
            kind=kind,
            place=place,
            version=sample.oldest_version,
            tokens=len(sample.tokens_T),
            thinking=thinking,
            text=text,
            truncated=sample.finish_reason == "length",
            sample=sample,
        )

    def _add_state(self, chain: Chain, round: int, place: int, turn: Turn | None) -> None:
        before = chain.before(round)
        after = self.prompts.after(chain.state(round), "" if turn is None else turn.text)
        wrote = chain.reasoning[round] if turn is None else turn
        version = min(before.version, chain.reasoning[round].version, wrote.version)
        state = ChainState(0, round + 1, place, version, after.summary)
        chain.states[round + 1, place] = self.chains.add_summary(chain.id, turn, before, state)

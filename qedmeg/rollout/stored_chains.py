"""What a run with the reasoning cache keeps beside its rollouts: chains, their turns and states, and which groups the
states got. In the same file; the rollout process is its only writer.

    chains   id (its number in the order of problems), problem, the weight version it was begun with, whether it is done
    turns    a reply of a chain: round, kind, place; prompt, tokens, logprobs and versions as of a rollout (none where a
             frozen summariser wrote it), its thinking and its text
    states   a state: chain, round, place, parent, the turn that wrote its summary, the summary, the oldest version;
             `dropped` while this step was being filled, since it had become too old
    draws    a group's state, the version that it was begun with, and the fork that it was drawn with

Nothing is ever deleted.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qedmeg.rollout.sample import Sample
from qedmeg.rollout.states import BufferedChain, BufferedState, Drawn, Kind
from qedmeg.rollout.store import Store
from qedmeg.rollout.stored_rows import encodable, ints, sample_columns

SCHEMA = """
CREATE TABLE IF NOT EXISTS chains (
    id INTEGER PRIMARY KEY, problem TEXT NOT NULL, version INTEGER NOT NULL, done INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS turns (
    id INTEGER PRIMARY KEY, chain INTEGER NOT NULL REFERENCES chains (id), round INTEGER NOT NULL, kind TEXT NOT NULL,
    place INTEGER NOT NULL, version INTEGER NOT NULL, tokens INTEGER NOT NULL, thinking TEXT NOT NULL,
    text TEXT NOT NULL, prompt BLOB, token_ids BLOB, logprobs BLOB, versions TEXT, finish_reason TEXT NOT NULL,
    UNIQUE (chain, round, kind, place)
);
CREATE TABLE IF NOT EXISTS states (
    id INTEGER PRIMARY KEY, chain INTEGER NOT NULL REFERENCES chains (id), round INTEGER NOT NULL,
    place INTEGER NOT NULL, parent INTEGER REFERENCES states (id), turn INTEGER REFERENCES turns (id),
    version INTEGER NOT NULL, summary TEXT NOT NULL, dropped INTEGER, UNIQUE (chain, round, place)
);
CREATE INDEX IF NOT EXISTS states_held ON states (chain) WHERE dropped IS NULL;
CREATE TABLE IF NOT EXISTS draws (
    "group" INTEGER PRIMARY KEY, state INTEGER NOT NULL REFERENCES states (id), version INTEGER NOT NULL, fork INTEGER
);
CREATE INDEX IF NOT EXISTS draws_by_state ON draws (state);
CREATE INDEX IF NOT EXISTS draws_by_fork ON draws (fork) WHERE fork IS NOT NULL;
"""


@dataclass(frozen=True)
class Turn:
    """A reply in a chain."""

    round: int
    kind: Kind
    place: int
    version: int
    """The oldest weights that wrote it; of a frozen summariser's, those of what it summarises."""
    tokens: int
    thinking: str
    text: str
    truncated: bool
    sample: Sample | None = None
    """None: a frozen summariser wrote it."""


@dataclass(frozen=True)
class ChainState:
    """A state of a chain."""

    id: int
    round: int
    place: int
    version: int
    summary: str


@dataclass(frozen=True)
class StoredChain:
    """A chain that is not done: what there is of it."""

    id: int
    version: int
    states: tuple[ChainState, ...]
    turns: tuple[Turn, ...]
    """Without their samples."""


class Chains:
    """The writer of a run's chains, over its store of rollouts. Each method is a transaction, or part of the caller's.

    Raises `UserError` as the store does.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        store.add_tables(SCHEMA)

    @property
    def next_chain(self) -> int:
        """The first number that no chain has."""
        ((last,),) = self._store.read("SELECT max(id) FROM chains")
        return 0 if last is None else int(last) + 1

    def begun(self, version: int) -> int:
        """Chains that were begun with these weights."""
        ((count,),) = self._store.read("SELECT count(*) FROM chains WHERE version = ?", version)
        return int(count)

    def begin(self, chain: int, problem: str, version: int) -> ChainState:
        """A chain is open from now on, with its first state."""
        with self._store.transaction():
            self._store.write("INSERT INTO chains (id, problem, version) VALUES (?, ?, ?)", chain, problem, version)
            id = self._add_state(chain, 1, 0, None, None, version, "")
        return ChainState(id, 1, 0, version, "")

    def add_turn(self, chain: int, turn: Turn) -> int:
        """Keep a reply; its id."""
        columns: Sequence[object] = (None, None, None, None, "length" if turn.truncated else "stop")
        if turn.sample is not None:
            columns = (ints(turn.sample.prompt_P), *sample_columns(turn.sample))
        return self._store.write(
            "INSERT INTO turns (chain, round, kind, place, version, tokens, thinking, text, prompt, token_ids, "
            "logprobs, versions, finish_reason) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            chain,
            turn.round,
            turn.kind,
            turn.place,
            turn.version,
            turn.tokens,
            encodable(turn.thinking),
            encodable(turn.text),
            *columns,
        )

    def add_summary(self, chain: int, turn: Turn | None, parent: ChainState, state: ChainState) -> ChainState:
        """Keep a summary with the state that it leads to, which gets its id; without `turn` there was nothing to
        summarise."""
        with self._store.transaction():
            wrote = None if turn is None else self.add_turn(chain, turn)
            id = self._add_state(chain, state.round, state.place, parent.id, wrote, state.version, state.summary)
        return ChainState(id, state.round, state.place, state.version, state.summary)

    def _add_state(
        self, chain: int, round: int, place: int, parent: int | None, turn: int | None, version: int, summary: str
    ) -> int:
        """Keep a state; its id."""
        return self._store.write(
            "INSERT INTO states (chain, round, place, parent, turn, version, summary) VALUES (?, ?, ?, ?, ?, ?, ?)",
            chain,
            round,
            place,
            parent,
            turn,
            version,
            encodable(summary),
        )

    def finish(self, chain: int) -> None:
        """The chain's states may be drawn from now on."""
        self._store.write("UPDATE chains SET done = 1 WHERE id = ?", chain)

    def unfinished(self) -> list[StoredChain]:
        """The chains that are not done, in order."""
        found = []
        for id, version in self._store.read("SELECT id, version FROM chains WHERE NOT done ORDER BY id"):
            states = self._store.read(
                "SELECT id, round, place, version, summary FROM states WHERE chain = ? ORDER BY id", id
            )
            turns = self._store.read(
                "SELECT round, kind, place, version, tokens, thinking, text, finish_reason = 'length' FROM turns "
                "WHERE chain = ? ORDER BY id",
                id,
            )
            found.append(
                StoredChain(id, version, tuple(ChainState(*row) for row in states), tuple(Turn(*row) for row in turns))
            )
        return found

    def drop_over_aged(self, oldest: int, step: int) -> None:
        """Leave the states out that are older than version `oldest`."""
        self._store.write("UPDATE states SET dropped = ? WHERE dropped IS NULL AND version < ?", step, oldest)

    def buffered(self) -> tuple[BufferedChain, ...]:
        """The chains that are done, with their states that were not dropped."""
        chains: dict[int, list[BufferedState]] = defaultdict(list)
        for id, chain, *columns, alive, drawn in self._store.read(_BUFFERED):
            earned = _mean_reward(self._store, id) if drawn is not None else None
            state = BufferedState(id, chain, *columns)
            chains[chain].append(replace(state, alive=bool(alive), drawn=drawn, earned=earned))
        return tuple(BufferedChain(chain, tuple(states)) for chain, states in chains.items())

    def keep_draw(self, group: int, drawn: Drawn, version: int) -> None:
        """The group is of this state, and was begun with these weights."""
        self._store.write(
            'INSERT INTO draws ("group", state, version, fork) VALUES (?, ?, ?, ?)',
            group,
            drawn.state,
            version,
            drawn.fork,
        )

    def state_of(self, group: int) -> tuple[int, int, str]:
        """Chain, round and summary of a group's state."""
        ((chain, round, summary),) = self._store.read(
            'SELECT s.chain, s.round, s.summary FROM draws d JOIN states s ON s.id = d.state WHERE d."group" = ?', group
        )
        return int(chain), int(round), str(summary)

    def state(self, id: int) -> tuple[int, int, str]:
        """Chain, round and summary of a state."""
        ((chain, round, summary),) = self._store.read("SELECT chain, round, summary FROM states WHERE id = ?", id)
        return int(chain), int(round), str(summary)

    def counts(self, step: int) -> dict[str, float]:
        """What was rolled out and dropped since the step before `step` was given its groups; see
        `qedmeg.monitor.cache_metrics` for the names."""
        ((since,),) = self._store.read(
            "SELECT coalesce(max(stats ->> 'last_turn'), 0) FROM steps WHERE step = ?", step - 1
        )
        ((last,),) = self._store.read("SELECT coalesce(max(id), 0) FROM turns")
        ((dropped,),) = self._store.read("SELECT count(*) FROM states WHERE dropped = ?", step)
        ((held,),) = self._store.read(
            "SELECT count(*) FROM states JOIN chains c ON c.id = chain WHERE dropped IS NULL AND c.done"
        )
        counts: dict[str, float] = {"last_turn": last, "states_too_old": dropped, "states_held": held}
        for kind in ("reason", "summarise"):
            ((number, tokens, truncated),) = self._store.read(
                "SELECT count(*), coalesce(sum(tokens), 0), coalesce(sum(finish_reason = 'length'), 0) FROM turns "
                "WHERE id > ? AND kind = ?",
                since,
                kind,
            )
            counts |= {f"turns/{kind}": number, f"turn_tokens/{kind}": tokens, f"turns_truncated/{kind}": truncated}
        return counts


_BUFFERED = """
SELECT s.id, s.chain, s.round, s.place, s.parent, s.version,
    (SELECT t.version FROM turns t WHERE t.id = s.turn),
    EXISTS (
        SELECT 1 FROM draws d JOIN groups g ON g.id = d."group" WHERE d.state = s.id AND g.state IN ('open', 'ready')
    ),
    (SELECT max(d.version) FROM draws d WHERE d.state = s.id)
FROM states s JOIN chains c ON c.id = s.chain WHERE s.dropped IS NULL AND c.done ORDER BY s.chain, s.round, s.place
"""
_REWARDS = """
SELECT a.points / a.points_of FROM draws d JOIN rollouts r ON r."group" = d."group"
JOIN grades a ON a.rollout = r.id AND a.counts WHERE d.state = ? AND a.points IS NOT NULL
"""


def _mean_reward(store: Store, state: int) -> float | None:
    rewards = [reward for (reward,) in store.read(_REWARDS, state)]
    return sum(rewards) / len(rewards) if rewards else None

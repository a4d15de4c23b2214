"""What a step's groups tell of the reasoning cache's states: their rounds and ages, and what summaries brought.

All of it follows from what the store has once a step was given its groups, and is the same whenever it is read.
"""

import sqlite3
from collections import defaultdict

from qedmeg.rollout.sample import Credited, GroupState, SummaryGroup
from qedmeg.rollout.states import credit
from qedmeg.rollout.stored_rows import from_ints, read_sample

_STATES = """
SELECT g.id, s.round, d.version - s.version, t.tokens FROM groups g JOIN draws d ON d."group" = g.id
JOIN states s ON s.id = d.state LEFT JOIN turns t ON t.id = s.turn WHERE g.step = ? AND g.state = 'used'
"""
# Forks all of whose groups are used, the last of them by this step.
_FORKS = """
SELECT d.fork FROM draws d JOIN groups g ON g.id = d."group"
WHERE d.fork IN (
    SELECT d.fork FROM groups g JOIN draws d ON d."group" = g.id
    WHERE g.step = ? AND g.state = 'used' AND d.fork IS NOT NULL
)
GROUP BY d.fork HAVING sum(g.state != 'used') = 0 AND max(g.step) = ? ORDER BY min(g.id)
"""
_REWARDS = """
SELECT d.state, a.points / a.points_of FROM draws d JOIN rollouts r ON r."group" = d."group"
JOIN grades a ON a.rollout = r.id AND a.counts
WHERE d.fork = ? AND a.points IS NOT NULL AND r.too_old IS NULL ORDER BY d.state, r.place
"""
_SUMMARIES = """
SELECT s.id, t.prompt, t.token_ids, t.logprobs, t.versions, t.finish_reason
FROM states s LEFT JOIN turns t ON t.id = s.turn
WHERE s.parent = ? ORDER BY s.place
"""


def read_states(database: sqlite3.Connection, step: int) -> dict[int, GroupState]:
    """The states that a step's groups are of, by group; none in a run without the reasoning cache."""
    if not _has_cache(database):
        return {}
    return {group: GroupState(round, age, tokens) for group, round, age, tokens in database.execute(_STATES, (step,))}


def read_summaries(database: sqlite3.Connection, step: int) -> tuple[SummaryGroup, ...]:
    """The summaries that were drawn to be trained and of which a step has the last group, with what they brought.

    Those of a fork whose group was dropped, or in which no grade was given, are left out: nothing is guessed of them.
    """
    if not _has_cache(database):
        return ()
    found = []
    for (fork,) in database.execute(_FORKS, (step, step)).fetchall():
        rewards = defaultdict(list)
        for state, reward in database.execute(_REWARDS, (fork,)):
            rewards[state].append(reward)
        stored = database.execute(_SUMMARIES, (fork,)).fetchall()
        earned = credit(fork, rewards, len(stored))
        if earned is None:
            continue
        credited = tuple(
            Credited(read_sample(from_ints(prompt), *columns), earned.improvements[state])
            for state, prompt, *columns in stored
            if prompt is not None
        )
        if credited:
            found.append(SummaryGroup(fork, earned.before, credited))
    return tuple(found)


def _has_cache(database: sqlite3.Connection) -> bool:
    return bool(database.execute("SELECT 1 FROM sqlite_master WHERE name = 'draws'").fetchone())

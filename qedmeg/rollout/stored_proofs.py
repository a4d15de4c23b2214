"""What people read of a run's store of rollouts: first what each proof earned, then the few that are looked at.

Proofs are long and there are many: none is read but those asked for. The store may be written meanwhile.
"""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from qedmeg.errors import UserError
from qedmeg.grading.grade import Graded

LOCK_SECONDS = 30.0
_GRADED = TypeAdapter(Graded)


@dataclass(frozen=True)
class Score:
    """What a graded rollout earned."""

    rollout: int
    group: int
    problem: str
    step: int | None
    """The step that used it, or was being filled when its group was dropped; None: neither yet."""
    tokens: int
    points: float
    of: int
    votes: tuple[float, ...]
    """The points of each vote, where several were asked for."""

    @property
    def share(self) -> float:
        """Of the points; the reward."""
        return self.points / self.of


@dataclass(frozen=True)
class StoredProof:
    """A graded rollout as people read it."""

    score: Score
    proof: str | None
    """None: the answer holds no proof."""
    grade: Graded
    versions: tuple[int, int]
    """Weight versions of its first and its last token."""
    truncated: bool
    attempt: int
    used: bool
    """A step was trained on its group."""


_SCORES = """
SELECT r.id, g.id, g.problem, g.step, r.tokens, a.points, a.points_of, json_extract(a.grade, '$.votes')
FROM rollouts r JOIN groups g ON g.id = r."group" JOIN grades a ON a.rollout = r.id AND a.counts
WHERE a.points IS NOT NULL
"""
_PROOF = """
SELECT r.proof, a.grade, r.versions, r.finish_reason, r.attempt, g.state
FROM rollouts r JOIN groups g ON g.id = r."group" JOIN grades a ON a.rollout = r.id AND a.counts WHERE r.id = ?
"""


def read_scores(path: Path) -> list[Score]:
    """The scores of all graded rollouts, by group. Raises UserError where the file is no store of rollouts."""
    with _reader(path) as database:
        scores = [
            Score(rollout, group, problem, step, tokens, points, of, tuple(json.loads(votes or "[]")))
            for rollout, group, problem, step, tokens, points, of, votes in database.execute(_SCORES)
        ]
    return sorted(scores, key=lambda score: (score.group, score.rollout))


def read_proofs_of(path: Path, scores: Sequence[Score]) -> list[StoredProof]:
    """The proofs and grades behind these scores. Raises UserError like `read_scores`."""
    proofs = []
    with _reader(path) as database:
        for score in scores:
            proof, grade, versions, finish_reason, attempt, state = database.execute(
                _PROOF, (score.rollout,)
            ).fetchone()
            numbers = [version for version, _ in json.loads(versions)]
            proofs.append(
                StoredProof(
                    score=score,
                    proof=proof,
                    grade=_GRADED.validate_json(grade),
                    versions=(numbers[0], numbers[-1]),
                    truncated=finish_reason == "length",
                    attempt=attempt,
                    used=state == "used",
                )
            )
    return proofs


@contextmanager
def _reader(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=LOCK_SECONDS)
        ) as database:
            yield database
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path}: cannot be read as a store of rollouts: {error}") from None

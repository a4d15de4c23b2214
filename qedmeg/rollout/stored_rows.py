"""How samples and groups stand in the rows of a run's store of rollouts, and how they are read from them."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import TypeAdapter

from qedmeg.fence import sendable
from qedmeg.grading.grade import Failed, Grade, Graded
from qedmeg.rollout.sample import Rollout, Sample

# The newest attempt of each place, with the grade that counts.
_ROLLOUTS = """
SELECT r.id, r.place, r.attempt, r.token_ids, r.logprobs, r.versions, r.finish_reason, g.grade, r.too_old, r.proof
FROM rollouts r LEFT JOIN grades g ON g.rollout = r.id AND g.counts
WHERE r."group" = ? AND r.attempt = (
    SELECT max(attempt) FROM rollouts n WHERE n."group" = r."group" AND n.place = r.place
)
ORDER BY r.place
"""
GRADE: TypeAdapter[Grade] = TypeAdapter(Graded | Failed)


@dataclass(frozen=True, eq=False)
class StoredRollout:
    """A place's newest rollout, graded or not."""

    id: int
    place: int
    attempt: int
    sample: Sample
    grade: Grade | None
    too_old: bool
    """It lagged too far behind when its step came, and is left out."""
    proof: str | None
    """The text that is graded. None: the answer holds no proof."""


@dataclass(frozen=True, eq=False)
class StoredGroup:
    """A group that no step has used yet."""

    id: int
    size: int
    rollouts: tuple[StoredRollout, ...]


def used(rollouts: Sequence[StoredRollout]) -> Iterator[Rollout]:
    """Those that a step is trained on: graded, and not too old."""
    for rollout in rollouts:
        if isinstance(rollout.grade, Graded) and not rollout.too_old:
            yield Rollout(rollout.id, rollout.sample, rollout.grade, rollout.attempt)


def read_rollouts(database: sqlite3.Connection, group: int, prompt: bytes) -> tuple[StoredRollout, ...]:
    """The newest rollout in each place of a group, in order."""
    prompt_P = from_ints(prompt)
    return tuple(
        StoredRollout(
            id=id,
            place=place,
            attempt=attempt,
            sample=read_sample(prompt_P, token_ids, logprobs, versions, finish_reason),
            grade=None if grade is None else GRADE.validate_json(grade),
            too_old=too_old is not None,
            proof=proof,
        )
        for id, place, attempt, token_ids, logprobs, versions, finish_reason, grade, too_old, proof in database.execute(
            _ROLLOUTS, (group,)
        )
    )


def read_sample(
    prompt_P: np.ndarray, token_ids: bytes, logprobs: bytes, versions: str, finish_reason: Literal["stop", "length"]
) -> Sample:
    """A sample of its columns."""
    return Sample(
        prompt_P=prompt_P,
        tokens_T=from_ints(token_ids),
        logprobs_T=np.frombuffer(logprobs, dtype="<f4").copy(),
        versions=tuple((version, first) for version, first in json.loads(versions)),
        finish_reason=finish_reason,
    )


def sample_columns(sample: Sample) -> tuple[bytes, bytes, str, str]:
    """Token ids, logprobs, versions and finish reason, as `read_sample` reads them."""
    logprobs = np.ascontiguousarray(sample.logprobs_T, dtype="<f4").tobytes()
    return ints(sample.tokens_T), logprobs, json.dumps(sample.versions), sample.finish_reason


def ints(values: np.ndarray) -> bytes:
    """A blob of little-endian int32."""
    return np.ascontiguousarray(values, dtype="<i4").tobytes()


def from_ints(blob: bytes) -> np.ndarray:
    """int32; a copy, since torch wants arrays that it may write to."""
    return np.frombuffer(blob, dtype="<i4").copy()


def encodable(text: str | None) -> str | None:
    """The text without lone surrogates, which are no UTF-8."""
    return None if text is None else sendable(text)

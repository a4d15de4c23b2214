"""Every rollout of a run in one SQLite file, `rollouts.sqlite` in the run folder.

The rollout process is its only writer; the trainer's rank 0 and reports read. A *group* is the rollouts of one prompt;
a *place* of a group is one of its rollouts, generated again (`attempt`) when its grade failed.

    groups    id (its number in the order of prompts), problem, prompt, size, state, reason, step
    rollouts  a sample: place and attempt, tokens, logprobs, weight versions, finish reason, the proof's text
    grades    what a grader answered: a rollout has at most one that counts; others were asked again after an outage
    steps     which step was given which groups, once and for good, with the numbers of its log

A group is `open` (not all of its places are generated and graded), `ready`, `dropped` (for `reason`, while `step` was
being filled) or `used` by `step`. Nothing is ever deleted. Arrays are blobs of little-endian int32 and float32.
"""

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TextIO, get_args

import numpy as np

from qedmeg.errors import UserError
from qedmeg.grading.grade import Failed, Grade, Graded
from qedmeg.rollout.sample import Batch, Group, Sample
from qedmeg.rollout.schedule import DropReason
from qedmeg.rollout.stored_credits import read_states, read_summaries
from qedmeg.rollout.stored_rows import GRADE, StoredGroup, encodable, ints, read_rollouts, sample_columns, used

STORE_FILE = "rollouts.sqlite"
LOCK_SECONDS = 30.0
"""How long a writer waits for the one before it to end, and a reader for a lock."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS identity (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS groups (
    id INTEGER PRIMARY KEY, problem TEXT NOT NULL, prompt BLOB NOT NULL, size INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'open', reason TEXT, step INTEGER
);
CREATE INDEX IF NOT EXISTS groups_by_step ON groups (step);
CREATE INDEX IF NOT EXISTS groups_alive ON groups (state) WHERE state IN ('open', 'ready');
CREATE TABLE IF NOT EXISTS rollouts (
    id INTEGER PRIMARY KEY, "group" INTEGER NOT NULL REFERENCES groups (id), place INTEGER NOT NULL,
    attempt INTEGER NOT NULL, tokens INTEGER NOT NULL, finish_reason TEXT NOT NULL, versions TEXT NOT NULL,
    too_old INTEGER, proof TEXT, token_ids BLOB NOT NULL, logprobs BLOB NOT NULL,
    UNIQUE ("group", place, attempt)
);
CREATE INDEX IF NOT EXISTS rollouts_too_old ON rollouts (too_old) WHERE too_old IS NOT NULL;
CREATE TABLE IF NOT EXISTS grades (
    id INTEGER PRIMARY KEY, rollout INTEGER NOT NULL REFERENCES rollouts (id), counts INTEGER NOT NULL,
    points REAL, points_of INTEGER, failure TEXT, requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, money TEXT NOT NULL, grade TEXT NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS one_grade_counts ON grades (rollout) WHERE counts;
CREATE TABLE IF NOT EXISTS steps (
    step INTEGER PRIMARY KEY, last_rollout INTEGER NOT NULL, last_grade INTEGER NOT NULL, stats TEXT NOT NULL
);
"""


class Store:
    """The writer of a run's rollouts. There is one at a time; another waits for it to end.

    `identity` is what may not change while a run goes on, by the name of its setting. Each method is one transaction:
    a process that is killed loses what it had in hand and nothing that was written.

    Raises `UserError` when the file cannot be opened, belongs to a run of another identity, or is written by a process
    that does not end; and when writing fails, as on a full disk.
    """

    def __init__(self, path: Path, identity: Mapping[str, str]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(path.with_suffix(".lock"))
        try:
            with self._told_apart():
                self._database = sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)
                # NORMAL: what was written outlives the process; `assign` asks for more, to outlive the machine too
                for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
                    self._database.execute(f"PRAGMA {pragma}")
                self._database.executescript(_SCHEMA)
            self._check_identity(identity)
        except BaseException:
            self._lock.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()
        self._lock.close()

    @property
    def next_step(self) -> int:
        """The first step that has been given no groups."""
        (last,) = self._database.execute("SELECT max(step) FROM steps").fetchone()
        return 0 if last is None else int(last) + 1

    @property
    def next_group(self) -> int:
        """The first number that no group has."""
        (last,) = self._database.execute("SELECT max(id) FROM groups").fetchone()
        return 0 if last is None else int(last) + 1

    def groups(self) -> list[StoredGroup]:
        """The groups that are open or ready, in order."""
        rows = self._database.execute(
            "SELECT id, prompt, size FROM groups WHERE state IN ('open', 'ready') ORDER BY id"
        ).fetchall()
        return [StoredGroup(id, size, read_rollouts(self._database, id, prompt)) for id, prompt, size in rows]

    def begin_group(self, group: int, problem: str, prompt_P: np.ndarray, size: int) -> None:
        """A group of `size` places is open from now on."""
        self.write(
            "INSERT INTO groups (id, problem, prompt, size) VALUES (?, ?, ?, ?)", group, problem, ints(prompt_P), size
        )

    def add_sample(self, group: int, place: int, attempt: int, sample: Sample, proof: str | None) -> int:
        """Keep what was generated; the id of the rollout."""
        return self.write(
            'INSERT INTO rollouts ("group", place, attempt, tokens, proof, token_ids, logprobs, versions, '
            "finish_reason) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            group,
            place,
            attempt,
            len(sample.tokens_T),
            encodable(proof),
            *sample_columns(sample),
        )

    def add_grade(self, rollout: int, grade: Grade, *, counts: bool = True) -> None:
        """Keep a grade. One that does not count was a failure of an outage: its rollout is graded again, and what was
        paid is kept. A rollout's second grade that counts is an sqlite3.IntegrityError."""
        graded = grade if isinstance(grade, Graded) else None
        cost = grade.cost
        self.write(
            "INSERT INTO grades (rollout, counts, points, points_of, failure, requests, prompt_tokens, "
            "completion_tokens, money, grade) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            rollout,
            counts,
            graded and graded.points,
            graded and graded.of,
            grade.kind if isinstance(grade, Failed) else None,
            cost.requests,
            cost.prompt_tokens,
            cost.completion_tokens,
            str(cost.money),
            GRADE.dump_json(grade).decode(errors="replace"),
        )

    def withdraw_grades(self, grader: str, also: str) -> int:
        """Let the grades of groups that no step has used count no more, but for those of two graders' versions: proofs
        of one group are compared, and must have been graded alike. How many they were."""
        with self._told_apart():
            return self._database.execute(
                "UPDATE grades SET counts = 0 WHERE counts AND failure IS NULL AND grade ->> 'grader' NOT IN (?, ?) "
                'AND rollout IN (SELECT r.id FROM rollouts r JOIN groups g ON g.id = r."group" '
                "WHERE g.state IN ('open', 'ready'))",
                (grader, also),
            ).rowcount

    def mark_too_old(self, rollout: int, step: int) -> None:
        """The rollout would lag too far behind in `step` and later."""
        self.write("UPDATE rollouts SET too_old = ? WHERE id = ?", step, rollout)

    def make_ready(self, group: int) -> None:
        """The group may be used."""
        self.write("UPDATE groups SET state = 'ready' WHERE id = ?", group)

    def drop(self, group: int, reason: DropReason, step: int) -> None:
        """The group is not used: `step`, which was being filled, gets another in its place."""
        self.write("UPDATE groups SET state = 'dropped', reason = ?, step = ? WHERE id = ?", reason, step, group)

    def dropped(self, step: int) -> dict[DropReason, list[int]]:
        """The groups dropped while a step was being filled."""
        found: dict[DropReason, list[int]] = {reason: [] for reason in get_args(DropReason)}
        query = "SELECT reason, id FROM groups WHERE step = ? AND state = 'dropped' ORDER BY id"
        for reason, group in self._database.execute(query, (step,)):
            found[reason].append(group)
        return found

    def assign(self, step: int, groups: Sequence[int], stats: Mapping[str, float]) -> None:
        """Give a step its groups, for good: on the disk when this returns. Raises ValueError when a group is used."""
        with self._told_apart():
            self._database.execute("PRAGMA synchronous=FULL")
            try:
                with self.transaction():
                    for group in groups:
                        taken = self._database.execute(
                            "UPDATE groups SET state = 'used', reason = NULL, step = ? WHERE id = ? "
                            "AND state != 'used'",
                            (step, group),
                        )
                        if taken.rowcount != 1:
                            raise ValueError(f"group {group} is used already, or there is none")
                    self._database.execute(
                        "INSERT INTO steps SELECT ?, (SELECT coalesce(max(id), 0) FROM rollouts), "
                        "(SELECT coalesce(max(id), 0) FROM grades), ?",
                        (step, json.dumps(dict(stats))),
                    )
            finally:
                self._database.execute("PRAGMA synchronous=NORMAL")

    def counts(self, step: int) -> dict[str, float]:
        """What was generated, graded and dropped since the step before `step` was given its groups; see
        `qedmeg.rollout.schedule` for the names."""
        query = "SELECT last_rollout, last_grade FROM steps WHERE step = ?"
        rollout, grade = self._database.execute(query, (step - 1,)).fetchone() or (0, 0)
        generated, truncated, tokens = self._database.execute(
            "SELECT count(*), coalesce(sum(finish_reason = 'length'), 0), coalesce(sum(tokens), 0) FROM rollouts "
            "WHERE id > ?",
            (rollout,),
        ).fetchone()
        counts: dict[str, float] = {
            "rollouts_generated": generated,
            "rollouts_truncated": truncated,
            "tokens_generated": tokens,
            "grader_requests": 0,
            "grader_prompt_tokens": 0,
            "grader_completion_tokens": 0,
            "grader_money": 0.0,
            "grades_failed": 0,
        }
        query = (
            "SELECT failure, count(*), sum(requests), sum(prompt_tokens), sum(completion_tokens), sum(money) "
            "FROM grades WHERE id > ? GROUP BY failure"
        )
        for failure, number, requests, prompt, completion, money in self._database.execute(query, (grade,)):
            counts["grader_requests"] += requests
            counts["grader_prompt_tokens"] += prompt
            counts["grader_completion_tokens"] += completion
            counts["grader_money"] += money
            if failure is not None:
                counts[f"grades_failed/{failure}"] = number
                counts["grades_failed"] += number
        dropped = self.dropped(step)
        counts |= {f"groups_dropped/{reason}": len(groups) for reason, groups in dropped.items()}
        query = "SELECT count(*) FROM rollouts WHERE too_old = ?"
        (counts["rollouts_too_old"],) = self._database.execute(query, (step,)).fetchone()
        return counts

    def _check_identity(self, identity: Mapping[str, str]) -> None:
        known = dict(self._database.execute("SELECT name, value FROM identity"))
        for name, value in identity.items():
            if known.get(name, value) != value:
                raise UserError(
                    f"{self.path}: {name}: the rollouts of this run were made with {known[name]}, not {value}; set it "
                    "back, or start a new run in another run_dir"
                )
        with self._told_apart():
            self._database.executemany("INSERT OR IGNORE INTO identity VALUES (?, ?)", identity.items())

    def add_tables(self, schema: str) -> None:
        """Make further tables, where there are none yet."""
        with self._told_apart():
            self._database.executescript(schema)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is written within is kept as a whole or not at all; within another it is part of that."""
        if self._database.in_transaction:
            yield
            return
        with self._told_apart():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:  # a full disk has rolled it back already
                    self._database.execute("ROLLBACK")
                raise

    def write(self, statement: str, *values: object) -> int:
        """Run one statement, which is a transaction of its own or part of one; the id of the row that it inserted."""
        with self._told_apart():
            return self._database.execute(statement, values).lastrowid or 0

    def read(self, query: str, *values: object) -> list[Any]:
        """The rows that a query finds."""
        return self._database.execute(query, values).fetchall()

    @contextmanager
    def _told_apart(self) -> Iterator[None]:
        """A full disk or a damaged file is the user's to mend; an IntegrityError is a mistake of the caller's."""
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{self.path}: {error}: rollouts cannot be kept; make room or mend the file, and start the run again"
            ) from None


def read_batch(path: Path, step: int) -> Batch:
    """What a step was given. Raises `UserError` when there is no such file, or no such step in it."""
    with closing(_reader(path)) as database:
        row = database.execute("SELECT stats FROM steps WHERE step = ?", (step,)).fetchone()
        if row is None:
            raise UserError(f"{path}: step {step} has been given no groups")
        groups = database.execute(
            "SELECT id, problem, prompt FROM groups WHERE step = ? AND state = 'used' ORDER BY id", (step,)
        ).fetchall()
        states = read_states(database, step)
        summaries = read_summaries(database, step)
        made = tuple(
            Group(id, problem, tuple(used(read_rollouts(database, id, prompt))), states.get(id))
            for id, problem, prompt in groups
        )
    lags = [step - rollout.sample.oldest_version for group in made for rollout in group.rollouts]
    stats = json.loads(row[0]) | {"lag_mean": sum(lags) / len(lags), "lag_max": max(lags)}
    return Batch(step, made, stats, summaries)


def _reader(path: Path) -> sqlite3.Connection:
    try:
        return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=LOCK_SECONDS)
    except sqlite3.Error as error:
        raise UserError(f"{path}: cannot be read as a store of rollouts: {error}") from None


def _locked(path: Path) -> TextIO:
    """The open file of a lock that the kernel lets go of when its process ends."""
    file = path.open("a+")
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                file.close()
                raise UserError(
                    f"{path}: another rollout process (pid {holder}) is writing the rollouts of this run; wait for its "
                    "end, or end it"
                ) from None
            time.sleep(0.1)
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file

"""Results of evaluations in one SQLite file: what was asked, answered and graded, of every model and benchmark.

    runs      a model, with its scaffold if any, on a benchmark; named by whoever started it
    problems  of a run, in the benchmark's order
    calls     replies of models, one by one: what a run that was stopped has in hand when it goes on
    attempts  finished answers; sample 0, 1, 2, ... of each problem
    grades    of attempts: by grader, and by regrade (0 the grade that counts, more to see the grader's own noise)

One process writes at a time; others read. Rows that come close together are written in one transaction.
"""

import asyncio
import hashlib
import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from qedmeg.errors import UserError
from qedmeg.evaluation.problem import BenchmarkProblem
from qedmeg.grading.grade import Failed, Grade, Graded
from qedmeg.reasoning.call import Call, Reply

LOCK_SECONDS = 30.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    name TEXT PRIMARY KEY, benchmark TEXT NOT NULL, model TEXT NOT NULL, scaffold TEXT NOT NULL,
    samples INTEGER NOT NULL, settings TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS problems (
    run TEXT NOT NULL REFERENCES runs (name), place INTEGER NOT NULL, id TEXT NOT NULL, problem TEXT NOT NULL,
    PRIMARY KEY (run, id)
);
CREATE TABLE IF NOT EXISTS calls (
    run TEXT NOT NULL REFERENCES runs (name), problem TEXT NOT NULL, sample INTEGER NOT NULL, path TEXT NOT NULL,
    key TEXT NOT NULL, model TEXT NOT NULL, call TEXT NOT NULL, reply TEXT NOT NULL,
    PRIMARY KEY (run, problem, sample, path, key)
);
CREATE TABLE IF NOT EXISTS attempts (
    run TEXT NOT NULL REFERENCES runs (name), problem TEXT NOT NULL, sample INTEGER NOT NULL, text TEXT NOT NULL,
    ended TEXT NOT NULL, tokens INTEGER NOT NULL, requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, money TEXT NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (run, problem, sample)
);
CREATE TABLE IF NOT EXISTS grades (
    run TEXT NOT NULL REFERENCES runs (name), problem TEXT NOT NULL, sample INTEGER NOT NULL, grader TEXT NOT NULL,
    regrade INTEGER NOT NULL, points REAL, grade TEXT NOT NULL,
    PRIMARY KEY (run, problem, sample, grader, regrade)
);
"""
_PROBLEM = TypeAdapter(BenchmarkProblem)
_CALL, _REPLY = TypeAdapter(Call), TypeAdapter(Reply)
_GRADE: TypeAdapter[Grade] = TypeAdapter(Graded | Failed)


@dataclass(frozen=True)
class EvaluationRun:
    """One model on one benchmark."""

    name: str
    benchmark: str
    model: str
    scaffold: str
    """`single` where the model is asked once."""
    samples: int
    """Attempts at each problem."""
    settings: dict[str, Any]
    """All that an answer depends on. A run of the same name goes on only with the same."""


@dataclass(frozen=True)
class Attempt:
    """One finished answer."""

    problem: str
    sample: int
    text: str
    """What is graded: the final message, without the thinking before it."""
    ended: str
    """`done`, `length` (the only reply was cut off) or `budget spent`."""
    tokens: int
    """Generated for all calls of the attempt."""
    requests: int
    prompt_tokens: int
    completion_tokens: int
    """With those of failed requests."""
    money: Decimal
    seconds: float


@dataclass(frozen=True)
class StoredGrade:
    """A grade of an attempt."""

    problem: str
    sample: int
    grader: str
    regrade: int
    grade: Grade


@dataclass(frozen=True)
class StoredCall:
    """A call and its reply."""

    model: str
    call: Call
    reply: Reply


class Results:
    """The file. Reading works in any thread, writing belongs to one event loop."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            UserError: it is no file of results.
        """
        self.path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="results")
        self._waiting: list[tuple[str, tuple[Any, ...]]] = []
        self._batch: asyncio.Future[None]
        """Of those that wait: done once they are on disk."""
        self._writer: asyncio.Task[None] | None = None
        try:
            self._database = sqlite3.connect(path, timeout=LOCK_SECONDS, check_same_thread=False)
            with self._database:
                self._database.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise UserError(f"{path}: no file of results: {error}; give another path") from None

    def close(self) -> None:
        """Close the file; what was awaited is on disk."""
        self._thread.shutdown()
        self._database.close()

    # --- writing ----------------------------------------------------------------------------------------------------

    def begin(self, run: EvaluationRun, problems: list[BenchmarkProblem]) -> None:
        """Put a run and its problems down, or find it again.

        Raises:
            UserError: there is a run of this name with other settings or problems.
        """
        known = next((old for old in self.runs() if old.name == run.name), None)
        if known is None:
            with self._database:
                values = (run.name, run.benchmark, run.model, run.scaffold, run.samples, _json(run.settings))
                self._database.execute("INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?)", values)
                self._database.executemany(
                    "INSERT INTO problems VALUES (?, ?, ?, ?)",
                    [(run.name, n, one.id, _PROBLEM.dump_json(one).decode()) for n, one in enumerate(problems)],
                )
            return
        for field in ("benchmark", "model", "scaffold", "settings"):
            before, now = getattr(known, field), getattr(run, field)
            if before != now:
                raise UserError(
                    f"{self.path}: the run '{run.name}' was begun with {field} {_json(before)}, not {_json(now)}; give "
                    "another --name, or the settings of then"
                )
        if self.problems(run.name) != problems:
            raise UserError(f"{self.path}: the run '{run.name}' was begun with other problems; give another --name")
        if run.samples > known.samples:
            with self._database:
                self._database.execute("UPDATE runs SET samples = ? WHERE name = ?", (run.samples, run.name))

    def forget(self, run: str) -> None:
        """Take a run out, with all of its answers and grades."""
        with self._database:
            for table in ("grades", "attempts", "calls", "problems"):
                self._database.execute(f"DELETE FROM {table} WHERE run = ?", (run,))
            self._database.execute("DELETE FROM runs WHERE name = ?", (run,))

    async def add_attempt(self, run: str, attempt: Attempt) -> None:
        """Keep a finished answer."""
        one = attempt
        values = (run, one.problem, one.sample, one.text, one.ended, one.tokens, one.requests)
        values += (one.prompt_tokens, one.completion_tokens, str(one.money), one.seconds)  # type: ignore[assignment]
        await self._write(f"INSERT OR IGNORE INTO attempts VALUES ({', '.join('?' * 11)})", values)

    async def add_grade(self, run: str, stored: StoredGrade) -> None:
        """Keep a grade; a failed one gives way to what comes after it."""
        points = stored.grade.points if isinstance(stored.grade, Graded) else None
        grade = _GRADE.dump_json(stored.grade).decode()
        values = (run, stored.problem, stored.sample, stored.grader, stored.regrade, points, grade)
        await self._write(
            "INSERT INTO grades VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE "
            "SET points = excluded.points, grade = excluded.grade WHERE points IS NULL",
            values,
        )

    def log(self, run: str, problem: str, sample: int) -> "StoredCalls":
        """Where the calls of one attempt are kept."""
        return StoredCalls(self, run, problem, sample)

    async def _write(self, statement: str, values: tuple[Any, ...]) -> None:
        """Have a row written; returns once it is on disk. What comes while others are written goes together."""
        if not self._waiting:
            self._batch = asyncio.get_running_loop().create_future()
        self._waiting.append((statement, values))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_waiting())
        await asyncio.shield(self._batch)

    async def _write_waiting(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            rows, done, self._waiting = self._waiting, self._batch, []
            try:
                await loop.run_in_executor(self._thread, self._commit, rows)
            except sqlite3.Error as error:
                done.set_exception(UserError(f"{self.path}: cannot be written: {error}; what was begun goes on later"))
            else:
                done.set_result(None)

    def _commit(self, rows: list[tuple[str, tuple[Any, ...]]]) -> None:
        with self._database:
            for statement, values in rows:
                self._database.execute(statement, values)

    # --- reading ----------------------------------------------------------------------------------------------------

    def runs(self) -> list[EvaluationRun]:
        """All runs, in the order in which they were begun."""
        rows = self._rows("SELECT name, benchmark, model, scaffold, samples, settings FROM runs ORDER BY rowid")
        return [EvaluationRun(**{**row, "settings": json.loads(row["settings"])}) for row in rows]

    def problems(self, run: str) -> list[BenchmarkProblem]:
        """A run's problems, in the benchmark's order."""
        rows = self._rows("SELECT problem FROM problems WHERE run = ? ORDER BY place", run)
        return [_PROBLEM.validate_json(row["problem"]) for row in rows]

    def attempts(self, run: str) -> list[Attempt]:
        """A run's finished answers, by problem and sample."""
        fields = "problem, sample, text, ended, tokens, requests, prompt_tokens, completion_tokens, money, seconds"
        rows = self._rows(f"SELECT {fields} FROM attempts WHERE run = ? ORDER BY problem, sample", run)
        return [Attempt(**{**row, "money": Decimal(row["money"])}) for row in rows]

    def grades(self, run: str) -> list[StoredGrade]:
        """All grades of a run's answers."""
        rows = self._rows(
            "SELECT problem, sample, grader, regrade, grade FROM grades WHERE run = ? "
            "ORDER BY problem, sample, grader, regrade",
            run,
        )
        return [StoredGrade(**{**row, "grade": _GRADE.validate_json(row["grade"])}) for row in rows]

    def calls(self, run: str, problem: str, sample: int) -> list[StoredCall]:
        """The calls of one attempt, in the order in which they were answered."""
        rows = self._rows(
            "SELECT model, call, reply FROM calls WHERE run = ? AND problem = ? AND sample = ? ORDER BY rowid",
            *(run, problem, sample),
        )
        return [
            StoredCall(row["model"], _CALL.validate_json(row["call"]), _REPLY.validate_json(row["reply"]))
            for row in rows
        ]

    def _rows(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        with closing(self._database.execute(statement, values)) as cursor:
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


class StoredCalls:
    """The `CallLog` of one attempt. What was answered before is read once, when it is first asked for."""

    def __init__(self, results: Results, run: str, problem: str, sample: int) -> None:
        self._results, self._attempt = results, (run, problem, sample)
        self._known: dict[tuple[str, str], Reply] | None = None

    async def find(self, model: str, call: Call) -> Reply | None:
        if self._known is None:
            self._known = {
                (stored.call.path, _key(stored.model, stored.call)): stored.reply
                for stored in self._results.calls(*self._attempt)
            }
        return self._known.get((call.path, _key(model, call)))

    async def keep(self, model: str, call: Call, reply: Reply) -> None:
        texts = (_CALL.dump_json(call).decode(), _REPLY.dump_json(reply).decode())
        values = (*self._attempt, call.path, _key(model, call), model, *texts)
        await self._results._write("INSERT OR IGNORE INTO calls VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)


def _key(model: str, call: Call) -> str:
    """A hash of all that a reply depends on."""
    text = json.dumps([model, call.role, call.max_tokens, [[one.role, one.content] for one in call.messages]])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)

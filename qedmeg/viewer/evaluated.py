"""A file of an evaluation's results as the viewer reads it: everything but texts at once, texts when asked for.

Attempts never change once they are there, so that of a file that grows only the new ones are read: SQLite has to walk
through every text to reach the numbers that stand behind it.
"""

from collections import defaultdict
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from qedmeg.errors import UserError
from qedmeg.evaluation.problem import BenchmarkProblem
from qedmeg.grading.grade import Failed, Grade, Graded
from qedmeg.reasoning.call import Call, Reply
from qedmeg.viewer.entry import CallBrief, Entry, GivenGrade, Loaded, Reading, Run, Score, ShownProblem, points_of_7
from qedmeg.viewer.reader import Reader

_PROBLEM = TypeAdapter(BenchmarkProblem)
_CALL, _REPLY = TypeAdapter(Call), TypeAdapter(Reply)
_GRADE: TypeAdapter[Grade] = TypeAdapter(Graded | Failed)

_ATTEMPTS = """
SELECT rowid, run, problem, sample, ended, tokens, CAST(money AS REAL) FROM attempts WHERE rowid > ? ORDER BY rowid
"""
_GRADES = """
SELECT run, problem, sample, grader, points, json_extract(grade, '$.of'), json_extract(grade, '$.kind')
FROM grades WHERE regrade = 0 ORDER BY rowid
"""
_CALLS = """
SELECT rowid, path, json_extract(call, '$.role'), model, json_extract(reply, '$.finish_reason'),
    json_extract(reply, '$.tokens'), json_extract(reply, '$.seconds')
FROM calls WHERE run = ? AND problem = ? AND sample = ? ORDER BY rowid
"""


class EvaluatedSource:
    """A `Source` of a file that `qedmeg.evaluation.results` wrote."""

    def __init__(self, path: Path) -> None:
        """Raises UserError where the file cannot be read, or holds no results."""
        self.path = path
        self._reader = Reader(path, "a file of results", ("runs", "problems", "attempts", "grades", "calls"))
        self._last, self._attempts = 0, list[tuple[Any, ...]]()

    def changed(self) -> bool:
        return self._reader.changed()

    def names(self) -> list[str]:
        return [name for (name,) in self._reader.rows("SELECT name FROM runs ORDER BY rowid")]

    def load(self, keys: Mapping[str, str]) -> Loaded:
        scores: dict[tuple[Any, ...], list[Score]] = defaultdict(list)
        graders: dict[str, dict[str, None]] = defaultdict(dict)
        for run, problem, sample, grader, points, of, kind in self._reader.rows(_GRADES):
            given = None if points is None else points_of_7(points, of)
            scores[run, problem, sample].append(Score(grader, given, kind or ""))
            graders[run][grader] = None
        runs = {
            name: Run(keys.get(name, name), name, model, scaffold, benchmark, tuple(graders[name]))
            for name, benchmark, model, scaffold in self._reader.rows(
                "SELECT name, benchmark, model, scaffold FROM runs ORDER BY rowid"
            )
        }
        problems = self._problems(runs)
        entries = []
        for name, problem, sample, ended, tokens, money in self._new_attempts():
            run = runs.get(name)
            if run is None or (run.benchmark, problem) not in problems:
                continue  # begun after the runs were read: it comes with the next load
            shown = problems[run.benchmark, problem]
            entries.append(Entry(run, shown, sample, ended, tokens, money, tuple(scores[name, problem, sample])))
        return Loaded(tuple(runs.values()), list(problems.values()), entries)

    def _problems(self, runs: Mapping[str, Run]) -> dict[tuple[str, str], ShownProblem]:
        found: dict[tuple[str, str], ShownProblem] = {}
        for name, id, text in self._reader.rows("SELECT run, id, problem FROM problems ORDER BY run, place"):
            if name in runs and (runs[name].benchmark, id) not in found:
                one = self._parsed(_PROBLEM, text)
                shown = ShownProblem(runs[name].benchmark, id, one.problem, one.level, one.category)
                found[shown.benchmark, id] = shown
        return found

    def _new_attempts(self) -> list[tuple[Any, ...]]:
        """All attempts; those that were not read before are read now."""
        ((count, last),) = self._reader.rows("SELECT count(*), coalesce(max(rowid), 0) FROM attempts")
        if last < self._last or count < len(self._attempts):  # not the file that it was
            self._last, self._attempts = 0, []
        for rowid, *values in self._reader.rows(_ATTEMPTS, self._last):
            self._last = rowid
            self._attempts.append(tuple(values))
        return self._attempts

    def read(self, entry: Entry) -> Reading:
        at = (entry.run.name, entry.problem.id, entry.sample)
        where = "WHERE run = ? AND problem = ? AND sample = ?"
        found = self._reader.rows(
            f"SELECT text, requests, prompt_tokens, completion_tokens, money, seconds FROM attempts {where}", *at
        )
        if not found:
            raise UserError(f"{self.path}: the attempt is no longer in it; load the page of its problem again")
        text, requests, prompt_tokens, completion_tokens, money, seconds = found[0]
        grades = self._reader.rows(f"SELECT grader, regrade, grade FROM grades {where} ORDER BY rowid", *at)
        ((calls,),) = self._reader.rows(f"SELECT count(*) FROM calls {where}", *at)
        facts = (
            ("requests", f"{requests:,}"),
            ("prompt tokens", f"{prompt_tokens:,}"),
            ("completion tokens", f"{completion_tokens:,}"),
            ("time", f"{seconds:,.1f} s"),
        )
        given = tuple(GivenGrade(grader, regrade, self._parsed(_GRADE, text)) for grader, regrade, text in grades)
        return Reading(text, given, facts, Decimal(money), calls)

    def calls(self, entry: Entry) -> list[CallBrief]:
        rows = self._reader.rows(_CALLS, entry.run.name, entry.problem.id, entry.sample)
        return [CallBrief(*row) for row in rows]

    def call(self, entry: Entry, id: int) -> tuple[Call, Reply] | None:
        at = (id, entry.run.name, entry.problem.id, entry.sample)
        rows = self._reader.rows(
            "SELECT call, reply FROM calls WHERE rowid = ? AND run = ? AND problem = ? AND sample = ?", *at
        )
        return (self._parsed(_CALL, rows[0][0]), self._parsed(_REPLY, rows[0][1])) if rows else None

    def close(self) -> None:
        self._reader.close()

    def _parsed(self, kind: TypeAdapter[Any], text: str) -> Any:
        try:
            return kind.validate_json(text)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            raise UserError(f"{self.path}: a row that cannot be read: {where}: {problem['msg']}") from None

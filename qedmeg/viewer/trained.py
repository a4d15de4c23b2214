"""The rollouts of a training run as the viewer reads them: its store, and its problems where the run read them."""

import json
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from qedmeg.data.problems import Problem
from qedmeg.errors import UserError
from qedmeg.grading.grade import Failed, Grade, Graded
from qedmeg.grading.grader import ProofProblem
from qedmeg.monitor.run_problems import problems_of
from qedmeg.reasoning.call import Call, Reply
from qedmeg.rollout.store import STORE_FILE
from qedmeg.viewer.entry import CallBrief, Entry, GivenGrade, Loaded, Reading, Run, Score, ShownProblem, points_of_7
from qedmeg.viewer.reader import Reader

GRADER = "the run's grader"
"""It may change its version while a run goes on; one grade of a rollout counts, whoever gave it."""
TRAINING = "training"
_GRADE: TypeAdapter[Grade] = TypeAdapter(Graded | Failed)

_ENTRIES = """
SELECT r.id, g.problem, r.finish_reason, r.tokens, CAST(coalesce(a.money, '0') AS REAL), a.id, a.points, a.points_of,
    a.failure
FROM rollouts r JOIN groups g ON g.id = r."group" LEFT JOIN grades a ON a.rollout = r.id AND a.counts ORDER BY r.id
"""
_ROLLOUT = """
SELECT r.proof, g.step, g.id, r.place, r.attempt, g.state, g.reason, r.too_old, r.versions
FROM rollouts r JOIN groups g ON g.id = r."group" WHERE r.id = ?
"""
_ROLLOUT_GRADES = "SELECT counts, money, grade FROM grades WHERE rollout = ? ORDER BY counts DESC, id"


class TrainedSource:
    """A `Source` of a run folder with a store of rollouts. Each rollout is an attempt; there are no calls."""

    def __init__(self, run_dir: Path) -> None:
        """Raises UserError where there is no store of rollouts in the folder."""
        self.path = run_dir / STORE_FILE
        self._run_dir, self._name = run_dir, run_dir.resolve().name
        self._reader = Reader(self.path, "a store of rollouts", ("groups", "rollouts", "grades", "steps"))
        self._problems: dict[str, Problem | ProofProblem] = {}
        self._asked: set[str] = set()
        self._note = ""

    def changed(self) -> bool:
        return self._reader.changed()

    def names(self) -> list[str]:
        return [self._name]

    def load(self, keys: Mapping[str, str]) -> Loaded:
        key = keys.get(self._name, self._name)
        run = Run(key, self._name, str(self._run_dir), "", f"{TRAINING}: {key}", (GRADER,))
        rows = self._reader.rows(_ENTRIES)
        ids = list(dict.fromkeys(row[1] for row in rows))
        new = {*ids} - self._asked
        if new:
            found, note = problems_of(self._run_dir, new)
            self._problems |= {problem.id: problem for problem in found}
            self._asked |= new
            self._note = note or self._note
        problems = {id: self._shown(run.benchmark, id) for id in ids}
        entries = [
            Entry(run, problems[problem], rollout, ended, tokens, money, _scores(grade, points, of, failure))
            for rollout, problem, ended, tokens, money, grade, points, of, failure in rows
        ]
        return Loaded((run,), list(problems.values()), entries, (f"{key}: {self._note}",) if self._note else ())

    def _shown(self, benchmark: str, id: str) -> ShownProblem:
        problem = self._problems.get(id)
        if isinstance(problem, Problem):
            return ShownProblem(benchmark, id, problem, str(problem.level), problem.family)
        return ShownProblem(benchmark, id, problem, "", "")

    def read(self, entry: Entry) -> Reading:
        found = self._reader.rows(_ROLLOUT, entry.sample)
        if not found:
            raise UserError(f"{self.path}: the rollout is no longer in it; load the page of its problem again")
        proof, step, group, place, attempt, state, reason, too_old, versions = found[0]
        rows = self._reader.rows(_ROLLOUT_GRADES, entry.sample)
        grades = tuple(self._given(counts, text) for counts, _, text in rows)
        numbers = [version for version, _ in json.loads(versions)]
        facts = [
            ("step", "none yet" if step is None else str(step)),
            ("group", f"{group}, place {place}" + (f", attempt {attempt + 1}" if attempt else "")),
            ("weights", str(numbers[0]) if numbers[0] == numbers[-1] else f"{numbers[0]} to {numbers[-1]}"),
            ("group is", f"dropped: {reason}" if state == "dropped" else state),
        ]
        if too_old is not None:
            facts.append(("left out", f"too old for step {too_old}"))
        return Reading(proof, grades, tuple(facts), sum((Decimal(money) for _, money, _ in rows), Decimal(0)), 0)

    def _given(self, counts: int, text: str) -> GivenGrade:
        grade = _GRADE.validate_json(text)
        version = f" ({grade.grader})" if isinstance(grade, Graded) else ""
        return GivenGrade(GRADER + version + ("" if counts else ", does not count"), 0, grade)

    def calls(self, entry: Entry) -> list[CallBrief]:
        return []

    def call(self, entry: Entry, id: int) -> tuple[Call, Reply] | None:
        return None

    def close(self) -> None:
        self._reader.close()


def _scores(grade: Any, points: float | None, of: int | None, failure: str | None) -> tuple[Score, ...]:
    if grade is None:
        return ()
    if points is None or of is None:
        return (Score(GRADER, None, failure or ""),)
    return (Score(GRADER, points_of_7(points, of)),)

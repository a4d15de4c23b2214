"""Proofs that people have graded: the files of DeepSeek-Math-V2 (and the viewer's, alike) and of IMO-GradingBench."""

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qedmeg.data.problems import Problem, generate, reference_proof
from qedmeg.errors import UserError
from qedmeg.grading.grader import ProofProblem
from qedmeg.grading.rubric import RUBRIC_POINTS

GUIDELINES = (
    "7 points for a complete and correct proof; 6 for one with a minor error or gap; 1 for substantial progress that "
    "does not lead to a proof by itself; 0 otherwise. Whole numbers between them are allowed."
)
"""The rubric of a problem that comes without one: the scale of IMO-ProofBench."""

_SCALES = {"PB-": 7, "Putnam": 10, "CMO": 21}
"""Full marks by the beginning of a problem's number, for files whose rows do not say `full_marks`."""
_LONGEST_CELL = 2**24
_COLUMNS = ("Grading ID", "Problem ID", "Problem", "Solution", "Grading guidelines", "Response", "Points")


@dataclass(frozen=True)
class RatedProof:
    """A proof with the points (of 7, not always whole) that people gave it. `source` names the data it is from."""

    problem: Problem | ProofProblem
    proof: str
    points: float
    source: str


def load_rated(path: Path) -> list[RatedProof]:
    """The rated proofs of a .jsonl file (DeepSeek-Math-V2's format) or a .csv file (IMO-GradingBench's).

    Other scales than 7 points are brought to it. Raises `UserError` naming file, row and field.
    """
    if path.suffix == ".jsonl":
        return _load_jsonl(path)
    if path.suffix == ".csv":
        return _load_csv(path)
    raise UserError(f"{path}: expected a .jsonl file (DeepSeek-Math-V2) or a .csv file (IMO-GradingBench)")


def embedded_rated(count: int, seed: int) -> list[RatedProof]:
    """Full-mark proofs of `count` held-out embedded problems."""
    problems = generate("heldout", count, seed)
    return [RatedProof(problem, reference_proof(problem), RUBRIC_POINTS, "embedded") for problem in problems]


def _load_jsonl(path: Path) -> list[RatedProof]:
    rated = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        where = f"{path}: line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON: {error}") from None
        answer = _field(row, "model_prediction", dict, where)
        name = _field(row, "problem_idx", str, where)
        problem = ProofProblem(
            name,
            _field(row, "question", str, where),
            row.get("grading guidelines") or GUIDELINES,
            row.get("solution"),
        )
        full = _full_marks(row, name, where)
        points = _points(answer.get("human_rating"), full, f"{where}: human_rating")
        rated.append(RatedProof(problem, _field(answer, "proof", str, where), points, path.stem))
    return rated


def _load_csv(path: Path) -> list[RatedProof]:
    csv.field_size_limit(_LONGEST_CELL)
    rows = csv.DictReader(io.StringIO(_text(path), newline=""))
    missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise UserError(f"{path}: no column '{missing[0]}'; IMO-GradingBench has {', '.join(_COLUMNS)}")
    rated = []
    try:
        for row in rows:
            where = f"{path}: {row['Grading ID']}"
            if any(row[name] is None for name in _COLUMNS):
                raise UserError(f"{where}: the row ends early")
            problem = ProofProblem(
                row["Problem ID"], row["Problem"], row["Grading guidelines"] or GUIDELINES, row["Solution"] or None
            )
            points = _points(row["Points"], RUBRIC_POINTS, f"{where}: Points")
            rated.append(RatedProof(problem, row["Response"], points, path.stem))
    except csv.Error as error:
        raise UserError(f"{path}: {error}") from None
    return rated


def _full_marks(row: dict[str, Any], name: str, where: str) -> int:
    stated = row.get("full_marks")
    if stated is not None:
        if not isinstance(stated, int) or isinstance(stated, bool) or stated < 1:
            raise UserError(f"{where}: full_marks: {stated!r}: expected a whole number above 0")
        return stated
    full = next((points for start, points in _SCALES.items() if name.startswith(start)), None)
    if full is None:
        raise UserError(
            f"{where}: problem_idx '{name}': full marks are known for {', '.join(_SCALES)}... only; add a field "
            "full_marks"
        )
    return full


def _points(value: Any, full: int, where: str) -> float:
    try:
        points = float(value)
    except (TypeError, ValueError):
        points = -1.0
    if not 0 <= points <= full:
        raise UserError(f"{where}: {value!r}: expected a number from 0 to {full}")
    return points * RUBRIC_POINTS / full


def _field(row: Any, name: str, kind: type, where: str) -> Any:
    value = row.get(name) if isinstance(row, dict) else None
    if not isinstance(value, kind):
        raise UserError(f"{where}: field '{name}' is missing or no {'text' if kind is str else 'object'}")
    return value


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None

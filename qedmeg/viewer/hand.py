"""Grades by hand, in `human_grades.jsonl` beside the results: rows as `qedmeg.grading.rated` reads them.

    question, problem_idx, model_prediction {proof, human_rating}, full_marks, grading guidelines, solution
    graded {file, run, problem, sample}, items [{name, points, of}], note

One row an attempt: graded again, it is replaced. Rows of others are left as they are.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qedmeg.errors import UserError
from qedmeg.grading.grader import AnswerProblem
from qedmeg.grading.rubric import RUBRIC_POINTS, Rubric
from qedmeg.viewer.entry import Entry, ShownProblem

HAND_FILE = "human_grades.jsonl"

Key = tuple[str, str, str, int]
"""Name of the results' file, run, problem, sample."""


@dataclass(frozen=True)
class HandGrade:
    """What a person gave: whole points of 7."""

    points: int
    items: Mapping[str, int]
    """Points by rubric item, where they were given so."""
    note: str


def key_of(source: Path, entry: Entry) -> Key:
    """What the row of an attempt is known by."""
    return (source.name, entry.run.name, entry.problem.id, entry.sample)


def read_hand_grades(path: Path) -> dict[Key, HandGrade]:
    """The viewer's own rows of a file; none where there is no file.

    Raises:
        UserError: the file cannot be read; it names the line.
    """
    return {key: _grade(row) for _, key, row in _lines(path) if key is not None}


def save_hand_grade(path: Path, key: Key, problem: ShownProblem, proof: str, grade: HandGrade) -> None:
    """Put a row into the file, in the place of the same attempt's where there is one. The file is whole at any time.

    Raises:
        UserError: the file cannot be read or written; it stays as it was.
    """
    row = {
        "question": problem.statement,
        "problem_idx": problem.id,
        "model_prediction": {"proof": proof, "human_rating": grade.points},
        "full_marks": RUBRIC_POINTS,
        "grading guidelines": guidelines(problem),
        "solution": problem.reference,
        "graded": dict(zip(("file", "run", "problem", "sample"), key, strict=True)),
        "items": [
            {"name": item.name, "points": grade.items[item.name], "of": item.points} for item in rubric_items(problem)
        ]
        if grade.items
        else [],
        "note": grade.note,
    }
    line = json.dumps(row, ensure_ascii=False)
    with _alone(path.parent):
        lines = []
        replaced = False
        for text, known, _ in _lines(path):
            lines.append(line if known == key else text)
            replaced = replaced or known == key
        if not replaced:
            lines.append(line)
        partial = path.with_suffix(".partial")
        try:
            partial.write_text("".join(f"{one}\n" for one in lines), encoding="utf-8", errors="replace")
            partial.replace(path)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written: {error.strerror}; make room, or mend its permissions"
            ) from None


def rubric_items(problem: ShownProblem) -> list[Any]:
    """The items that a problem is graded by one by one; none where its rubric is in words."""
    return list(problem.rubric.items) if isinstance(problem.rubric, Rubric) else []


def guidelines(problem: ShownProblem) -> str | None:
    """The rubric in words. None: there is none."""
    if isinstance(problem.problem, AnswerProblem):
        return f"{RUBRIC_POINTS} points for the answer {problem.problem.answer}; 0 for any other."
    if isinstance(problem.rubric, Rubric):
        return "\n".join(f"{item.name} ({item.points} points): {item.text}" for item in problem.rubric.items)
    return problem.rubric


def _lines(path: Path) -> Iterator[tuple[str, Key | None, Any]]:
    """Each line with its key (None: not the viewer's) and its row."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}; mend it, or move it away") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}: line {number}: not JSON: {error}; mend it, or move the file away") from None
        yield line, _key(row), row


def _key(row: Any) -> Key | None:
    try:
        graded = row["graded"]
        key = (graded["file"], graded["run"], graded["problem"], graded["sample"])
        _grade(row)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return key if [type(part) for part in key] == [str, str, str, int] else None


def _grade(row: Any) -> HandGrade:
    items = {item["name"]: int(item["points"]) for item in row["items"]}
    return HandGrade(int(row["model_prediction"]["human_rating"]), items, str(row["note"]))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else is in here for this folder: a second viewer would read the file before this one has written it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{folder}: cannot be opened: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

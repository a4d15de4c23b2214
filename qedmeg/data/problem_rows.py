"""The problem in a row of a data set, by whatever names its columns go."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qedmeg.config_rl import ProblemColumns
from qedmeg.data.problems import Problem
from qedmeg.data.sources import Row, checked_text, column_value
from qedmeg.errors import UserError
from qedmeg.grading.grader import ProofProblem
from qedmeg.grading.rubric import Rubric, RubricItem

# In small letters and with underscores: "Problem ID" is `problem_id`.
PROBLEM_NAMES = ("problem", "prompt", "question")
RUBRIC_NAMES = ("rubric", "rubrics", "grading_guidelines", "grading_scheme", "marking_scheme")
REFERENCE_NAMES = ("solution", "reference", "reference_solution")
ID_NAMES = ("id", "problem_id")


def read_problem(row: Row, columns: ProblemColumns, source: str) -> tuple[Problem | ProofProblem, str]:
    """The problem in a row, and where its statement stands.

    Raises UserError naming source, row and column of what is missing, empty or damaged.
    """
    where = f"{source}: row {row.number}"
    if is_embedded(row.values):
        return _read_embedded(row.values, where), where

    column = columns.problem or first_of(PROBLEM_NAMES, row.values) or PROBLEM_NAMES[0]
    at = f"{where}: column '{column}'"
    statement = checked_text(column_value(row, column, "problem", where), at)

    name = optional_text(row, columns.id, ID_NAMES, "id", where)
    reference = optional_text(row, columns.reference, REFERENCE_NAMES, "reference", where)
    rubric_column = columns.rubric or first_of(RUBRIC_NAMES, row.values) or RUBRIC_NAMES[0]
    rubric = _read_rubric(column_value(row, rubric_column, "rubric", where), f"{where}: column '{rubric_column}'")
    # Not the whole path: a data set that is moved keeps its names.
    return ProofProblem(name or f"{Path(source).name}:{row.number}", statement, rubric, reference), at


def is_embedded(values: Mapping[str, Any]) -> bool:
    """Whether a row is one that an embedded problem family made."""
    return values.get("family") is not None and values.get("parameters") is not None


def _read_embedded(values: Mapping[str, Any], where: str) -> Problem:
    # Parquet gives every row all parameters that any family has: None where this one has none.
    parameters = values["parameters"]
    if isinstance(parameters, Mapping):
        parameters = {name: value for name, value in parameters.items() if value is not None}
    try:
        return Problem.from_json({**values, "parameters": parameters})
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def first_of(names: Sequence[str], values: Mapping[str, Any]) -> str | None:
    """The first of these columns that the row has with something in it, as it is spelled there."""
    spelled = {name.lower().replace(" ", "_"): name for name, value in values.items() if value is not None}
    return next((spelled[name] for name in names if name in spelled), None)


def optional_text(row: Row, column: str | None, names: Sequence[str], role: str, where: str) -> str | None:
    """What an optional column holds; None where the row has nothing in it. A column that was named must be there."""
    column = column or first_of(names, row.values)
    if column is None:
        return None
    value = column_value(row, column, role, where)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return checked_text(value, f"{where}: column '{column}'")


def _read_rubric(value: Any, at: str) -> Rubric | str:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return checked_text(value, at)
    items = []
    for number, item in enumerate(value, start=1):
        here = f"{at}: item {number}"
        if not isinstance(item, Mapping) or not {"name", "points", "description"} <= item.keys():
            raise UserError(f"{here}: expected {{name, points, description}}, found {str(item)[:60]!r}")
        points = item["points"]
        if isinstance(points, bool) or not isinstance(points, int | float) or not float(points).is_integer():
            raise UserError(f"{here}: points: expected a whole number, found {points!r}")
        name = checked_text(item["name"], f"{here}: name")
        items.append(RubricItem(name, int(points), checked_text(item["description"], f"{here}: description")))
    try:
        return Rubric(tuple(items))
    except ValueError as error:
        raise UserError(f"{at}: {error}; mend the rubric, or give it as text") from None

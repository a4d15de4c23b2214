"""The benchmarks: published ones by name, held-out embedded problems, and any file of problems."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from qedmeg.config_rl import ProblemColumns
from qedmeg.data.problem_rows import (
    ID_NAMES,
    PROBLEM_NAMES,
    RUBRIC_NAMES,
    first_of,
    is_embedded,
    optional_text,
    read_problem,
)
from qedmeg.data.problems import Problem, generate
from qedmeg.data.sources import Row, checked_text, open_sources
from qedmeg.errors import UserError, near_miss
from qedmeg.evaluation.problem import BenchmarkProblem
from qedmeg.grading.grader import AnswerProblem, AnyProblem, ProofProblem

EMBEDDED = "embedded"
SCALE = """A proof is given 7, 6, 1 or 0 points, and no other number:
- 7 points: it is complete and correct, whatever way it takes.
- 6 points: it is almost complete; what it lacks or gets wrong is minor and could be mended without a new idea. The \
guidelines below may name such cases under (Almost).
- 1 point: it is no proof, but has made progress that matters. The guidelines below may name what counts as such under \
(Partial).
- 0 points: anything else.

Guidelines for this problem:

"""
"""What comes before the guidelines of an IMO-ProofBench problem; they speak of (Partial) and (Almost) and give no
points."""

_ANSWER_NAMES = ("short_answer", "answer", "final_answer", "gold_answer")
_LEVEL_NAMES, _CATEGORY_NAMES = ("level", "difficulty"), ("category", "subject")
_COLUMNS = ProblemColumns()


@dataclass(frozen=True)
class _Published:
    """A benchmark that others made: where it is, and what its rows are graded by."""

    hub: str
    file: str
    graded: Literal["scale", "rubric", "answer"]


BENCHMARKS = {
    "imo-proofbench": _Published(
        "lm-provers/IMOProofBench", "proofbench_v2.csv of google-deepmind/superhuman", "scale"
    ),
    "proofbench": _Published("lm-provers/ProofBench", "a file with the columns problem and rubric", "rubric"),
    "imo-answerbench": _Published(
        "lm-provers/IMOBench-FinalAnswer", "answerbench_v2.csv of google-deepmind/superhuman", "answer"
    ),
}


def load_benchmark(
    name: str, data: str | None = None, *, count: int = 64, seed: int = 0, prefix: str = "--"
) -> list[BenchmarkProblem]:
    """The problems of a benchmark, in its order.

    `name` is one of `BENCHMARKS`, whose rows are then read from `data`, a file or a hub id; or `embedded`, of which
    `count` held-out problems are drawn with `seed`; or a file (.jsonl, .json, .csv, .parquet), each row of which has a
    problem and either a rubric, which is taken where both are there, or an answer. Columns go by their usual names;
    `level` and `category` are read where they are there. Nothing is fetched from the hub unless `data` names it.

    Raises UserError naming benchmark, file, row and column of what is missing, empty, damaged or twice. `prefix` stands
    before `benchmark` and `data` in what the user calls them.
    """
    if name == EMBEDDED:
        if data is not None:
            raise UserError(
                f"{prefix}benchmark: '{EMBEDDED}' is made here and read from no file; leave {prefix}data {data} out"
            )
        problems = generate("heldout", count, seed)
        return [BenchmarkProblem(problem, str(problem.level), problem.family) for problem in problems]
    published = BENCHMARKS.get(name)
    if published is None:
        if data is not None or not Path(name).expanduser().exists():
            known = [*BENCHMARKS, EMBEDDED]
            raise UserError(
                f"{prefix}benchmark: '{name}' is neither known nor a file{near_miss(name, known)}; known: "
                f"{', '.join(known)}"
            )
        return _checked(list(_read(name, None)), name)
    if data is None:
        raise UserError(
            f"{prefix}benchmark: nothing says where the problems of '{name}' are; give {prefix}data with "
            f"{published.file}, or {prefix}data {published.hub} to fetch it from the hub"
        )
    return _checked(list(_read(data, published.graded)), data)


def _read(data: str, graded: Literal["scale", "rubric", "answer"] | None) -> Iterator[BenchmarkProblem]:
    for source in open_sources(data):
        for row in source.rows():
            where = f"{source.name}: row {row.number}"
            problem = _read_problem(row, source.name, where, graded)
            level = optional_text(row, None, _LEVEL_NAMES, "level", where)
            category = optional_text(row, None, _CATEGORY_NAMES, "category", where)
            if isinstance(problem, Problem):
                level, category = str(problem.level), problem.family
            yield BenchmarkProblem(problem, level or "", category or "")


def _read_problem(row: Row, source: str, where: str, graded: Literal["scale", "rubric", "answer"] | None) -> AnyProblem:
    if not is_embedded(row.values):
        _expect(row, PROBLEM_NAMES, where)
        if graded is None:
            kind = _expect(row, (*RUBRIC_NAMES, *_ANSWER_NAMES), where)
            graded = "rubric" if kind == first_of(RUBRIC_NAMES, row.values) else "answer"
        elif graded != "answer":
            _expect(row, RUBRIC_NAMES, where)
    if graded == "answer":
        return _read_answer(row, source, where)
    problem, _ = read_problem(row, _COLUMNS, source)
    if graded == "scale" and isinstance(problem, ProofProblem):
        return replace(problem, rubric=f"{SCALE}{problem.rubric}")
    return problem


def _read_answer(row: Row, source: str, where: str) -> AnswerProblem:
    problem, answer = _expect(row, PROBLEM_NAMES, where), _expect(row, _ANSWER_NAMES, where)
    name = optional_text(row, None, ID_NAMES, "id", where) or f"{Path(source).name}:{row.number}"
    right = row.values[answer]
    if isinstance(right, int | float) and not isinstance(right, bool):
        right = str(right)
    return AnswerProblem(
        name,
        checked_text(row.values[problem], f"{where}: column '{problem}'"),
        checked_text(right, f"{where}: column '{answer}'").strip(),
    )


def _expect(row: Row, names: tuple[str, ...], where: str) -> str:
    """The name of the first of these columns that holds something."""
    found = first_of(names, row.values)
    if found is None:
        known = ", ".join(map(str, row.values)) or "none"
        raise UserError(
            f"{where}: no column named {', '.join(names)} with something in it (its columns: {known}); rename the "
            "column, or fill it"
        )
    return found


def _checked(problems: list[BenchmarkProblem], data: str) -> list[BenchmarkProblem]:
    if not problems:
        raise UserError(f"{data}: no rows: a benchmark has at least one problem")
    seen: set[str] = set()
    for problem in problems:
        if problem.id in seen:
            raise UserError(f"{data}: two problems have the id '{problem.id}'; give each an id of its own")
        seen.add(problem.id)
    return problems

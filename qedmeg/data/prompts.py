"""The problems that proofs are generated of, each with the tokens that a model is asked with."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qedmeg.config_rl import ProblemColumns, ProblemConfig
from qedmeg.data.chat import Conversation, check_template, control_token, tokenise_prompts
from qedmeg.data.problems import Problem
from qedmeg.data.sources import Row, checked_text, column_value, open_sources
from qedmeg.data.tokenizer import Tokenizer
from qedmeg.errors import UserError
from qedmeg.grading.grader import ProofProblem
from qedmeg.grading.rubric import Rubric, RubricItem

_PROBLEM_NAMES = ("problem", "prompt", "question")
_RUBRIC_NAMES = ("rubric", "rubrics", "grading_guidelines", "Grading guidelines")
_REFERENCE_NAMES = ("solution", "reference")
_ID_NAMES = ("id", "Problem ID")


@dataclass(frozen=True, eq=False)
class Prompt:
    """A problem and the P tokens (int32) that a model is given to prove it, the generation prompt at their end."""

    problem: Problem | ProofProblem
    tokens_P: npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class PromptSet:
    """All prompts of a data set, in the order of its rows."""

    prompts: tuple[Prompt, ...]
    fingerprint: str
    """Hash of all problems and tokens, in order: the same wherever the rows lie."""

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Prompt:
        return self.prompts[index]

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)


def load_prompts(config: ProblemConfig, tokenizer: Tokenizer, limit: int) -> PromptSet:
    """Read, check and tokenise the problems of `config`. `limit`: the tokens that the model's context leaves for a
    prompt beside `rollout.max_tokens` of answer.

    Raises UserError naming source, row and column of what is missing, empty, damaged or too long, and the remedy.
    """
    check_template(tokenizer, "prefix")
    control = control_token(tokenizer, config.prompt)
    if control:
        raise UserError(f"data.prompt: {config.prompt!r} holds the control token {control!r} as text; remove it")
    problems: list[Problem | ProofProblem] = []
    conversations: list[Conversation] = []
    for problem, where in read_problems(config):
        message = {"role": "user", "content": config.prompt.format(problem=problem.statement)}
        problems.append(problem)
        conversations.append(Conversation((message,), where))
    if not problems:
        raise UserError(f"{config.train}: no rows: data.train must hold at least one problem")
    _refuse_different_problems_of_one_id(problems, conversations)

    prompts_P = tokenise_prompts(tokenizer, conversations)
    _refuse_long_prompts(prompts_P, conversations, limit)
    if not config.thinking:
        _refuse_opened_thought(prompts_P[0], tokenizer)
    prompts = tuple(Prompt(problem, tokens_P) for problem, tokens_P in zip(problems, prompts_P, strict=True))
    return PromptSet(prompts, _fingerprint(prompts))


def read_problems(config: ProblemConfig) -> Iterator[tuple[Problem | ProofProblem, str]]:
    """The problem in each row, and where its statement stands. Raises UserError as `load_prompts` does for a row."""
    for source in open_sources(
        config.train, split=config.split, hub_config=config.hub_config, revision=config.revision
    ):
        for row in source.rows():
            yield _read_problem(row, config.columns, source.name)


def _read_problem(row: Row, columns: ProblemColumns, source: str) -> tuple[Problem | ProofProblem, str]:
    """The problem in a row, and where its statement stands."""
    where = f"{source}: row {row.number}"
    if row.values.get("family") is not None and row.values.get("parameters") is not None:
        return _read_embedded(row.values, where), where

    column = columns.problem or _first_of(_PROBLEM_NAMES, row.values) or _PROBLEM_NAMES[0]
    at = f"{where}: column '{column}'"
    statement = checked_text(column_value(row, column, "problem", where), at)

    name = _optional(row, columns.id, _ID_NAMES, "id", where)
    reference = _optional(row, columns.reference, _REFERENCE_NAMES, "reference", where)
    rubric_column = columns.rubric or _first_of(_RUBRIC_NAMES, row.values) or _RUBRIC_NAMES[0]
    rubric = _read_rubric(column_value(row, rubric_column, "rubric", where), f"{where}: column '{rubric_column}'")
    # Not the whole path: a data set that is moved keeps its names.
    return ProofProblem(name or f"{Path(source).name}:{row.number}", statement, rubric, reference), at


def _read_embedded(values: Mapping[str, Any], where: str) -> Problem:
    # Parquet gives every row all parameters that any family has: None where this one has none.
    parameters = values["parameters"]
    if isinstance(parameters, Mapping):
        parameters = {name: value for name, value in parameters.items() if value is not None}
    try:
        return Problem.from_json({**values, "parameters": parameters})
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _first_of(names: Sequence[str], values: Mapping[str, Any]) -> str | None:
    """The first of these columns that the row has with something in it."""
    return next((name for name in names if values.get(name) is not None), None)


def _optional(row: Row, column: str | None, names: Sequence[str], role: str, where: str) -> str | None:
    """What an optional column holds; None where the row has nothing in it. A column that was named must be there."""
    column = column or _first_of(names, row.values)
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


def _refuse_different_problems_of_one_id(
    problems: Sequence[Problem | ProofProblem], conversations: Sequence[Conversation]
) -> None:
    first: dict[str, int] = {}
    for index, problem in enumerate(problems):
        before = first.setdefault(problem.id, index)
        if problem != problems[before]:
            differs = next(
                (
                    field
                    for field in ("statement", "rubric", "reference")
                    if getattr(problem, field, None) != getattr(problems[before], field, None)
                ),
                "kind",
            )
            raise UserError(
                f"{conversations[index].where}: id '{problem.id}' is that of {conversations[before].where} too, whose "
                f"{differs} is another; give each problem an id of its own, or name their column with data.columns.id"
            )


def _refuse_long_prompts(
    prompts_P: Sequence[npt.NDArray[np.int32]], conversations: Sequence[Conversation], limit: int
) -> None:
    lengths = [len(tokens_P) for tokens_P in prompts_P]
    too_long = [index for index, length in enumerate(lengths) if length > limit]
    if too_long:
        first, longest = too_long[0], max(lengths)
        raise UserError(
            f"{conversations[first].where}: the prompt has {lengths[first]} tokens, but the model's context leaves "
            f"{max(limit, 0)} beside rollout.max_tokens ({len(too_long)} of {len(lengths)} prompts are too long, the "
            f"longest has {longest}); lower rollout.max_tokens by at least {longest - limit}, or remove these rows"
        )


def _refuse_opened_thought(tokens_P: npt.NDArray[np.int32], tokenizer: Tokenizer) -> None:
    if tokenizer.decode(tokens_P.tolist()).rstrip().endswith("<think>"):
        raise UserError(
            f"{tokenizer.name}: the chat template's generation prompt ends with <think>, and what is thought would "
            "be graded as proof; set data.thinking=true, or give another template with data.chat_template"
        )


def _fingerprint(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        text = repr(prompt.problem).encode()
        digest.update(f"{len(text)} {len(prompt.tokens_P)} ".encode() + text + prompt.tokens_P.astype("<i4").tobytes())
    return digest.hexdigest()

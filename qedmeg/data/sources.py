"""Rows of JSONL, JSON, CSV, Parquet and hub datasets, one at a time, and the conversation in each.

JSONL is read by the standard library: `datasets` guesses the types of a column from the first megabytes, so that a
later row with one field more fails, and a bad line is named by a number inside a block. Here it is the line number.
"""

import csv
import io
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qedmeg.config import Columns
from qedmeg.data.chat import Conversation
from qedmeg.errors import UserError, near_miss

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_LONGEST_CELL = 2**24
_PROMPT_NAMES = ("prompt", "problem")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """A row with its number in the file: from 1, for JSONL the line."""

    number: int
    values: Mapping[str, Any]
    units: int
    """How far this row brings the reading of its source: bytes for JSONL, else 1."""


@dataclass(frozen=True)
class Source:
    """A file or a hub split. `identity` changes when its content does; `units` is the sum over its rows."""

    name: str
    units: int
    identity: tuple[tuple[str, int, int], ...]
    rows: Callable[[], Iterator[Row]]


def open_sources(
    name: str, *, split: str = "train", hub_config: str | None = None, revision: str | None = None
) -> list[Source]:
    """The sources that `name` means: a file, the files of a folder (in the order of their names), or a hub dataset.

    Nothing is run from the hub: `datasets` holds no loading scripts any more. Raises UserError.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        kinds = {file.suffix for file in files}
        if len(kinds) != 1:
            what = "files of several kinds" if kinds else "no file"
            raise UserError(
                f"{path}: expected a folder of .jsonl, .json, .csv or .parquet files of one kind, found {what}"
            )
        return [_open_file(file) for file in files]
    if path.is_file():
        return [_open_file(path)]
    if path.suffix in SUFFIXES or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise UserError(f"{name}: no such file or folder of training rows")
    return [_open_hub(name, split, hub_config, revision)]


def read_conversation(row: Row, columns: Columns, source: str) -> Conversation:
    """The conversation in a row. Raises UserError naming source, row number and column."""
    where = f"{source}: row {row.number}"
    if columns.messages is not None or (columns.prompt is None and _has_messages(row.values)):
        column = columns.messages or "messages"
        at = f"{where}: column '{column}'"
        return Conversation(_check_messages(column_value(row, column, "messages", where), at), at)
    prompt_column = columns.prompt or next((name for name in _PROMPT_NAMES if name in row.values), _PROMPT_NAMES[0])
    proof_column = columns.proof or "proof"
    prompt = checked_text(column_value(row, prompt_column, "prompt", where), f"{where}: column '{prompt_column}'")
    proof = checked_text(column_value(row, proof_column, "proof", where), f"{where}: column '{proof_column}'")
    reasoning_column = columns.reasoning_content or "reasoning_content"
    if columns.reasoning_content is not None:
        reasoning = column_value(row, reasoning_column, "reasoning_content", where)
    else:
        reasoning = row.values.get(reasoning_column)
    if reasoning is not None and str(reasoning).strip():
        thought = checked_text(reasoning, f"{where}: column '{reasoning_column}'")
        proof = f"<think>\n{thought}\n</think>\n\n{proof}"
    messages = ({"role": "user", "content": prompt}, {"role": "assistant", "content": proof})
    return Conversation(messages, f"{where}: column '{proof_column}'")


def _has_messages(values: Mapping[str, Any]) -> bool:
    # A table that holds both layouts may leave `messages` empty in some rows.
    return "messages" in values and (
        values["messages"] is not None or not any(name in values for name in _PROMPT_NAMES)
    )


def column_value(row: Row, column: str, role: str, where: str) -> Any:
    """The value of a column; `a.b` is the field b of the object in column a.

    Raises UserError naming the setting `data.columns.{role}` where there is none.
    """
    value: Any = row.values
    for name in [column] if column in row.values else column.split("."):
        if not isinstance(value, Mapping) or name not in value:
            known = ", ".join(map(str, row.values)) or "none"
            raise UserError(
                f"{where}: no column '{column}' (it has: {known}){near_miss(column, map(str, row.values))}; "
                f"name the column with data.columns.{role}"
            )
        value = value[name]
    return value


def checked_text(value: Any, at: str) -> str:
    """The value, if it is text that is not blank and that a tokenizer can read. Raises UserError naming `at`."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise UserError(f"{at} is empty; remove the row or fill it")
    if not isinstance(value, str):
        raise UserError(f"{at} is of type {type(value).__name__}, expected text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # half of a surrogate pair: JSON can write it, a tokenizer cannot read it
        raise UserError(f"{at} holds the invalid character \\u{ord(value[error.start]):04x}") from None
    return value


def _check_messages(messages: Any, at: str) -> tuple[dict[str, Any], ...]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UserError(f"{at}: expected a list of messages {{role, content}}, found {_found(messages)}")
    roles = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise UserError(f"{at}: message {number}: expected {{role, content}}, found {_found(message)}")
        checked_text(message["content"], f"{at}: message {number}: content")
        roles.append(message["role"])
    turns = roles[1:] if roles[0] == "system" else roles
    if not turns or len(turns) % 2 or turns != ["user", "assistant"] * (len(turns) // 2):
        raise UserError(
            f"{at}: roles {', '.join(map(str, roles[:8]))}{', ...' if len(roles) > 8 else ''}: expected an optional "
            "system message, then user and assistant in turn, an assistant last"
        )
    # Columnar formats give every message all the fields that any message has: None where there is none.
    return tuple({key: value for key, value in message.items() if value is not None} for message in messages)


def _found(value: Any) -> str:
    return "nothing" if value is None or value in ([], "") else f"{type(value).__name__} {str(value)[:60]!r}"


# --- the formats ----------------------------------------------------------------------------------------------------


def _identity(file: Path) -> tuple[str, int, int]:
    status = file.stat()
    return str(file.resolve()), status.st_size, status.st_mtime_ns


def _open_file(file: Path) -> Source:
    identity = (_identity(file),)
    if file.suffix == ".parquet":
        return Source(str(file), _parquet_rows(file), identity, partial(_read_parquet, file))
    if file.suffix not in SUFFIXES:
        raise UserError(f"{file}: unknown kind of file '{file.suffix}'; expected .jsonl, .json, .csv or .parquet")
    if file.suffix == ".csv":
        table = _read_csv(file)
        return Source(str(file), len(table), identity, lambda: iter(table))
    with file.open("rb") as opened:
        is_array = file.suffix == ".json" and opened.read(64).lstrip().startswith(b"[")
    if is_array:
        values = _json(file.read_bytes(), str(file))
        rows = [Row(number, _mapping(row, f"{file}: row {number}"), 1) for number, row in enumerate(values, start=1)]
        return Source(str(file), len(rows), identity, lambda: iter(rows))
    return Source(str(file), file.stat().st_size, identity, partial(_read_jsonl, file))


def _read_jsonl(file: Path) -> Iterator[Row]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{file}: row {number}"
                yield Row(number, _mapping(_json(line, where), where), len(line))


def _read_csv(file: Path) -> list[Row]:
    """Rows of a table whose first line has the names; a blank cell is None."""
    csv.field_size_limit(_LONGEST_CELL)
    read: list[Row] = []
    try:
        lines = csv.reader(io.StringIO(file.read_text(encoding="utf-8-sig"), newline=""))
        names = next(lines, [])
        for cells in filter(None, lines):
            number = len(read) + 1
            if len(cells) != len(names):
                cells = _parted(cells)
                if len(cells) != len(names):
                    raise UserError(
                        f"{file}: row {number}: has {len(cells)} cells, the first line {len(names)}; mend it"
                    )
                logger.warning("%s: row %d: a quotation mark is missing and was put in", file, number)
            values = {name: cell if cell.strip() else None for name, cell in zip(names, cells, strict=True)}
            read.append(Row(number, values, 1))
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a readable CSV file: {error}") from None
    return read


def _parted(cells: list[str]) -> list[str]:
    """The cells, where two became one because the quotation mark that ends the first is missing.

    IMO-AnswerBench is published with one such row: the answer then stands in the problem, and its category for the
    answer.
    """
    parted = []
    for cell in cells:
        first, comma, second = cell.rpartition("\n,")
        parted += [first, second[:-1]] if comma and second.endswith('"') else [cell]
    return parted


def _json(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON: {error}") from None


def _mapping(row: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object {{column: value}}, found {type(row).__name__}")
    return row


def _parquet_rows(file: Path) -> int:
    import pyarrow
    import pyarrow.parquet

    try:
        return int(pyarrow.parquet.read_metadata(file).num_rows)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a readable Parquet file: {' '.join(str(error).split())}") from None


def _read_parquet(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            for batch in opened.iter_batches(batch_size=64):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(number, values, 1)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file}: cannot be read after row {number}: {' '.join(str(error).split())}") from None


def _open_hub(name: str, split: str, hub_config: str | None, revision: str | None) -> Source:
    import datasets

    try:
        dataset = datasets.load_dataset(name, hub_config, split=split, revision=revision)
    except Exception as error:  # not found, no network, unknown configuration or split: each its own class, or several
        raise UserError(
            f"{name}: neither a file or folder here nor a dataset that can be loaded from the hub "
            f"(split '{split}', configuration {hub_config}): {' '.join(str(error).split())}"
        ) from None

    def rows() -> Iterator[Row]:
        for number, values in enumerate(dataset, start=1):
            yield Row(number, values, 1)

    # The cached files lie under the commit that they were made from.
    identity = tuple(_identity(Path(file["filename"])) for file in dataset.cache_files)
    return Source(f"{name}[{split}]", len(dataset), identity, rows)

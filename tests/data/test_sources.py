"""Rows from files of every kind, and every bad row named by file, number and column."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from qedmeg.config import Columns
from qedmeg.data.chat import Conversation
from qedmeg.data.sources import open_sources, read_conversation
from qedmeg.errors import UserError

PAIR = {"problem": "P", "proof": "Q"}
MESSAGES = [{"role": "user", "content": "P"}, {"role": "assistant", "content": "Q"}]


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(name: str | Path, columns: Columns | None = None) -> list[Conversation]:
    return [
        read_conversation(row, columns or Columns(), source.name)
        for source in open_sources(str(name))
        for row in source.rows()
    ]


def contents(name: str | Path, columns: Columns | None = None) -> list[list[str]]:
    return [[message["content"] for message in conversation.messages] for conversation in read(name, columns)]


def test_the_same_rows_from_every_kind_of_file(tmp_path: Path) -> None:
    rows = [{"problem": f"P{i}", "proof": f"Q{i}", "grade": i} for i in range(150)]
    jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.json").write_text(json.dumps(rows))
    jsonl(tmp_path / "c.json", rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    (tmp_path / "e.csv").write_text("problem,proof\n" + "".join(f'"P{i}",Q{i}\n' for i in range(150)))
    expected = [[f"P{i}", f"Q{i}"] for i in range(150)]
    for name in ("a.jsonl", "b.json", "c.json", "d.parquet", "e.csv"):
        assert contents(tmp_path / name) == expected
        (source,) = open_sources(str(tmp_path / name))
        assert sum(row.units for row in source.rows()) == source.units
        assert source.identity[0][:2] == (str(tmp_path / name), (tmp_path / name).stat().st_size)


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    jsonl(tmp_path / "2.jsonl", [{"prompt": "c", "proof": "d"}])
    jsonl(tmp_path / "1.jsonl", [{"prompt": "a", "proof": "b"}])
    (tmp_path / "README.md").write_text("x")
    assert contents(tmp_path) == [["a", "b"], ["c", "d"]]
    (tmp_path / "3.parquet").write_bytes(b"")
    with pytest.raises(UserError, match="files of several kinds"):
        open_sources(str(tmp_path))


def test_layouts_and_mapping(tmp_path: Path) -> None:
    both = {**PAIR, "messages": [MESSAGES[0], {"role": "assistant", "content": "M"}], "reasoning_content": "R"}
    path = jsonl(tmp_path / "a.jsonl", [both])
    assert contents(path) == [["P", "M"]]
    assert contents(path, Columns(prompt="problem", proof="proof")) == [["P", "<think>\nR\n</think>\n\nQ"]]
    path = jsonl(tmp_path / "b.jsonl", [{"question": "A", "answer": {"proof": "B", "thought": ""}, "a.b": "C"}])
    mapping = Columns(prompt="question", proof="answer.proof", reasoning_content="answer.thought")
    assert contents(path, mapping) == [["A", "B"]]
    assert contents(path, Columns(prompt="a.b", proof="answer.proof")) == [["C", "B"]]
    path = jsonl(tmp_path / "c.jsonl", [{"chat": MESSAGES}])
    assert contents(path, Columns(messages="chat")) == [["P", "Q"]]


def test_fields_that_a_columnar_file_fills_with_none_are_left_out(tmp_path: Path) -> None:
    long = [{"role": "system", "content": "S"}, MESSAGES[0], {**MESSAGES[1], "reasoning_content": "R"}]
    rows = [{"messages": long, "problem": None, "proof": None}, {"messages": None, "problem": "P", "proof": "Q"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    first, second = read(tmp_path / "a.parquet")
    assert first.messages == tuple(long)
    assert second.messages == tuple(MESSAGES)


def test_rows_of_jsonl_need_not_have_the_same_fields(tmp_path: Path) -> None:
    """What makes `datasets` fail beyond its first megabytes: a late new field, a late change of type."""
    rows = [{**PAIR, "grade": 1}] * 3 + [{**PAIR, "grade": "seven", "notes": {"a": 1}}]
    assert len(read(jsonl(tmp_path / "a.jsonl", rows))) == 4


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"problem": "P"}, r"no column 'proof' \(it has: problem\); name the column with data.columns.proof"),
        ({"problem": "P", "prof": "Q"}, r"did you mean 'prof'\?"),
        ({"proof": "Q"}, r"no column 'prompt' \(it has: proof\).*; name the column with data.columns.prompt"),
        ({}, r"no column 'prompt' \(it has: none\)"),
        ({"problem": "", "proof": "Q"}, "column 'problem' is empty"),
        ({"problem": "P", "proof": " \n"}, "column 'proof' is empty"),
        ({"problem": "P", "proof": None}, "column 'proof' is empty"),
        ({"problem": "P", "proof": 3}, "column 'proof' is of type int, expected text"),
        ({"problem": "P", "proof": "\ud835"}, r"column 'proof' holds the invalid character \\ud835"),
        ({**PAIR, "reasoning_content": ["x"]}, "column 'reasoning_content' is of type list"),
        ({"messages": []}, "column 'messages': expected a list of messages .* found nothing"),
        ({"messages": None}, "column 'messages': expected a list of messages .* found nothing"),
        ({"messages": "hi"}, "column 'messages': expected a list of messages .* found str 'hi'"),
        ({"messages": [{"role": "user"}]}, "column 'messages': message 1: expected {role, content}, found dict"),
        ({"messages": ["hi"]}, "column 'messages': message 1: expected {role, content}, found str 'hi'"),
        ({"messages": [MESSAGES[0], {"role": "assistant", "content": ""}]}, "message 2: content is empty"),
        ({"messages": [MESSAGES[0], {"role": "assistant", "content": [1]}]}, "message 2: content is of type list"),
        ({"messages": MESSAGES[:1]}, "column 'messages': roles user: expected .* an assistant last"),
        ({"messages": MESSAGES[::-1]}, "roles assistant, user: expected"),
        ({"messages": [MESSAGES[0], *MESSAGES]}, "roles user, user, assistant: expected"),
        ({"messages": [*MESSAGES, {"role": "system", "content": "x"}]}, "roles user, assistant, system: expected"),
        ({"messages": [{"role": "system", "content": "x"}]}, "roles system: expected"),
        ([1], "expected an object {column: value}, found list"),
    ],
)
def test_bad_rows(tmp_path: Path, row: Any, said: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", [PAIR])
    with path.open("a") as file:
        file.write("\n" + json.dumps(row) + "\n")  # line 2 is blank: the bad row is on line 3
    with pytest.raises(UserError, match=said) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: row 3: ")


def test_bad_rows_of_parquet_are_numbered(tmp_path: Path) -> None:
    rows = [PAIR] * 100 + [{"problem": "P", "proof": ""}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: row 101: column 'proof' is empty"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"problem": "P", "proof": "Q"}\n{"problem": "P", "pr', "row 2: not valid JSON"),
        ("a.jsonl", b'{"problem": "\xff\xfe", "proof": "Q"}\n', "row 1: not valid JSON"),
        ("a.jsonl", b"[" * 100_000, "row 1: not valid JSON"),
        ("a.json", b'[{"problem": "P"}, ', "a.json: not valid JSON"),
        ("a.parquet", b"PAR1 and no more", "not a readable Parquet file"),
        ("a.csv", b"problem,proof\nP,Q\nP\n", "row 2: has 1 cells, the first line 2; mend it"),
        ("a.csv", b"problem,proof\nP,\xff\n", "not a readable CSV file"),
        ("a.txt", b"x", "unknown kind of file '.txt'"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parquet_that_breaks_off_in_its_data(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"problem": f"P{i}" * 50, "proof": f"Q{i}" * 50} for i in range(2000)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    damaged = bytearray(path.read_bytes())
    damaged[100:3000] = bytes(2900)
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read after row"):
        read(path)


@pytest.mark.parametrize("name", ["none.jsonl", "/nowhere/rows", "./rows", "a/b/c", "~nobody/x"])
def test_paths_that_are_not_there(name: str) -> None:
    with pytest.raises(UserError, match="no such file or folder of training rows"):
        open_sources(name)


def test_a_hub_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` takes a folder owner/name in the working directory for a repository: the same calls, no network."""
    from qedmeg.data.sources import _open_hub

    repository = tmp_path / "owner" / "proofs"
    repository.mkdir(parents=True)
    jsonl(repository / "train.jsonl", [PAIR] * 3)
    jsonl(repository / "test.jsonl", [PAIR] * 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    source = _open_hub("owner/proofs", "test", None, None)
    assert (source.name, source.units, len(list(source.rows()))) == ("owner/proofs[test]", 2, 2)
    assert all(str(tmp_path / "cache") in path for path, _, _ in source.identity)
    with pytest.raises(UserError, match=r"owner/proofs: .*split 'dev'"):
        _open_hub("owner/proofs", "dev", None, None)


def test_a_dataset_that_is_not_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="nobody/nothing: neither a file or folder here nor a dataset") as caught:
        open_sources("nobody/nothing")
    assert "\n" not in str(caught.value)

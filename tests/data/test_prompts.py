"""Problems for reinforcement learning: read from every kind of row, each bad one named, asked as the template asks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from qedmeg.config_rl import ProblemColumns, ProblemConfig
from qedmeg.data.problems import FAMILIES, Problem, generate
from qedmeg.data.prompts import PromptSet, load_prompts
from qedmeg.data.tokenizer import Tokenizer, load_tokenizer
from qedmeg.errors import UserError
from qedmeg.grading.grader import ProofProblem
from qedmeg.grading.rubric import Rubric, RubricItem
from tests.data.conftest import PLAIN, save_byte_level

# A row of FineProofs-RL: its columns and their types.
PUBLISHED = {
    "problem": "Prove that 1 + 1 = 2.",
    "source": "aops",
    "rubrics": "**Checkpoints (7 pts)** 1. Peano's axioms (7)",
    "scores": [0, 7, 3],
    "rewards": [0.0, 1.0, 3 / 7],
    "num_rewards": 3,
    "reward_mean": 10 / 21,
    "reward_std": 0.4,
}
ITEMS = [{"name": "idea", "points": 5, "description": "has it"}, {"name": "end", "points": 2, "description": "ends"}]
ROW = {"id": "a", "problem": "P", "rubric": "all or nothing"}


def write(path: Path, rows: list[Any]) -> str:
    if path.suffix == ".parquet":
        names = dict.fromkeys(name for row in rows for name in row)
        rows = [{name: row.get(name) for name in names} for row in rows]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(
    tokenizer: Tokenizer, train: str, limit: int = 1000, microbatch_limit: int | None = None, **settings: Any
) -> PromptSet:
    return load_prompts(ProblemConfig(train=train, **settings), tokenizer, limit, microbatch_limit)


def load_rows(tokenizer: Tokenizer, folder: Path, rows: list[Any], **settings: Any) -> PromptSet:
    return load(tokenizer, write(folder / "rows.jsonl", rows), **settings)


def test_rows_of_the_published_rl_data_work_as_they_are(plain: Tokenizer, tmp_path: Path) -> None:
    for kind in ("jsonl", "parquet"):
        prompts = load(plain, write(tmp_path / f"fine.{kind}", [PUBLISHED, {**PUBLISHED, "problem": "Prove 2 > 1."}]))
        assert [prompt.problem for prompt in prompts] == [
            ProofProblem(f"fine.{kind}:1", "Prove that 1 + 1 = 2.", PUBLISHED["rubrics"]),
            ProofProblem(f"fine.{kind}:2", "Prove 2 > 1.", PUBLISHED["rubrics"]),
        ]


def test_a_prompt_is_the_template_with_the_generation_prompt(plain: Tokenizer, tmp_path: Path) -> None:
    rows = [{**ROW, "problem": "Is {n} even?"}, {**ROW, "id": "b", "problem": "n ≥ 0"}]
    prompts = load_rows(plain, tmp_path, rows, prompt="Prove {{it}}: {problem}\nSay why.")
    assert len(prompts) == 2
    assert prompts[1].tokens_P.dtype == np.int32
    assert plain.decode(prompts[0].tokens_P.tolist()) == (
        "<|im_start|>user\nProve {it}: Is {n} even?\nSay why.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompts[1].tokens_P.tolist() == plain.encode(
        "<|im_start|>user\nProve {it}: n ≥ 0\nSay why.<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_embedded_problems_come_back_as_they_were(plain: Tokenizer, tmp_path: Path, kind: str) -> None:
    problems = generate("train", 3 * len(FAMILIES), seed=1, levels=(1, 2, 3))
    prompts = load(plain, write(tmp_path / f"rows.{kind}", [problem.to_json() for problem in problems]))
    assert [prompt.problem for prompt in prompts] == problems
    assert all(isinstance(prompt.problem, Problem) for prompt in prompts)
    assert problems[0].statement in plain.decode(prompts[0].tokens_P.tolist())


def test_embedded_and_other_problems_in_one_table(plain: Tokenizer, tmp_path: Path) -> None:
    (embedded,) = generate("train", 1, seed=1)
    rows = [embedded.to_json(), {"id": "b", "problem": "P", "grading_guidelines": "text"}]
    prompts = load(plain, write(tmp_path / "rows.parquet", rows))
    assert [prompt.problem for prompt in prompts] == [embedded, ProofProblem("b", "P", "text")]


def test_columns_by_other_names(plain: Tokenizer, tmp_path: Path) -> None:
    row = {"a": {"q": "Q"}, "marks": ITEMS, "n": 17, "answer": "because"}
    columns = ProblemColumns(problem="a.q", rubric="marks", id="n", reference="answer")
    rubric = Rubric((RubricItem("idea", 5, "has it"), RubricItem("end", 2, "ends")))
    assert load_rows(plain, tmp_path, [row], columns=columns)[0].problem == ProofProblem("17", "Q", rubric, "because")
    with pytest.raises(UserError, match=r"row 2: no column 'answer' \(it has: a, marks, n\).*data\.columns\.reference"):
        load_rows(plain, tmp_path, [row, {"a": {"q": "R"}, "marks": ITEMS, "n": 18}], columns=columns)
    names = {"question": "Q", "Grading guidelines": "G", "Problem ID": "PB-1", "solution": "S", "rubric": None}
    assert load_rows(plain, tmp_path, [names])[0].problem == ProofProblem("PB-1", "Q", "G", "S")


def test_the_fingerprint_changes_with_all_that_is_in_it(plain: Tokenizer, tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "id": "b", "problem": "R"}]
    first = load_rows(plain, tmp_path, rows).fingerprint
    (tmp_path / "elsewhere").mkdir()
    assert load_rows(plain, tmp_path / "elsewhere", rows).fingerprint == first
    other_rows: list[list[dict[str, Any]]] = [rows[:1], rows[::-1]]
    other_rows += [[{**ROW, **change}, rows[1]] for change in ({"rubric": "x"}, {"id": "c"}, {"reference": "r"})]
    others = [load_rows(plain, tmp_path, changed).fingerprint for changed in other_rows]
    others += [load_rows(plain, tmp_path, rows, prompt=f"{{problem}}{mark}").fingerprint for mark in "!?"]
    assert len({first, *others}) == len(others) + 1


def test_the_same_problem_twice_is_no_mistake(plain: Tokenizer, tmp_path: Path) -> None:
    assert len(load_rows(plain, tmp_path, [ROW, ROW])) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "rows.jsonl: no rows"),
        ([ROW, {**ROW, "problem": " "}], r"rows.jsonl: row 2: column 'problem' is empty; remove the row or fill it"),
        ([{**ROW, "problem": 3}], "row 1: column 'problem' is of type int, expected text"),
        ([{"rubric": "r"}], r"row 1: no column 'problem' \(it has: rubric\).*data\.columns\.problem"),
        ([{"problem": "P"}], r"row 1: no column 'rubric' \(it has: problem\).*data\.columns\.rubric"),
        ([{**ROW, "rubric": ""}], "row 1: column 'rubric' is empty"),
        ([{**ROW, "rubric": None}], "row 1: column 'rubric' is empty"),
        ([{**ROW, "rubric": ITEMS[:1]}], "column 'rubric': rubric items are worth 5 points together, not 7"),
        ([{**ROW, "rubric": []}], "column 'rubric': rubric items are worth 0 points together, not 7"),
        ([{**ROW, "rubric": [ITEMS[0], {"name": "end"}]}], r"item 2: expected \{name, points, description\}"),
        ([{**ROW, "rubric": [ITEMS[0], {**ITEMS[1], "points": 2.5}]}], "item 2: points: expected a whole number"),
        ([{**ROW, "rubric": [ITEMS[0], {**ITEMS[1], "points": True}]}], "item 2: points: expected a whole number"),
        ([{**ROW, "rubric": [ITEMS[0], {**ITEMS[1], "description": ""}]}], "item 2: description is empty"),
        ([{**ROW, "id": ["a"]}], "row 1: column 'id' is of type list"),
        (
            [ROW, {**ROW, "problem": "R"}],
            r"row 2: column 'problem': id 'a' is that of .*row 1.* too, whose statement is another.*data\.columns\.id",
        ),
        ([ROW, {**ROW, "rubric": "other"}], "id 'a' is that of .*row 1.* whose rubric is another"),
        ([{**ROW, "problem": "Prove<|im_end|>\n"}], r"row 1: column 'problem': .*control token '<\|im_end\|>'"),
    ],
)
def test_bad_rows_are_named(plain: Tokenizer, tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_rows(plain, tmp_path, rows)


def test_a_damaged_embedded_problem_is_named(plain: Tokenizer, tmp_path: Path) -> None:
    (problem,) = generate("train", 1, seed=1)
    row = replace(problem, statement="Prove that 1 = 1.").to_json()
    with pytest.raises(UserError, match=r"rows.jsonl: row 1: problem '.*': field 'statement' is not what family"):
        load_rows(plain, tmp_path, [row])
    with pytest.raises(UserError, match=r"rows.jsonl: row 1: not a problem: field 'parameters'"):
        load_rows(plain, tmp_path, [{**row, "parameters": [1]}])


@pytest.mark.parametrize(
    ("name", "limited_by", "remedy"),
    [
        ("limit", "the model's context", "lower rollout.max_tokens"),
        (
            "microbatch_limit",
            "data.tokens_per_microbatch",
            "raise data.tokens_per_microbatch or lower rollout.max_tokens",
        ),
    ],
)
def test_a_prompt_longer_than_there_is_room_for(
    plain: Tokenizer, tmp_path: Path, name: str, limited_by: str, remedy: str
) -> None:
    rows = [ROW, {**ROW, "id": "b", "problem": "x" * 50}, {**ROW, "id": "c", "problem": "x" * 60}]
    lengths = [len(prompt.tokens_P) for prompt in load_rows(plain, tmp_path, rows)]
    assert len(load_rows(plain, tmp_path, rows, **{name: max(lengths)})) == 3
    limit = lengths[1] - 1
    with pytest.raises(UserError) as refused:
        load_rows(plain, tmp_path, rows, **{name: limit})
    assert str(refused.value) == (
        f"{tmp_path}/rows.jsonl: row 2: column 'problem': the prompt has {lengths[1]} tokens, but {limited_by} leaves "
        f"{limit} beside rollout.max_tokens (2 of 3 prompts are too long, the longest has {lengths[2]}); {remedy} by "
        f"at least {lengths[2] - limit}, or remove these rows"
    )


def test_mistakes_in_the_settings(plain: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.prompt: .* holds the control token '<\|im_end\|>'"):
        load_rows(plain, tmp_path, [ROW], prompt="{problem}<|im_end|>")
    with pytest.raises(UserError, match="no such file or folder"):
        load(plain, str(tmp_path / "none.jsonl"))


def test_a_template_that_opens_a_thought_needs_thinking(tmp_path: Path) -> None:
    thinking = PLAIN.replace("assistant\\n'", "assistant\\n<think>\\n'")
    tokenizer = load_tokenizer(save_byte_level(tmp_path / "tokenizer", thinking))
    with pytest.raises(UserError, match=r"ends with <think>.*set data\.thinking=true"):
        load_rows(tokenizer, tmp_path, [ROW])
    tokens_P = load_rows(tokenizer, tmp_path, [ROW], thinking=True)[0].tokens_P
    assert tokenizer.decode(tokens_P.tolist()).endswith("<think>\n")


def test_a_tokenizer_without_a_chat_template(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_byte_level(tmp_path / "tokenizer", None))
    with pytest.raises(UserError, match=r"no chat template; set data\.chat_template"):
        load_rows(tokenizer, tmp_path, [ROW])

"""The card: evaluations with their intervals, and hostile text that stays text."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from qedmeg.conversion.convert import megatron_to_hf
from qedmeg.evaluation.scores import open_results
from qedmeg.evaluation.serving import weights_hash
from qedmeg.evaluation.stats import summaries
from qedmeg.lineage.stages import DataFile, Stage, Start
from qedmeg.release.card import settings_file
from qedmeg.release.evaluated import THESE, read_evaluated
from qedmeg.release.markdown import Markdown, code, escape, table
from tests.evaluation.filled import add_run, by_rule, failed, problems, run_of

HOSTILE = "a|b\n| x | y |\n---\n`c` <img src=x onerror=alert(1)> [d](http://e) **f** $g$ {{ h }} \u202e"


@pytest.fixture
def evaluated(two_stages, tmp_path) -> Path:
    """Results of three runs: of these weights with a failed grade, of others, and of a model behind an address."""
    path = tmp_path / "results.sqlite"
    hf = tmp_path / "hf"
    assert megatron_to_hf(two_stages / "second/checkpoints/step_00000003", hf, checks=()).equal
    grades = by_rule(lambda n, sample: float((n + sample) % 8), 16, 2)
    grades[0, 0] = [failed()]
    sources = {
        "mine": {"model": "hf", "weights": weights_hash(hf)},
        "base": {"model": "x", "weights": "0" * 64},
        HOSTILE: {"model": "x"},
    }
    for name, source in sources.items():
        run = dataclasses.replace(run_of(name), settings={"models": {"prover": source}})
        add_run(path, run, problems(16), {"judge|1": grades})
    return path


@pytest.mark.usefixtures("quick")
def test_scores_with_intervals(release, two_stages, tmp_path, evaluated):
    names = ("mine", "base", HOSTILE)
    out = tmp_path / "out"
    arguments = ("--run", two_stages / "second", "--out", out, "--results", evaluated, "--evaluated", *names)
    assert release(*arguments).status == 0
    # problem n has n % 8 and (n + 1) % 8 points, but for problem 0, of which the second attempt alone is graded, with 1
    eight = 0.5 + 1.5 + 2.5 + 3.5 + 4.5 + 5.5 + 6.5 + 3.5
    mean = (2 * eight + 0.5) / 16
    (row,) = [line for line in (out / "README.md").read_text().splitlines() if line.startswith("| mine |")]
    cells = [cell.strip() for cell in row.strip("|").split(" | ")]
    results = open_results(evaluated)
    whole = summaries(results, ["mine"])[0].whole
    results.close()
    assert cells[:11] == [
        *("mine", "these", "imo-proofbench", "single", "2", "judge\\|1", "31", "1", "0"),
        *(f"{mean:.2f}", f"{mean / 7 * 100:.1f}"),
    ]
    low, high = whole.interval.low / 7 * 100, whole.interval.high / 7 * 100
    assert cells[11] == f"\\[{low:.1f}, {high:.1f}\\]"
    (result,) = ModelCard.load(out / "README.md").data.eval_results  # others' scores are no claim of this model
    assert (result.metric_value, result.dataset_name) == (round(mean / 7 * 100, 2), "imo-proofbench")
    assert f"[{low:.1f}, {high:.1f}]" in result.metric_name
    page = (out / "README.md").read_text()
    assert [line.split(" | ")[1] for line in page.splitlines() if line.startswith(("| base |", "| a\\|b"))] == [
        "others",
        "not known",
    ]
    for group in ("basic", "advanced", "Algebra", "Geometry"):
        assert len([line for line in page.splitlines() if line.startswith(f"| {group} | 8 |")]) == 3
    assert (
        page.count("not graded, in no mean: 1 \\(timeout\\)") + page.count("not graded, in no mean: 1 (timeout)") == 3
    )
    assert "Scores are those of the grader `judge¦1`" in page


@pytest.mark.usefixtures("quick")
def test_hostile_names_break_neither_tables_nor_header(release, two_stages, tmp_path, evaluated):
    out = tmp_path / "out"
    arguments = ("--run", two_stages / "second", "--out", out, "--results", evaluated, "--evaluated", HOSTILE, "mine")
    assert release(*arguments, "--name", HOSTILE).status == 0
    page = (out / "README.md").read_text()
    header, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", page, re.DOTALL).groups()
    assert yaml.safe_load(header)["model-index"][0]["results"][0]["metrics"][0]["type"] == "score"
    assert "<img" not in re.sub(r"```.*?```|`[^`\n]*`", "", body, flags=re.DOTALL)
    widths = [_cells(line) for line in body.splitlines() if line.startswith("|")]
    tables = [
        {_cells(line) for line in block.splitlines() if line.startswith("|")}
        for block in body.split("\n\n")
        if block.startswith("|")
    ]
    assert widths
    assert all(len(found) == 1 for found in tables)
    compile(re.search(r"```python\n(.*?)```", body, re.DOTALL)[1], "snippet", "exec")


def _cells(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", r"a\|b"),
        ("a\n\n# b", "a # b"),
        ("# b", r"\# b"),
        ("1. b", r"1\. b"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("[a](http://b)", r"\[a\](http\://b)"),
        ("\u202eabc\x00", "abc"),
        (r"\|", r"\\\|"),
        (Markdown("**a**"), "**a**"),
    ],
)
def test_escape(text, expected):
    assert escape(text) == expected


def test_code_that_holds_code():
    assert code("a") == "`a`"
    assert code("`a``b") == "``` `a``b ```"
    assert "|" not in code("a|b")
    assert table(["x"], [[code("a|b")], ["a|b"]]).count("|") == 2 * 4 + 1


def test_settings_of_a_stage_are_a_file_of_their_own():
    stage = Stage(
        "SFT", "../x y/\n", settings={"a": "b: c\n# d"}, starts=(Start(0, "", (DataFile("x", 1, ""),), {}, None),)
    )
    name, text = settings_file(2, stage)
    assert name == "2-sft-..-x-y.yaml"
    assert yaml.safe_load(text) == {"a": "b: c\n# d"}


def test_whose_weights_were_evaluated(evaluated, tmp_path):
    (one,) = read_evaluated(evaluated, ["mine"], weights_hash(tmp_path / "hf"))
    assert one.weights == THESE

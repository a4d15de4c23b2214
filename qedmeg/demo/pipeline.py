"""The demo's stages, each run once: what is finished is kept, and found again by the next `make demo`."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from qedmeg.data.problems import generate
from qedmeg.demo import base_model
from qedmeg.demo.report import write_report
from qedmeg.monitor.metrics import read_metrics

ROOT = Path(__file__).parent.parent.parent
SFT_CONFIG = "recipes/configs/sft_demo.yaml"
GRPO_CONFIG = "recipes/configs/grpo_demo.yaml"
HELD_OUT = 108
SAMPLES = 4
BASE_SAMPLES = 1  # a model of random weights earns nothing, and writes to the last token that it may
TEACHER_PROOFS = 24_000
INCOMPLETE = 0.5
"""Share of the teacher proofs that lack sentences, as published teacher data holds incomplete proofs."""
PROBLEMS = 2000
SEED = 0
QUICK_CHECKS = "tensors,config,tokenizer"
"""Of a conversion; the round trip's stage makes all of them, of the weights that were trained."""


class StageFailedError(RuntimeError):
    """A command of the demo ended with an error, which it has printed itself."""


@dataclass(frozen=True)
class Stage:
    """A part of the demo: its name in the table, and what it does; it may return numbers to keep."""

    name: str
    run: Callable[[Path], dict[str, Any]]


def run_demo(folder: Path) -> int:
    """Run what is not yet done, then print the table and write summary and report."""
    folder = folder.resolve()  # its commands run in the repository
    done: dict[str, dict[str, Any]] = {}
    records = folder / "stages"
    records.mkdir(parents=True, exist_ok=True)
    for number, stage in enumerate(STAGES, 1):
        record = records / f"{number}-{stage.name.replace(' ', '-')}.json"
        if not record.is_file():
            print(f"[{number}/{len(STAGES)}] {stage.name}", flush=True)
            started = time.monotonic()
            numbers = stage.run(folder)
            numbers["seconds"] = time.monotonic() - started
            partial = record.with_suffix(".partial")
            partial.write_text(json.dumps(numbers))
            partial.replace(record)
        done[stage.name] = json.loads(record.read_text())
    evaluations = {name: json.loads((folder / f"{name}.json").read_text()) for name in _STAGES_OF}
    (folder / "summary.json").write_text(json.dumps(_summary(done, evaluations), indent=1) + "\n")
    report = folder / "report.html"
    write_report(report, evaluations, read_metrics(folder / "run-sft"), read_metrics(folder / "run-grpo"))
    _print_table(done, evaluations)
    print(f"report: {report.resolve()}")
    return 0


def _command(*arguments: object, threads: int = 1) -> None:
    """Run a command of the repository with this interpreter.

    Raises:
        StageFailedError: it ended with another status than 0.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    words = [sys.executable, *map(str, arguments)]
    status = subprocess.run(words, cwd=ROOT, env=environment, check=False).returncode
    if status:
        raise StageFailedError(f"status {status} from: {' '.join(words[1:])}")


def _make_base(folder: Path) -> dict[str, Any]:
    problems = generate("train", PROBLEMS, SEED)
    parameters = base_model.make_base_model(folder / "base", problems, SEED)
    teacher_proofs = folder / "teacher_proofs.jsonl"
    base_model.write_teacher_proofs(teacher_proofs, problems, TEACHER_PROOFS, INCOMPLETE, SEED)
    return {"parameters": parameters}


def _convert(folder: Path) -> dict[str, Any]:
    source, target = folder / "base", folder / "base-megatron"
    options = ("--tp", 2, "--pp", 2, "--checks", QUICK_CHECKS, "--overwrite")
    _command("conversion/hf_to_megatron.py", "--hf", source, "--out", target, *options)
    return {}


def _fine_tune(folder: Path) -> dict[str, Any]:
    settings = (
        f"model.megatron={folder / 'base-megatron'}",
        f"data.train={folder / 'teacher_proofs.jsonl'}",
        f"data.cache={folder / 'documents'}",
    )
    return _train("recipes/sft.py", SFT_CONFIG, folder / "run-sft", settings)


def _reinforce(folder: Path) -> dict[str, Any]:
    problems = folder / "rl_problems.jsonl"
    rows = (json.dumps(problem.to_json()) + "\n" for problem in generate("train", PROBLEMS, SEED))
    problems.write_text("".join(rows))
    settings = (f"model.hf={folder / 'sft'}", f"data.train={problems}")
    return _train("recipes/grpo.py", GRPO_CONFIG, folder / "run-grpo", settings)


def _train(recipe: str, config: str, run_dir: Path, settings: Sequence[str]) -> dict[str, Any]:
    """Run a recipe on two ranks; the tokens a second that it trained."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    _command(*launcher, recipe, "--config", config, f"run_dir={run_dir}", *settings)
    steps = [line for line in read_metrics(run_dir) if "train/loss" in line]
    seconds = sum(line["train/step_time"] for line in steps)
    return {"tokens_per_second": sum(line["train/tokens"] for line in steps) / seconds}


def _convert_back(name: str) -> Callable[[Path], dict[str, Any]]:
    def convert_back(folder: Path) -> dict[str, Any]:
        options = ("--out", folder / name, "--checks", QUICK_CHECKS, "--overwrite")
        _command("conversion/megatron_to_hf.py", "--megatron", _trained(folder, name), *options)
        return {}

    return convert_back


def _verify(folder: Path) -> dict[str, Any]:
    _command("conversion/verify.py", "--hf", folder / "sft", "--megatron", _trained(folder, "sft"), "--report", folder)
    not_run = json.loads((folder / "verify.json").read_text())["not_run"]
    if not_run:
        raise StageFailedError(f"not proved here: {', '.join(not_run)}; {folder / 'verify.md'} says why")
    return {}


def _trained(folder: Path, name: str) -> Path:
    """The checkpoint that a training ended with."""
    return max((folder / f"run-{name}" / "checkpoints").glob("step_????????"))


def _evaluate(name: str, samples: int) -> Callable[[Path], dict[str, Any]]:
    def evaluate(folder: Path) -> dict[str, Any]:
        out = folder / f"{name}.json"
        options = ("--problems", HELD_OUT, "--samples", samples, "--max-length", base_model.MAX_LENGTH)
        _command("eval/embedded.py", "--model", folder / name, "--out", out, *options, threads=os.cpu_count() or 1)
        result = json.loads(out.read_text())
        return {"tokens_per_second": result["tokens"] / result["seconds"]}

    return evaluate


STAGES = (
    Stage("make base model", _make_base),
    Stage("to Megatron", _convert),
    Stage("prove: base", _evaluate("base", BASE_SAMPLES)),
    Stage("SFT", _fine_tune),
    Stage("to Hugging Face", _convert_back("sft")),
    Stage("verify round trip", _verify),
    Stage("prove: SFT", _evaluate("sft", SAMPLES)),
    Stage("GRPO", _reinforce),
    Stage("GRPO to Hugging Face", _convert_back("grpo")),
    Stage("prove: GRPO", _evaluate("grpo", SAMPLES)),
)
_STAGES_OF = {
    "base": ("make base model", "to Megatron", "prove: base"),
    "sft": ("SFT", "to Hugging Face", "verify round trip", "prove: SFT"),
    "grpo": ("GRPO", "GRPO to Hugging Face", "prove: GRPO"),
}


def _summary(done: dict[str, dict[str, Any]], evaluations: dict[str, Any]) -> dict[str, Any]:
    return {
        "stages": [
            {
                "name": name,
                "seconds": round(sum(done[stage]["seconds"] for stage in _STAGES_OF[name]), 1),
                "score": evaluation["score"],
                "greedy": evaluation["greedy"],
                "problems": evaluation["problems"],
            }
            for name, evaluation in evaluations.items()
        ]
    }


def _print_table(done: dict[str, dict[str, Any]], evaluations: dict[str, Any]) -> None:
    table = Table(title="qedmeg demo: held-out proofs, points of 7")
    for title in ("stage", "time", "tokens/s", "score at T=1", "greedy"):
        table.add_column(title, justify="left" if title == "stage" else "right")
    for stage in STAGES:
        numbers = done[stage.name]
        evaluation = evaluations.get(stage.name.removeprefix("prove: ").lower()) if "prove" in stage.name else None
        table.add_row(
            stage.name,
            f"{numbers['seconds']:.0f} s",
            f"{numbers['tokens_per_second']:,.0f}" if "tokens_per_second" in numbers else "",
            f"{evaluation['score']:.2f}" if evaluation else "",
            f"{evaluation['greedy']:.2f}" if evaluation else "",
        )
    table.add_section()
    table.add_row("all", f"{sum(numbers['seconds'] for numbers in done.values()):.0f} s", "", "", "")
    Console().print(table)

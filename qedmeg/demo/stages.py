"""What the demo does, stage by stage: commands of this repository, each on what the stages before it left."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qedmeg.config_rc import CacheConfig, RCConfig
from qedmeg.data.problems import generate
from qedmeg.demo import base_model
from qedmeg.demo.scores import RESULTS, rounds_run
from qedmeg.demo.teacher import write_lessons, write_teacher_proofs
from qedmeg.monitor.metrics import read_metrics
from qedmeg.reasoning.reasoning_cache import CachePrompts
from qedmeg.settings import load_config

ROOT = Path(__file__).parent.parent.parent
SFT_CONFIG = "recipes/configs/sft_demo.yaml"
GRPO_CONFIG = "recipes/configs/grpo_demo.yaml"
NOTES_CONFIG = "recipes/configs/notes_demo.yaml"
RC_CONFIG = "recipes/configs/rc_demo.yaml"
HELD_OUT = 108
SAMPLES = 4
BASE_SAMPLES = 1  # a model of random weights earns nothing, and writes to the last token that it may
TEACHER_PROOFS = 24_000
LESSONS = 16_000
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
    model: str
    """What it works for: the row of the summary that its time is counted in."""


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


def rounds_of_the_cache() -> int:
    """Rounds of the proofs that are graded: its chains end with a summary, and that is gone on from here too."""
    return _cache().rounds + 1


def cache_prompts() -> CachePrompts:
    """The words in which the lessons and the reasoning cache ask the demo's model."""
    prompts = _cache().prompts
    assert prompts is not None
    return prompts


def _cache() -> CacheConfig:
    return load_config(RCConfig, ROOT / RC_CONFIG).cache


def _make_base(folder: Path) -> dict[str, Any]:
    problems = generate("train", PROBLEMS, SEED)
    parameters = base_model.make_base_model(folder / "base", problems, SEED)
    write_teacher_proofs(folder / "teacher_proofs.jsonl", problems, TEACHER_PROOFS, INCOMPLETE, SEED)
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


def _teach_notes(folder: Path) -> dict[str, Any]:
    lessons = folder / "lessons.jsonl"
    write_lessons(lessons, generate("train", PROBLEMS, SEED), LESSONS, cache_prompts(), SEED)
    settings = (f"model.hf={folder / 'grpo'}", f"data.train={lessons}", f"data.cache={folder / 'documents'}")
    return _train("recipes/sft.py", NOTES_CONFIG, folder / "run-notes", settings)


def _reinforce_with_cache(folder: Path) -> dict[str, Any]:
    settings = (f"model.hf={folder / 'notes'}", f"data.train={folder / 'rl_problems.jsonl'}")
    return _train("recipes/rc.py", RC_CONFIG, folder / "run-rc", settings)


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
        question = json.dumps(cache_prompts().first)
        asked = ("--set", f"scaffold.prompt={question}", "--set", f"model.max_length={base_model.LONGEST_PROOF}")
        return _prove(folder, name, name, "--samples", samples, "--greedy", *asked)

    return evaluate


def _evaluate_rounds(name: str) -> Callable[[Path], dict[str, Any]]:
    def evaluate(folder: Path) -> dict[str, Any]:
        kept = {"keep", "prompts", "reason_tokens", "summary_tokens"}
        given = _cache().model_dump(mode="json", include=kept) | {"rounds": rounds_of_the_cache()}
        settings = [word for key, value in given.items() for word in ("--set", f"scaffold.{key}={json.dumps(value)}")]
        options = ("--scaffold", "reasoning_cache", "--every-round", "--samples", SAMPLES, *settings)
        return _prove(folder, name, rounds_run(name), *options)

    return evaluate


def _prove(folder: Path, model: str, run: str, *options: object) -> dict[str, Any]:
    out = ("--name", run, "--out", folder / RESULTS, "--report", folder / "scores" / run.replace(" ", "_"))
    asked = ("--benchmark", "embedded", "--problems", HELD_OUT, "--seed", SEED, "--model", folder / model)
    _command("eval/all.py", *asked, *options, *out, threads=os.cpu_count() or 1)
    return {}


STAGES = (
    Stage("make base model", _make_base, "base"),
    Stage("to Megatron", _convert, "base"),
    Stage("prove: base", _evaluate("base", BASE_SAMPLES), "base"),
    Stage("SFT", _fine_tune, "sft"),
    Stage("to Hugging Face", _convert_back("sft"), "sft"),
    Stage("verify round trip", _verify, "sft"),
    Stage("prove: SFT", _evaluate("sft", SAMPLES), "sft"),
    Stage("GRPO", _reinforce, "grpo"),
    Stage("GRPO to Hugging Face", _convert_back("grpo"), "grpo"),
    Stage("prove: GRPO", _evaluate("grpo", SAMPLES), "grpo"),
)
"""Of `make demo`."""
RC_STAGES = (
    Stage("teach notes", _teach_notes, "notes"),
    Stage("notes to Hugging Face", _convert_back("notes"), "notes"),
    Stage("prove: notes", _evaluate("notes", SAMPLES), "notes"),
    Stage("RC", _reinforce_with_cache, "rc"),
    Stage("RC to Hugging Face", _convert_back("rc"), "rc"),
    Stage("prove: RC", _evaluate("rc", SAMPLES), "rc"),
    *(Stage(f"rounds: {name}", _evaluate_rounds(name.lower()), "rc") for name in ("SFT", "GRPO", "notes", "RC")),
)
"""What `make demo-rc` does after them."""

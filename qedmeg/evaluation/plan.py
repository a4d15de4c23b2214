"""What an evaluation asks: the problems of a benchmark, and a scaffold. Read and checked, whoever answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qedmeg.evaluation.benchmarks import load_benchmark
from qedmeg.evaluation.problem import BenchmarkProblem
from qedmeg.evaluation.results import EvaluationRun
from qedmeg.reasoning.prompts import prompts_hash
from qedmeg.reasoning.scaffolds import find_scaffold, make_scaffold
from qedmeg.reasoning.session import Scaffold
from qedmeg.settings import check_settings

EMBEDDED_PROBLEMS = 108


@dataclass(frozen=True)
class Plan:
    """What is asked."""

    benchmark: str
    problems: list[BenchmarkProblem]
    scaffold_name: str
    scaffold: Scaffold
    scaffold_settings: dict[str, Any]
    """All of them, as JSON."""
    budget: int | None
    """Most tokens of an attempt."""

    def run(
        self, name: str, model: str, samples: int, models: Mapping[str, dict[str, Any]], **more: str
    ) -> EvaluationRun:
        """The run of this plan: `model` is what tables call the prover, `models` what the answers of each role's model
        depend on, `more` what they depend on besides."""
        settings = {
            "scaffold": self.scaffold_settings,
            "prompts": prompts_hash(),
            "budget": self.budget,
            "models": dict(models),
            **more,
        }
        return EvaluationRun(name, self.benchmark, model, self.scaffold_name, samples, settings)


def make_plan(
    benchmark: str,
    data: str | None,
    *,
    problems: int | None,
    seed: int,
    scaffold: str,
    scaffold_settings: Mapping[str, Any],
    budget: int | None,
    prefix: str,
    settings_name: str,
) -> Plan:
    """Read the problems, and check them and the scaffold.

    Args:
        benchmark: see `load_benchmark`.
        data: where it is, for one that is not made here.
        problems: only the first so many; None: all, of the embedded ones 108.
        seed: of the embedded problems.
        scaffold: its name.
        scaffold_settings: those that are not as published.
        budget: most tokens of an attempt; None: no limit.
        prefix: of what the user calls these, `--` or `validation.`, for errors.
        settings_name: what the user calls `scaffold_settings`.

    Raises:
        UserError: naming what was given, and the remedy.
    """
    entry = find_scaffold(scaffold, f"{prefix}scaffold")
    resolved = check_settings(entry.settings, scaffold_settings, settings_name)
    found = load_benchmark(benchmark, data, count=problems or EMBEDDED_PROBLEMS, seed=seed, prefix=prefix)
    return Plan(
        benchmark=benchmark,
        problems=found if problems is None else found[:problems],
        scaffold_name=scaffold,
        scaffold=make_scaffold(scaffold, scaffold_settings, settings_name),
        scaffold_settings=resolved.model_dump(mode="json"),
        budget=budget,
    )

"""Answer a benchmark's problems; see `python eval/run.py --help`."""

import argparse
import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qedmeg.errors import UserError, near_miss
from qedmeg.evaluation.benchmarks import BENCHMARKS, EMBEDDED
from qedmeg.evaluation.generate import Outcome, generate
from qedmeg.evaluation.plan import EMBEDDED_PROBLEMS, Plan, make_plan
from qedmeg.evaluation.results import EvaluationRun, Results
from qedmeg.evaluation.serving import ModelSource, find_model, ready_models, served
from qedmeg.reasoning.call import Model
from qedmeg.reasoning.scaffolds import SCAFFOLDS, find_scaffold, make_scaffold
from qedmeg.reasoning.session import PROVER
from qedmeg.settings import parse_value

_MODEL, _SCAFFOLD = "model", "scaffold"
ROUNDS_OF = "reasoning_cache"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is answered, and by whom."""
    parser.add_argument(
        "--benchmark", required=True, help=f"{EMBEDDED}, {', '.join(BENCHMARKS)}, or a file of problems"
    )
    parser.add_argument("--data", help="the benchmark's file or hub id, where it is not embedded")
    parser.add_argument(
        "--problems", type=int, help=f"only the first so many (default: all; of {EMBEDDED}, {EMBEDDED_PROBLEMS})"
    )
    parser.add_argument("--seed", type=int, default=0, help=f"of the {EMBEDDED} problems (default: %(default)s)")
    parser.add_argument(
        "--model", required=True, help=f"a Hugging Face folder, a settings file, or one of {', '.join(ready_models())}"
    )
    parser.add_argument("--scaffold", default="single", help=f"{', '.join(SCAFFOLDS)} (default: %(default)s)")
    parser.add_argument(
        "--role", action="append", default=[], metavar="ROLE=MODEL", help="another model in a role of the scaffold"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="such as model.temperature=0.6, scaffold.rounds=2 or verifier.max_tokens=4096",
    )
    parser.add_argument("--samples", type=int, default=1, help="attempts at each problem (default: %(default)s)")
    parser.add_argument(
        "--greedy", action="store_true", help="one more attempt at each at temperature 0, as the run 'NAME greedy'"
    )
    parser.add_argument(
        "--every-round",
        action="store_true",
        help=f"of {ROUNDS_OF}: what its earlier rounds answered, as the runs 'NAME round 1', ...",
    )
    parser.add_argument("--budget", type=int, help="most tokens an attempt may generate (default: no limit)")
    parser.add_argument(
        "--concurrency", type=int, default=256, help="attempts that are made side by side (default: %(default)s)"
    )
    parser.add_argument("--name", help="of the run in the results (default: benchmark, model and scaffold)")
    parser.add_argument("--out", type=Path, required=True, help="file of results, made where it is not there")


@dataclass(frozen=True)
class PreparedRun:
    """A run, read and checked."""

    run: EvaluationRun
    plan: Plan
    models: dict[str, ModelSource]
    """By role."""
    concurrency: int
    greedy: bool = False
    """Answer once more, at temperature 0."""
    earlier_rounds: tuple["PreparedRun", ...] = ()
    """Of the reasoning cache: the same with fewer rounds, whose replies are all known once this is answered."""

    @property
    def names(self) -> list[str]:
        """Of all runs that are made."""
        greedy = _greedy(self).names if self.greedy else []
        return [*(one.run.name for one in self.earlier_rounds), self.run.name, *greedy]


def prepared(arguments: argparse.Namespace) -> PreparedRun:
    """Read and check everything before a model is started.

    Raises:
        UserError: naming the option and the value.
    """
    for option in ("problems", "samples", "budget", "concurrency"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise UserError(f"--{option}: {value} is less than 1")
    entry = find_scaffold(arguments.scaffold, "--scaffold")
    roles = dict(_pair(given, "--role") for given in arguments.role)
    for role in roles:
        if role not in entry.roles:
            raise UserError(
                f"--role: {role}: {arguments.scaffold} has no such role{near_miss(role, entry.roles)}; it asks "
                f"{', '.join(entry.roles)}"
            )
    given: dict[str, dict[str, Any]] = {}
    for setting in arguments.set:
        key, value = _pair(setting, "--set")
        section, dot, name = key.partition(".")
        if not dot or section not in (_MODEL, _SCAFFOLD, *roles):
            known = ", ".join(f"{known}.…" for known in (_MODEL, _SCAFFOLD, *roles))
            raise UserError(f"--set: {key}: expected {known}")
        given.setdefault(section, {})[name] = parse_value(value, f"--set {key}")
    plan = make_plan(
        arguments.benchmark,
        arguments.data,
        problems=arguments.problems,
        seed=arguments.seed,
        scaffold=arguments.scaffold,
        scaffold_settings=given.get(_SCAFFOLD, {}),
        budget=arguments.budget,
        prefix="--",
        settings_name="--set scaffold",
    )
    models = {PROVER: find_model(arguments.model, given.get(_MODEL, {}))}
    models |= {role: find_model(model, given.get(role, {})) for role, model in roles.items()}
    prover = models[PROVER].name
    run = plan.run(
        arguments.name or f"{arguments.benchmark} {prover} {arguments.scaffold}",
        prover,
        arguments.samples,
        {role: source.settings() for role, source in models.items()},
    )
    whole = PreparedRun(run, plan, models, arguments.concurrency, greedy=arguments.greedy)
    return replace(whole, earlier_rounds=_earlier_rounds(whole)) if arguments.every_round else whole


def _earlier_rounds(whole: PreparedRun) -> tuple[PreparedRun, ...]:
    """Raises UserError where the scaffold has no rounds."""
    plan = whole.plan
    if plan.scaffold_name != ROUNDS_OF:
        raise UserError(f"--every-round: {plan.scaffold_name} has no rounds to tell apart; {ROUNDS_OF} has")
    made = []
    for rounds in range(1, plan.scaffold_settings["rounds"]):
        settings = plan.scaffold_settings | {"rounds": rounds}
        fewer = replace(plan, scaffold=make_scaffold(ROUNDS_OF, settings), scaffold_settings=settings)
        run = replace(
            whole.run, name=f"{whole.run.name} round {rounds}", settings=whole.run.settings | {"scaffold": settings}
        )
        made.append(replace(whole, run=run, plan=fewer, greedy=False))
    return tuple(made)


def _greedy(one: PreparedRun) -> PreparedRun:
    """The same at temperature 0, once for each problem."""
    models = {role: source.greedy() for role, source in one.models.items()}
    settings = one.run.settings | {"models": {role: source.settings() for role, source in models.items()}}
    run = replace(one.run, name=f"{one.run.name} greedy", samples=1, settings=settings)
    greedy = replace(one, run=run, models=models, greedy=False)
    return replace(greedy, earlier_rounds=_earlier_rounds(greedy)) if one.earlier_rounds else greedy


async def answer(results: Results, prepared: PreparedRun) -> Outcome:
    """Start what models are to be started, and make the attempts that are not finished. Servers write their logs into
    the folder `logs` beside the results."""
    runs = [prepared, *([_greedy(prepared)] if prepared.greedy else [])]
    for run in runs:
        results.begin(run.run, run.plan.problems)
    async with AsyncExitStack() as ending:
        models = {
            role: await ending.enter_async_context(served(source, results.path.parent / "logs"))
            for role, source in prepared.models.items()
        }
        outcome = await _answer(results, prepared, models)
        if prepared.greedy:
            greedy = {role: model.greedy() for role, model in models.items()}
            for model in greedy.values():
                ending.push_async_callback(model.close)
            outcome += await _answer(results, _greedy(prepared), greedy)
    return outcome


async def _answer(results: Results, whole: PreparedRun, models: Mapping[str, Model]) -> Outcome:
    outcome = Outcome()
    for part in (whole, *whole.earlier_rounds):
        results.begin(part.run, part.plan.problems)
        outcome += await generate(
            results,
            part.run.name,
            part.plan.problems,
            part.run.samples,
            part.plan.scaffold,
            models,
            budget=part.plan.budget,
            concurrency=part.concurrency,
            replies_of=whole.run.name,
        )
    return outcome


def say(outcome: Outcome, run: EvaluationRun) -> int:
    """Tell what became of the attempts; the exit status: 1 where some have failed."""
    print(f"{run.name}: {outcome.finished} answered, {outcome.known} before")
    for kind, count in outcome.failed.most_common():
        print(f"not answered: {count} ({kind}); run the same command again")
    return 1 if outcome.failed else 0


def main() -> int:
    """Answer a benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description="Answer a benchmark's problems with a model or a scaffold. Every reply is kept at once: the same "
        "command goes on where it was cut off, and asks nothing twice.",
        epilog="examples:\n"
        "  python eval/run.py --benchmark embedded --model runs/demo/sft --samples 4 --out runs/results.sqlite\n"
        "  python eval/run.py --benchmark imo-proofbench --data proofbench_v2.csv --model qed-nano \\\n"
        "    --scaffold rsa --set scaffold.rounds=2 --samples 3 --out runs/results.sqlite",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    arguments = parser.parse_args()
    todo = prepared(arguments)
    with closing(begun(arguments.out)) as results:
        outcome = asyncio.run(answer(results, todo))
    return say(outcome, todo.run)


def begun(path: Path) -> Results:
    """A file of results, made with its folder where it is not there."""
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    return Results(path)


def _pair(text: str, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"{option}: {text}: expected KEY=VALUE")
    return key, value

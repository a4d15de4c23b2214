"""Score a model on the embedded problems: proofs by vLLM, points by the symbolic checker."""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from transformers import AutoTokenizer

from qedmeg.data.problems import Problem, generate
from qedmeg.errors import UserError
from qedmeg.grading.grade import Failed, Graded
from qedmeg.grading.symbolic import grade
from qedmeg.model.families import read_architecture
from qedmeg.monitor.progress import track
from qedmeg.rollout.engine import Engine


@dataclass(frozen=True)
class GradedProof:
    """One proof of one problem with its grade."""

    problem: str
    family: str
    statement: str
    proof: str
    finish_reason: str
    points: float
    of: int
    items: tuple[tuple[str, float, int, str], ...]
    """Name, points earned, points possible and the checker's reason, for each rubric item."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model. Means of 7 over problems; `greedy` at temperature 0, `score` sampled at temperature 1."""

    model: str
    problems: int
    samples: int
    score: float
    greedy: float
    by_item: dict[str, tuple[float, float]]
    """'family / item': the share of its points earned, sampled and greedy."""
    seconds: float
    tokens: int
    failed: int
    """Proofs that no grade could be given to; they are in none of the means."""
    proofs: tuple[GradedProof, ...]
    """The greedy proofs."""


def evaluate(model: Path, problems: Sequence[Problem], samples: int, max_length: int, seed: int) -> Evaluation:
    """Write and grade `samples` proofs of each problem at temperature 1 and one at temperature 0."""
    started = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    engine = Engine(model, max_length, seed)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": problem.statement}], add_generation_prompt=True, return_dict=False
        )
        for problem in problems
    ]
    stop_ids = [tokenizer.eos_token_id]
    sampled: list[GradedProof] = []
    greedy: list[GradedProof] = []
    tokens = failed = 0
    for proofs, count, temperature in ((sampled, samples, 1.0), (greedy, 1, 0.0)):
        outputs = engine.generate(prompts, samples=count, temperature=temperature, stop_ids=stop_ids)
        label = "grading" if temperature else "grading greedy"
        for problem, completions in track(list(zip(problems, outputs, strict=True)), label, len(problems)):
            for completion in completions:
                tokens += len(completion.token_ids)
                text = tokenizer.decode(completion.token_ids, skip_special_tokens=True)
                verdict = grade(problem, text)
                if isinstance(verdict, Failed):
                    failed += 1
                else:
                    proofs.append(_graded(problem, text, completion.finish_reason, verdict))
    return Evaluation(
        model=str(model),
        problems=len(problems),
        samples=samples,
        score=mean(proof.points for proof in sampled),
        greedy=mean(proof.points for proof in greedy),
        by_item=_by_item(sampled, greedy),
        seconds=time.monotonic() - started,
        tokens=tokens,
        failed=failed,
        proofs=tuple(greedy),
    )


def _graded(problem: Problem, text: str, finish_reason: str, verdict: Graded) -> GradedProof:
    items = tuple((item.name, item.points, item.of, item.reason) for item in verdict.items)
    return GradedProof(
        problem.id, problem.family, problem.statement, text, finish_reason, verdict.points, verdict.of, items
    )


def _by_item(sampled: Sequence[GradedProof], greedy: Sequence[GradedProof]) -> dict[str, tuple[float, float]]:
    def shares(proofs: Sequence[GradedProof]) -> dict[str, float]:
        earned: dict[str, list[float]] = defaultdict(list)
        for proof in proofs:
            for name, points, of, _ in proof.items:
                earned[f"{proof.family} / {name}"].append(points / of)
        return {name: mean(values) for name, values in earned.items()}

    first, second = shares(sampled), shares(greedy)
    return {name: (first[name], second.get(name, 0.0)) for name in sorted(first)}


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what would end in an error after minutes, or in a mean of nothing."""
    model = read_architecture(arguments.model)
    if not arguments.out.absolute().parent.is_dir():
        raise UserError(f"--out: {arguments.out.parent}: no such folder; make it")
    for option in ("problems", "samples"):
        if getattr(arguments, option) < 1:
            raise UserError(f"--{option}: {getattr(arguments, option)} is less than 1")
    if arguments.max_length > model.max_positions:
        raise UserError(
            f"--max-length: {arguments.max_length} is longer than the model's context of {model.max_positions}; "
            "lower it"
        )


def main() -> int:
    """Evaluate a model folder from the command line and write the result as JSON."""
    parser = argparse.ArgumentParser(
        description="Score a model on held-out embedded problems: sampled at temperature 1 and greedy, mean of 7.",
        epilog="example:\n  python eval/embedded.py --model runs/demo/sft --problems 108 --out runs/demo/sft.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--problems", type=int, default=108, help="held-out problems (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=4, help="sampled proofs a problem (default: %(default)s)")
    parser.add_argument("--max-length", type=int, default=320, help="longest prompt and proof (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of problems and sampling (default: %(default)s)")
    arguments = parser.parse_args()
    _check(arguments)
    problems = generate("heldout", arguments.problems, arguments.seed)
    result = evaluate(arguments.model, problems, arguments.samples, arguments.max_length, arguments.seed)
    partial = arguments.out.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(result), indent=1))
    partial.replace(arguments.out)
    print(f"{arguments.model}: {result.score:.2f} of 7 sampled, {result.greedy:.2f} greedy, {result.problems} problems")
    return 0

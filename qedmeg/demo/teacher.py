"""What a teacher shows the demo's model: proofs, notes on work, and proofs that go on from notes."""

import json
import random
import re
from collections.abc import Iterable, Sequence
from itertools import cycle, islice
from pathlib import Path

from qedmeg.data.problems import Problem, demonstration, reference_proof
from qedmeg.demo.notes import notes
from qedmeg.reasoning.reasoning_cache import CachePrompts, State, reason_messages, summary_messages

WRONG = 0.2
"""Share of the numbers that a draft gets wrong, of the drafts that do."""
KINDS = ("notes", "proof from notes", "notes", "proof", "proof from notes")
"""Of the lessons for the cache, in turn."""


def write_teacher_proofs(path: Path, problems: Sequence[Problem], count: int, incomplete: float, seed: int) -> None:
    """`count` rows of problem and proof for SFT; a share of the proofs lacks sentences, as published ones do."""
    rng = random.Random(seed)
    turns = islice(cycle(problems), count)
    _write(path, ((problem.statement, demonstration(problem, rng, incomplete=incomplete)) for problem in turns))


def write_lessons(path: Path, problems: Sequence[Problem], count: int, prompts: CachePrompts, seed: int) -> None:
    """`count` rows of prompt and answer that teach the reasoning cache: notes on flawed work, whole proofs from notes,
    and whole proofs of the problem alone."""
    rng = random.Random(seed)
    kinds = islice(cycle(KINDS), count)
    _write(path, (_lesson(kind, rng.choice(problems), prompts, rng) for kind in kinds))


def _lesson(kind: str, problem: Problem, prompts: CachePrompts, rng: random.Random) -> tuple[str, str]:
    match kind:
        case "notes":
            before = notes(problem) if rng.random() < 0.3 else ""
            draft = flawed(demonstration(problem, rng, incomplete=0.2), rng)
            messages = summary_messages(State(problem.statement, 1, before), draft, "replace", prompts)
            answer = notes(problem)
        case "proof from notes":
            messages = reason_messages(State(problem.statement, 2, notes(problem)), prompts)
            answer = reference_proof(problem)
        case _:
            messages = reason_messages(State(problem.statement, 1, ""), prompts)
            answer = reference_proof(problem)
    return messages[0].content, answer


def _write(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps({"problem": asked, "proof": answer}) + "\n" for asked, answer in rows)


def flawed(proof: str, rng: random.Random) -> str:
    """The proof as a model may have written it: half of the time some of its results are wrong."""
    if rng.random() < 0.5:
        return proof

    def wrong(result: re.Match[str]) -> str:
        return (
            f"= {max(0, int(result[1]) + rng.choice((-10, -2, -1, 1, 2, 10)))}" if rng.random() < WRONG else result[0]
        )

    return re.sub(r"= (\d+)\b", wrong, proof)

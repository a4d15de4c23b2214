"""What a teacher shows the demo's model: proofs, notes on work, and proofs that go on from notes."""

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

from qedmeg.data.problems import Problem, demonstration
from qedmeg.demo.notes import notes
from qedmeg.reasoning.reasoning_cache import CachePrompts, State, reason_messages, summary_messages

WRONG = 0.2
"""Share of the numbers that a draft gets wrong, of the drafts that do."""
KINDS = ("proof", "proof", "notes", "proof from notes")
"""Of the rows, in turn."""


def write_teacher_rows(
    path: Path, problems: Sequence[Problem], count: int, incomplete: float, prompts: CachePrompts, seed: int
) -> None:
    """`count` rows of prompt and answer for SFT, half of them proofs of the problem alone. A share of the answers lacks
    sentences, as published ones do."""
    rng = random.Random(seed)
    with path.open("w") as file:
        for row in range(count):
            asked, answer = _row(KINDS[row % len(KINDS)], rng.choice(problems), incomplete, prompts, rng)
            file.write(json.dumps({"problem": asked, "proof": answer}) + "\n")


def _row(kind: str, problem: Problem, incomplete: float, prompts: CachePrompts, rng: random.Random) -> tuple[str, str]:
    if kind == "notes":
        before = notes(problem, rng, incomplete=incomplete) if rng.random() < 0.5 else ""
        draft = flawed(demonstration(problem, rng, incomplete=incomplete), rng)
        (message,) = summary_messages(State(problem.statement, 1, before), draft, "replace", prompts)
        return message.content, notes(problem, rng, incomplete=incomplete)
    summary = notes(problem, rng, incomplete=incomplete) if kind == "proof from notes" else ""
    (message,) = reason_messages(State(problem.statement, 1, summary), prompts)
    return message.content, demonstration(problem, rng, incomplete=incomplete)


def flawed(proof: str, rng: random.Random) -> str:
    """The proof as a model may have written it: half of the time some of its results are wrong."""
    if rng.random() < 0.5:
        return proof

    def wrong(result: re.Match[str]) -> str:
        return (
            f"= {max(0, int(result[1]) + rng.choice((-10, -2, -1, 1, 2, 10)))}" if rng.random() < WRONG else result[0]
        )

    return re.sub(r"= (\d+)\b", wrong, proof)

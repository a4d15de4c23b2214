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
KINDS = ("proof", "notes", "proof from notes")
"""Of the rows, in turn."""


def write_teacher_rows(
    path: Path, problems: Sequence[Problem], count: int, incomplete: float, prompts: CachePrompts, seed: int
) -> None:
    """`count` rows of prompt and answer for SFT. A share of the proofs that are written at once lacks sentences, as
    published ones do; notes, and the proofs that go on from them, are whole."""
    rng = random.Random(seed)
    with path.open("w") as file:
        for row in range(count):
            asked, answer = _row(KINDS[row % len(KINDS)], rng.choice(problems), incomplete, prompts, rng)
            file.write(json.dumps({"problem": asked, "proof": answer}) + "\n")


def _row(kind: str, problem: Problem, incomplete: float, prompts: CachePrompts, rng: random.Random) -> tuple[str, str]:
    match kind:
        case "notes":
            before = notes(problem) if rng.random() < 0.3 else ""
            draft = flawed(demonstration(problem, rng, incomplete=incomplete / 2), rng)
            messages = summary_messages(State(problem.statement, 1, before), draft, "replace", prompts)
            answer = notes(problem)
        case "proof from notes":
            messages = reason_messages(State(problem.statement, 2, notes(problem)), prompts)
            answer = demonstration(problem, rng)
        case _:
            messages = reason_messages(State(problem.statement, 1, ""), prompts)
            answer = demonstration(problem, rng, incomplete=incomplete)
    return messages[0].content, answer


def flawed(proof: str, rng: random.Random) -> str:
    """The proof as a model may have written it: half of the time some of its results are wrong."""
    if rng.random() < 0.5:
        return proof

    def wrong(result: re.Match[str]) -> str:
        return (
            f"= {max(0, int(result[1]) + rng.choice((-10, -2, -1, 1, 2, 10)))}" if rng.random() < WRONG else result[0]
        )

    return re.sub(r"= (\d+)\b", wrong, proof)

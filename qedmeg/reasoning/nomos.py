"""Many proofs, marked, the best of them sorted by what they conclude, then a tournament (the scaffold of Nomos-1)."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from qedmeg.grading.verdict import NoVerdict
from qedmeg.reasoning.call import Call
from qedmeg.reasoning.prompts import make_prompt, read_verdict
from qedmeg.reasoning.questions import Question, ask_read
from qedmeg.reasoning.selection import SELECTOR, knock_out
from qedmeg.reasoning.session import Session
from qedmeg.reasoning.steps import VERIFIER, prove, written
from qedmeg.settings import Settings

FULL_MARK = 7


class NomosSettings(Settings):
    """How many proofs are written and kept."""

    solutions: int = Field(default=16, ge=1)
    """Proofs to begin with."""
    keep: int = Field(default=12, ge=1)
    """Most proofs that are kept by their marks."""
    perfect: int = Field(default=8, ge=1)
    """With at least so many proofs of full marks only these are kept."""


@dataclass(frozen=True)
class Marked:
    """A proof and its mark from 0 to 7; None where none could be read."""

    text: str
    mark: int | None


async def nomos(session: Session, settings: NomosSettings) -> str:
    """The winner of a tournament among the proofs with the best marks and the same conclusion.

    A mark that can be read neither at once nor when it is asked for again is none, and its proof ranks behind those
    with one. Where what to keep by conclusion cannot be read twice, all are kept. A reply that was cut off before its
    text began is no proof; where there is none at all the answer is empty.
    """
    problem = session.problem
    calls = [prove(problem, f"solution {number}") for number in range(1, settings.solutions + 1)]
    texts = written(await session.ask_all(calls))
    session.best = next(iter(texts.values()), "")
    marks = await ask_read(session, [mark(problem, text, f"solution {n}/mark") for n, text in texts.items()])
    marked = [Marked(text, points) for text, points in zip(texts.values(), marks, strict=True)]
    proofs = [one.text for one in kept(marked, settings.keep, settings.perfect)]
    session.best = proofs[0] if proofs else ""
    if len(proofs) > 1:
        (same,) = await ask_read(session, [consolidate(problem, proofs, "consolidate")])
        proofs = proofs if same is None else [proofs[place] for place in same]
    return await knock_out(session, proofs, "tournament")


def kept(marked: Sequence[Marked], keep: int, perfect: int) -> list[Marked]:
    """The best first, of equals the earlier: at most `keep`, and of full marks only where there are `perfect` such."""
    ranked = sorted(marked, key=lambda one: -1 if one.mark is None else one.mark, reverse=True)
    full = [one for one in ranked if one.mark == FULL_MARK]
    return (full if len(full) >= perfect else ranked)[:keep]


def mark(problem: str, proof: str, path: str) -> Question[int]:
    """Ask for a proof's points, from 0 to 7."""
    prompt = make_prompt("mark", problem, proof=proof, of=FULL_MARK)
    marks = [str(points) for points in range(FULL_MARK + 1)]

    def read(text: str) -> int:
        verdict = read_verdict(text, prompt.key)
        if verdict not in marks:
            raise NoVerdict(f"its last verdict is no whole number from 0 to {FULL_MARK}")
        return marks.index(verdict)

    return Question(Call(path, VERIFIER, prompt.messages), read)


def consolidate(problem: str, proofs: Sequence[str], path: str) -> Question[list[int]]:
    """Ask which proofs come to the conclusion that is most likely right; the answer is their indices, in order."""
    prompt = make_prompt("consolidate", problem, proofs=proofs)
    names = [str(number) for number in range(1, len(proofs) + 1)]

    def read(text: str) -> list[int]:
        given = [name.strip() for name in read_verdict(text, prompt.key).split(",")]
        if len(set(given)) < len(given) or not set(given) <= set(names):
            raise NoVerdict(f"its last verdict is no list of different numbers from 1 to {len(proofs)}")
        return sorted(names.index(name) for name in given)

    return Question(Call(path, SELECTOR, prompt.messages), read)

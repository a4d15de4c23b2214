"""Recursive self-aggregation: a population of proofs, each replaced by a merge of several, in rounds (RSA)."""

import math

from pydantic import Field

from qedmeg.reasoning.selection import knock_out
from qedmeg.reasoning.session import Session
from qedmeg.reasoning.steps import merge, prove, replaced, written
from qedmeg.settings import Settings


class RsaSettings(Settings):
    """Sizes of the population and of what is merged."""

    solutions: int = Field(default=8, ge=1)
    """Proofs of the population."""
    rounds: int = Field(default=3, ge=0)
    """Rounds in which every proof is replaced."""
    block: int = Field(default=3, ge=2)
    """Proofs that are merged into one."""


async def rsa(session: Session, settings: RsaSettings) -> str:
    """The winner of a knock-out among what the rounds left.

    A reply that was cut off before its text began is no proof, and the population is so much smaller; where there is
    none at all the answer is empty. A merge that was cut off leaves the proof that it was to replace in its place.
    """
    calls = [prove(session.problem, f"solution {number}") for number in range(1, settings.solutions + 1)]
    proofs = list(written(await session.ask_all(calls)).values())
    session.best = proofs[0] if proofs else ""
    for number in range(1, settings.rounds + 1):
        if len(proofs) < 2:
            break
        calls = [
            merge(session.problem, [proofs[member] for member in block], f"round {number}/merge {place}")
            for place, block in enumerate(blocks(len(proofs), settings.block, number), start=1)
        ]
        replies = await session.ask_all(calls)
        proofs = [replaced(old, reply) for old, reply in zip(proofs, replies, strict=True)]
        session.best = proofs[0]
    return await knock_out(session, proofs, "final")


def blocks(count: int, size: int, round: int) -> list[list[int]]:
    """For each of `count` proofs those that it is replaced by a merge of: itself and others at a fixed distance, in a
    circle, so that every proof is in as many blocks as any other.

    The distance is size^(round - 1) modulo count, or the next that leaves the members of a block distinct. After r
    rounds a proof then descends from size^r others, or from all: with 8 proofs in blocks of 3, from all after two.
    """
    size = min(size, count)
    step = size ** (round - 1) % count
    while count // math.gcd(count, step) < size:
        step += 1
    return [[(first + step * place) % count for place in range(size)] for first in range(count)]

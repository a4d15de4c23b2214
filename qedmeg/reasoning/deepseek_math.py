"""Proofs, their verification, and the refinement of the best, in turns (DeepSeek-Math-V2, as QED-Nano runs it)."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from pydantic import Field

from qedmeg.reasoning.questions import ask_read
from qedmeg.reasoning.session import Session
from qedmeg.reasoning.steps import Analysis, improve, prove, verify, written
from qedmeg.settings import Settings


class DeepSeekMathSettings(Settings):
    """Sizes of the pool and of its verification."""

    pool: int = Field(default=4, ge=1)
    """Proofs to begin with, and most that are refined in an iteration."""
    verifiers: int = Field(default=4, ge=1)
    """Analyses of each proof, with a verdict of 0, 0.5 or 1 each."""
    analyses: int = Field(default=2, ge=1)
    """Analyses, those with the lowest verdicts, that a proof is refined with."""
    iterations: int = Field(default=2, ge=0)
    """Times that the best are refined."""


@dataclass(frozen=True)
class Proof:
    """A proof of the pool."""

    text: str
    iteration: int
    """In which it was written; 0: to begin with."""
    analyses: tuple[Analysis, ...]
    """Those whose verdict could be read, in the order of the verifiers."""

    @property
    def score(self) -> float | None:
        """Mean of the verdicts; None where there is none."""
        return mean(analysis.verdict for analysis in self.analyses) if self.analyses else None


async def deepseek_math(session: Session, settings: DeepSeekMathSettings) -> str:
    """The proof with the highest mean verdict.

    `pool` proofs are written and each is verified. Then, until a mean is 1 and at most `iterations` times, the `pool`
    best of all proofs are refined, each with its lowest analyses, and what comes of it is verified and joins the pool.

    A verdict that can be read neither at once nor when it is asked for again is left out of the mean. A reply that was
    cut off before its text began is no proof; where there is none at all the answer is empty.
    """
    problem = session.problem
    calls = [prove(problem, f"iteration 0/proof {number}") for number in range(1, settings.pool + 1)]
    pool: list[Proof] = []
    for iteration in range(settings.iterations + 1):
        if iteration > 0:
            calls = [
                improve(problem, proof.text, lowest(proof, settings.analyses), f"iteration {iteration}/proof {number}")
                for number, proof in enumerate(ranked(pool)[: settings.pool], start=1)
            ]
        texts = written(await session.ask_all(calls))
        session.best = session.best or next(iter(texts.values()), "")
        pool += await _verified(session, texts, iteration, settings.verifiers)
        session.best = ranked(pool)[0].text if pool else ""
        if any(proof.score == 1 for proof in pool):
            break
    return session.best


async def _verified(session: Session, texts: dict[int, str], iteration: int, verifiers: int) -> list[Proof]:
    """The proofs with the analyses of each."""
    found = await ask_read(
        session,
        [
            verify(session.problem, text, f"iteration {iteration}/proof {number}/verify {verifier}")
            for number, text in texts.items()
            for verifier in range(1, verifiers + 1)
        ],
    )
    return [
        Proof(text, iteration, tuple(one for one in found[place * verifiers : (place + 1) * verifiers] if one))
        for place, text in enumerate(texts.values())
    ]


def ranked(pool: Sequence[Proof]) -> list[Proof]:
    """The best first: by mean verdict, then by the number of verdicts, then the newer first. Proofs without a verdict
    come last."""
    return sorted(
        pool,
        key=lambda proof: (-1 if proof.score is None else proof.score, len(proof.analyses), proof.iteration),
        reverse=True,
    )


def lowest(proof: Proof, count: int) -> list[str]:
    """The texts of the analyses with the lowest verdicts; of equals those of the first verifiers."""
    return [analysis.text for analysis in sorted(proof.analyses, key=lambda one: one.verdict)[:count]]

"""A fixed plan: in several branches two proofs, verified and improved, are merged; the best branch is the answer."""

from pydantic import Field

from qedmeg.reasoning.selection import select
from qedmeg.reasoning.session import Session
from qedmeg.reasoning.steps import improve, merge, prove, replaced, verify, written
from qedmeg.settings import Settings


class StaticAgentSettings(Settings):
    """Sizes of the plan."""

    branches: int = Field(default=4, ge=1)
    """Branches, each of which ends in one proof."""
    solutions: int = Field(default=2, ge=1)
    """Proofs of a branch that are merged at its end."""
    verifications: int = Field(default=1, ge=0)
    """Times that a proof is verified and improved."""


async def static_agent(session: Session, settings: StaticAgentSettings) -> str:
    """The branch that the selector chooses; the first where its choice cannot be read twice.

    A proof is improved whatever its verdict is, so that no verdict has to be read. A reply that was cut off before its
    text began is no proof, and there is nothing to merge where a branch has fewer than two; where there is none at all
    the answer is empty. An improved or merged proof that was cut off leaves the one before it in its place.
    """
    problem = session.problem
    slots = [
        (branch, number) for branch in range(1, settings.branches + 1) for number in range(1, settings.solutions + 1)
    ]
    drafts = written(await session.ask_all([prove(problem, f"branch {b}/solution {n}") for b, n in slots]))
    proofs = {slots[number - 1]: text for number, text in drafts.items()}
    session.best = next(iter(proofs.values()), "")
    for turn in range(1, settings.verifications + 1):
        paths = {slot: f"branch {slot[0]}/solution {slot[1]}/turn {turn}" for slot in proofs}
        analyses = await session.ask_all(
            [verify(problem, text, f"{paths[slot]}/verify").call for slot, text in proofs.items()]
        )
        improved = await session.ask_all(
            [
                improve(problem, proofs[slot], [analysis.text], f"{paths[slot]}/improve")
                for slot, analysis in zip(proofs, analyses, strict=True)
            ]
        )
        proofs = {slot: replaced(proofs[slot], reply) for slot, reply in zip(proofs, improved, strict=True)}
        session.best = next(iter(proofs.values()), "")

    by_branch: dict[int, list[str]] = {}
    for (branch, _), text in proofs.items():
        by_branch.setdefault(branch, []).append(text)
    ends = {branch: texts[0] for branch, texts in by_branch.items()}
    several = {branch: texts for branch, texts in by_branch.items() if len(texts) > 1}
    merged = await session.ask_all([merge(problem, texts, f"branch {b}/merge") for b, texts in several.items()])
    for branch, reply in zip(several, merged, strict=True):
        ends[branch] = replaced(ends[branch], reply)
    session.best = next(iter(ends.values()), "")
    return list(ends.values())[await select(session, list(ends.values()), "select")] if ends else ""

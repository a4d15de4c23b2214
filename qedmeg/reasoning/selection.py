"""Choosing among proofs by asking: one question over all of them, or a knock-out of pairs."""

from collections.abc import Sequence

from qedmeg.grading.verdict import NoVerdict
from qedmeg.reasoning.call import Call
from qedmeg.reasoning.prompts import make_prompt, read_verdict
from qedmeg.reasoning.questions import Question, ask_read
from qedmeg.reasoning.session import Session

SELECTOR = "selector"


def choose(problem: str, proofs: Sequence[str], path: str) -> Question[int]:
    """Ask which of several proofs is best; the answer is its index."""
    prompt = make_prompt("select", problem, proofs=proofs)
    names = [str(number) for number in range(1, len(proofs) + 1)]

    def read(text: str) -> int:
        verdict = read_verdict(text, prompt.key)
        if verdict not in names:
            raise NoVerdict(f"its last verdict is none of the numbers from 1 to {len(proofs)}")
        return names.index(verdict)

    return Question(Call(path, SELECTOR, prompt.messages), read)


async def select(session: Session, proofs: Sequence[str], path: str) -> int:
    """Index of the proof that the selector chooses among one or more, the best standing first. Where its choice can be
    read neither at once nor when it is asked again, the first stands."""
    if len(proofs) == 1:
        return 0
    (choice,) = await ask_read(session, [choose(session.problem, proofs, path)])
    return choice or 0


async def knock_out(session: Session, proofs: Sequence[str], path: str) -> str:
    """The winner of a knock-out among proofs, the best standing first; empty where there are none. n proofs take n - 1
    matches.

    In each round the first meets the last, the second the last but one, and so on; where their number is odd the first
    is through without a match. The winner takes the better place of the two. Where a choice can be read neither at
    once nor when it is asked for again, the proof with the better place wins.
    """
    standing, rounds = list(proofs), 0
    while len(standing) > 1:
        rounds += 1
        session.best = standing[0]
        through, playing = standing[: len(standing) % 2], standing[len(standing) % 2 :]
        pairs = [(playing[place], playing[-1 - place]) for place in range(len(playing) // 2)]
        choices = await ask_read(
            session,
            [
                choose(session.problem, pair, f"{path}/round {rounds}/match {match}")
                for match, pair in enumerate(pairs, start=1)
            ],
        )
        standing = through + [pair[choice or 0] for pair, choice in zip(pairs, choices, strict=True)]
    session.best = standing[0] if standing else ""
    return session.best

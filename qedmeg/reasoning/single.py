"""One call: what all scaffolds are compared with."""

from qedmeg.reasoning.session import Session
from qedmeg.reasoning.steps import prove
from qedmeg.settings import Settings


class SingleSettings(Settings):
    """One call; there is nothing to set."""


async def single(session: Session, settings: SingleSettings) -> str:
    """The text of one reply, as far as it goes: empty where the reply was cut off before its text began."""
    session.best = (await session.ask(prove(session.problem, "prove"))).text.strip()
    return session.best

"""One call: what all scaffolds are compared with."""

from typing import Self

from pydantic import model_validator

from qedmeg.reasoning.call import Call, Message
from qedmeg.reasoning.session import PROVER, Session
from qedmeg.reasoning.steps import prove
from qedmeg.settings import Settings

_PROBLEM = "{problem}"


class SingleSettings(Settings):
    """How the one question is put."""

    prompt: str | None = None
    """What is asked, with {problem} where the problem stands: for a model that was trained on other words than ours.
    None: ours."""

    @model_validator(mode="after")
    def _names_the_problem(self) -> Self:
        if self.prompt is not None and _PROBLEM not in self.prompt:
            raise ValueError(f"prompt {self.prompt!r} does not hold {_PROBLEM}")
        return self


async def single(session: Session, settings: SingleSettings) -> str:
    """The text of one reply, as far as it goes: empty where the reply was cut off before its text began."""
    call = prove(session.problem, "prove")
    if settings.prompt is not None:
        asked = settings.prompt.replace(_PROBLEM, session.problem)
        call = Call(call.path, PROVER, (Message("user", asked),))
    session.best = (await session.ask(call)).text.strip()
    return session.best

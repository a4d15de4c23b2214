"""One proof, verified and mended until it passes several times in a row (Huang and Yang, arXiv 2507.15855)."""

from pydantic import Field

from qedmeg.reasoning.questions import ask_read
from qedmeg.reasoning.session import Session
from qedmeg.reasoning.steps import improve, prove, replaced, verify
from qedmeg.settings import Settings

PASSED = 1.0


class SelfcheckSettings(Settings):
    """When the checking ends."""

    passes: int = Field(default=5, ge=1)
    """Verdicts in a row that the proof is complete and correct after which it is the answer."""
    failures: int = Field(default=10, ge=1)
    """Verdicts in a row that it is not after which the last version is the answer."""
    iterations: int = Field(default=30, ge=1)
    """Most verifications; then the last version is the answer."""


async def selfcheck(session: Session, settings: SelfcheckSettings) -> str:
    """The proof that passed, or the last version where none did.

    Anything below the highest verdict, 1, is a failure, after which the proof is mended with the verifier's analysis.
    A verdict that can be read neither at once nor when it is asked for again takes an iteration and is neither a pass
    nor a failure. A version that was cut off does not take the place of the one before it; where the first was cut off
    before its text began the problem is proved once more in place of the second look, and where that has no text
    either the answer is empty.
    """
    problem = session.problem
    session.best = (await session.ask(prove(problem, "prove"))).text.strip()
    second = improve(problem, session.best, (), "improve") if session.best else prove(problem, "improve")
    session.best = replaced(session.best, await session.ask(second))
    passes = failures = 0
    for iteration in range(1, settings.iterations + 1):
        if not session.best or passes == settings.passes or failures == settings.failures:
            break
        (analysis,) = await ask_read(session, [verify(problem, session.best, f"iteration {iteration}/verify")])
        if analysis is None:
            continue
        if analysis.verdict == PASSED:
            passes, failures = passes + 1, 0
            continue
        passes, failures = 0, failures + 1
        mended = improve(problem, session.best, [analysis.text], f"iteration {iteration}/improve")
        session.best = replaced(session.best, await session.ask(mended))
    return session.best

"""A planner that decides what is done next: one tool a call, until it submits a solution (QED-Nano's math agent)."""

from pydantic import Field

from qedmeg.grading.verdict import NoVerdict
from qedmeg.reasoning.call import Call
from qedmeg.reasoning.planner_tools import Board, Event, read_call, use
from qedmeg.reasoning.prompts import make_prompt
from qedmeg.reasoning.session import Session
from qedmeg.settings import Settings

PLANNER = "planner"


class PlanningAgentSettings(Settings):
    """What the planner may use."""

    planner_calls: int = Field(default=15, ge=1)
    """Most calls of the planner, each of which uses one tool."""
    max_approaches: int = Field(default=4, ge=0)
    """Most approaches that are asked for."""
    max_solutions: int = Field(default=4, ge=2)
    """Most solutions that are asked for from the beginning, and most that one selection or merge is shown."""


async def planning_agent(session: Session, settings: PlanningAgentSettings) -> str:
    """The solution that the planner submits; without that what `Board.best` says, or nothing.

    An answer of the planner that is no tool call, one that was cut off among them, is told to it and counts as a call,
    and so does a call that cannot be done.
    """
    board = Board(settings.max_approaches, settings.max_solutions)
    events: list[Event] = []
    for number in range(1, settings.planner_calls + 1):
        prompt = make_prompt(
            "plan",
            session.problem,
            said=[event.said for event in events],
            texts=[event.text for event in events],
            left=settings.planner_calls - number + 1,
            max_approaches=board.max_approaches,
            max_solutions=board.max_solutions,
        )
        path = f"plan {number}"
        reply = await session.ask(Call(path, PLANNER, prompt.messages))
        try:
            events.append(await use(session, board, read_call(reply.text), path))
        except NoVerdict as reason:
            events.append(Event(f"your answer was no call: {reason}. Nothing was done."))
        best = board.best()
        session.best = board.solutions[best - 1].text if best is not None else ""
        if board.submitted:
            break
    return session.best

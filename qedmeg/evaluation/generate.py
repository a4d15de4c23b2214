"""Answers to a benchmark's problems, by a model or by a scaffold over models, each kept as soon as it is there."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qedmeg.evaluation.problem import BenchmarkProblem
from qedmeg.evaluation.results import Attempt, Results
from qedmeg.evaluation.workers import work_through
from qedmeg.monitor.progress import bar
from qedmeg.reasoning.call import Model, ModelFailedError
from qedmeg.reasoning.session import Scaffold, Session, attempt, seed_of


@dataclass
class Outcome:
    """What became of a run's attempts this time."""

    finished: int = 0
    known: int = 0
    """Finished before."""
    failed: Counter[str] = field(default_factory=Counter)
    """Attempts that a model left without a reply, by kind of failure: tried again when the run goes on."""

    def __add__(self, other: "Outcome") -> "Outcome":
        return Outcome(self.finished + other.finished, self.known + other.known, self.failed + other.failed)


async def generate(
    results: Results,
    run: str,
    problems: Sequence[BenchmarkProblem],
    samples: int,
    scaffold: Scaffold,
    models: Mapping[str, Model],
    *,
    budget: int | None,
    concurrency: int,
    replies_of: str | None = None,
) -> Outcome:
    """Make all attempts of a run that are not finished yet, `concurrency` of them side by side.

    Args:
        results: where the run has been begun.
        run: its name.
        problems: the benchmark's.
        samples: attempts at each problem.
        scaffold: from a session to an answer.
        models: by role.
        budget: most tokens that the replies of one attempt may have; None: no limit.
        concurrency: attempts at a time, whatever their number of calls.
        replies_of: the run that replies are kept for. None: this one.
    """
    done = {(one.problem, one.sample) for one in results.attempts(run)}
    # the first sample of every problem, then the second: what is there of a run that was stopped tells the most
    left = [(one, n) for n in range(samples) for one in problems if (one.id, n) not in done]
    outcome = Outcome(known=len(problems) * samples - len(left))
    at_once = min(concurrency, len(left))
    with bar("answering", len(problems) * samples, done=outcome.known, at_once=at_once) as progress:

        async def make(place: tuple[BenchmarkProblem, int]) -> None:
            problem, sample = place
            log, seed = results.log(replies_of or run, problem.id, sample), seed_of(problem.id, sample)
            session = Session(problem.question, models, log, budget=budget, seed=seed)
            try:
                solution = await attempt(scaffold, session)
            except ModelFailedError as failure:
                outcome.failed[failure.kind] += 1
                progress.advance(note=f"{outcome.failed.total()} failed, the last: {failure}"[:120])
                return
            cost = solution.cost
            await results.add_attempt(
                run,
                Attempt(
                    problem=problem.id,
                    sample=sample,
                    text=solution.text,
                    ended=solution.ended,
                    tokens=solution.tokens,
                    requests=cost.requests,
                    prompt_tokens=cost.prompt_tokens,
                    completion_tokens=cost.completion_tokens,
                    money=cost.money,
                    seconds=solution.seconds,
                ),
            )
            outcome.finished += 1
            progress.advance()

        await work_through(left, at_once, make)
    return outcome

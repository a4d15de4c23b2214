"""Several votes on one proof: of several judges, or of one that is asked more than once."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Sequence
from statistics import mean
from typing import Literal

from qedmeg.chat.account import Account
from qedmeg.config import GraderConfig
from qedmeg.grading.cache import GradeCache
from qedmeg.grading.grade import Cost, Failed, Grade, Graded, ItemGrade
from qedmeg.grading.grader import AnyProblem, Grader, SymbolicGrader
from qedmeg.grading.judge import Judge


class Panel:
    """The judges of a configuration. A single vote is passed on as it is.

    With several, the grade is their median or mean when at least `min_votes` were given, else `Failed`. All are kept
    in `votes`, and each is paid for whatever became of it. `accounts` are those of the judges, in their order.
    """

    def __init__(self, config: GraderConfig, accounts: Sequence[Account] | None = None) -> None:
        self.config = config
        self._cache = None if config.cache is None else GradeCache(config.cache)
        self.accounts = [Account() for _ in config.judges] if accounts is None else list(accounts)
        self._judges = [
            Judge(judge, self._cache, account) for judge, account in zip(config.judges, self.accounts, strict=True)
        ]
        self._seats: list[tuple[Judge, int]] = []
        """Judge and number of its vote. The same model at two addresses is one judge: its votes are counted on."""
        self._numbers: Counter[str] = Counter()
        """Votes of each judge."""
        for judge in self._judges:
            for _ in range(judge.config.votes):
                self._seats.append((judge, self._numbers[judge.version]))
                self._numbers[judge.version] += 1
        self._needed = config.min_votes or len(self._seats) // 2 + 1
        self.version = self._version()

    async def grade(self, problem: AnyProblem, proof: str, again: int = 0) -> Grade:
        first = {judge.version: again * self._numbers[judge.version] for judge, _ in self._seats}
        grades = await asyncio.gather(
            *(judge.grade(problem, proof, first[judge.version] + vote) for judge, vote in self._seats)
        )
        if len(grades) == 1:
            return grades[0]
        cost = sum((grade.cost for grade in grades), Cost())
        votes = [grade for grade in grades if isinstance(grade, Graded)]
        if len(votes) < self._needed:
            failed = [grade for grade in grades if isinstance(grade, Failed)]
            failures = "; ".join(f"{grade.kind}: {grade.reason}" for grade in failed)
            reason = f"{len(votes)} votes of {len(grades)}, {self._needed} needed: {failures}"
            # judges that are well again would be enough, or else the proof has lost too many votes by itself
            of_graders = len(votes) + sum(grade.of_grader for grade in failed) >= self._needed
            return Failed("too few votes", reason, cost, of_graders)
        points, items = combine(votes, self.config.combine)
        return Graded(points, votes[0].of, items, self.version, cost, tuple(vote.points for vote in votes))

    async def close(self) -> None:
        for judge in self._judges:
            await judge.close()
        if self._cache is not None:
            self._cache.close()

    def _version(self) -> str:
        seats = [f"{judge.version}#{vote}" for judge, vote in self._seats]
        if len(seats) == 1:
            return self._judges[0].version
        whole = "\n".join([self.config.combine, str(self._needed), *seats])
        return f"{self.config.combine} of {len(seats)}/{hashlib.sha256(whole.encode()).hexdigest()[:12]}"


def combine(votes: Sequence[Graded], how: Literal["median", "mean"]) -> tuple[float, tuple[ItemGrade, ...]]:
    """The votes' mean; or their median, which is the vote in the middle, or the mean of the two there.

    The items are those votes' too, so that they add up to the points. Reasons that differ are joined.
    """
    ranked = sorted(votes, key=lambda vote: (vote.points, [item.points for item in vote.items]))
    if how == "median":
        ranked = ranked[(len(ranked) - 1) // 2 : len(ranked) // 2 + 1]
    items = tuple(
        ItemGrade(
            name=grades[0].name,
            points=mean(grade.points for grade in grades),
            of=grades[0].of,
            reason=" / ".join(dict.fromkeys(grade.reason for grade in grades if grade.reason)),
        )
        for grades in zip(*(vote.items for vote in ranked), strict=True)
    )
    return mean(vote.points for vote in ranked), items


def make_grader(config: GraderConfig) -> Grader:
    """The grader of proofs of a configuration: its judges, or without any the symbolic one."""
    return Panel(config) if config.judges else SymbolicGrader()

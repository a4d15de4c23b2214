"""Several votes on one proof, and graders that a trainer can exchange."""

import asyncio
import threading
from pathlib import Path

import pytest

from qedmeg.config import GraderConfig, JudgeConfig
from qedmeg.data.problems import Problem, generate, reference_proof
from qedmeg.errors import UserError
from qedmeg.grading import symbolic
from qedmeg.grading.grade import Failed, Grade, Graded, ItemGrade
from qedmeg.grading.grader import Grader, ProofProblem, SymbolicGrader
from qedmeg.grading.panel import Panel, combine, make_grader
from qedmeg.grading.rubric import Rubric, RubricItem
from tests.grading.judge_server import JudgeServer, Plan

PROBLEM = ProofProblem("p", "Show it.", Rubric((RubricItem("idea", 5, "Has it."), RubricItem("end", 2, "Ends."))))


def vote(idea: int, end: int, reason: str = "") -> Graded:
    return Graded(idea + end, 7, (ItemGrade("idea", idea, 5, reason), ItemGrade("end", end, 2, "")), "judge")


def test_votes_are_combined_as_worked_out_by_hand() -> None:
    votes = [vote(5, 2, "good"), vote(0, 0, "bad"), vote(3, 1, "so so")]  # 7, 0 and 4 points
    points, items = combine(votes, "median")
    assert (points, [item.points for item in items], items[0].reason) == (4, [3, 1], "so so")
    points, items = combine(votes, "mean")  # 11 / 3; 8 / 3 and 3 / 3
    assert points == pytest.approx(11 / 3)
    assert [item.points for item in items] == pytest.approx([8 / 3, 1])
    assert items[0].reason == "bad / so so / good"
    # Of four the median is between the two in the middle: 4 and 5 of 0, 4, 5, 7.
    points, items = combine([*votes, vote(4, 1)], "median")
    assert (points, [item.points for item in items]) == (4.5, [3.5, 1])
    points, items = combine([vote(2, 1)], "median")
    assert (points, [item.points for item in items]) == (3, [2, 1])
    # Equal totals by different items stay exactly equal: a group without variance is seen as one.
    assert combine([vote(2, 1), vote(1, 2), vote(2, 1)], "mean")[0] == 3


def grade(server: JudgeServer, *judges: dict[str, object], **settings: object) -> tuple[Grade, Panel]:
    async def run() -> tuple[Grade, Panel]:
        made = tuple(
            JudgeConfig(base_url=server.url, backoff_seconds=0.0, **{"model": "scripted"} | judge) for judge in judges
        )
        panel = Panel(GraderConfig(judges=made, **settings))
        try:
            return await panel.grade(PROBLEM, "Proof."), panel
        finally:
            await panel.close()

    return asyncio.run(run())


def in_turn(*fates: str) -> Plan:
    return lambda proof, nth: fates[nth]


def test_one_judge_votes_several_times() -> None:
    with JudgeServer(in_turn("give 5 2", "give 0 0", "give 3 1")) as server:
        graded, panel = grade(server, {"votes": 3})
    assert isinstance(graded, Graded)
    assert (graded.points, sorted(graded.votes), graded.cost.requests) == (4, [0, 4, 7], 3)
    assert graded.grader == panel.version


def test_too_few_votes_are_no_grade_and_are_paid_for() -> None:
    judges = ({"model": "a"}, {"model": "b"}, {"model": "c"})
    with JudgeServer(in_turn("give 3 1", "401", "401")) as server:
        failed, panel = grade(server, *judges)
    assert isinstance(failed, Failed)
    assert failed.kind == "too few votes"
    # which two it hits is for the order in which their requests arrive
    refused = [model for model in "abc" if f"no access: judge {model} at {server.url}: status 401" in failed.reason]
    assert len(refused) == 2
    assert failed.reason.startswith("1 votes of 3, 2 needed: ")
    assert (failed.cost.requests, failed.cost) == (3, sum((a.cost for a in panel.accounts[1:]), panel.accounts[0].cost))
    with JudgeServer(in_turn("give 3 1", "401", "give 5 2")) as server:
        graded, _ = grade(server, *judges)
        assert isinstance(graded, Graded)
        assert graded.points == 5.5
    with JudgeServer(in_turn("give 3 1", "401", "401")) as server:
        graded, _ = grade(server, *judges, min_votes=1)
        assert isinstance(graded, Graded)
        assert graded.points == 4


@pytest.mark.parametrize(
    ("fates", "of_grader"),
    [
        (("give 3 1", "401", "400"), True),  # with the judge that cannot be asked there would be two votes
        (("401", "401", "400"), True),
        (("give 3 1", "400", "400"), False),
        (("401", "400", "400"), False),
    ],
)
def test_too_few_votes_are_waited_for_where_judges_that_are_well_would_be_enough(
    fates: tuple[str, ...], of_grader: bool
) -> None:
    with JudgeServer(in_turn(*fates)) as server:
        failed, _ = grade(server, {"votes": 3})
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.of_grader) == ("too few votes", of_grader)


def test_votes_are_kept_one_by_one(tmp_path: Path) -> None:
    cache = tmp_path / "grades.sqlite"
    with JudgeServer(in_turn("give 5 2", "401", "401", "give 0 0", "give 1 1")) as server:
        failed, _ = grade(server, {"votes": 3}, cache=cache)
        assert isinstance(failed, Failed)
        graded, panel = grade(server, {"votes": 3}, cache=cache, combine="mean")
    assert isinstance(graded, Graded)
    assert (graded.points, graded.cost.requests, panel.accounts[0].cached) == (3, 2, 1)  # (7 + 0 + 2) / 3


def test_one_model_at_two_addresses_gives_two_votes(tmp_path: Path) -> None:
    with JudgeServer(in_turn("give 5 2", "give 1 0")) as server:
        graded, _ = grade(server, {}, {}, cache=tmp_path / "grades.sqlite")
        again, _ = grade(server, {}, {}, cache=tmp_path / "grades.sqlite")
    assert isinstance(graded, Graded)
    assert isinstance(again, Graded)
    assert sorted(graded.votes) == sorted(again.votes) == [1, 7]


def test_the_version_says_who_grades() -> None:
    with JudgeServer(in_turn("right")) as server:
        _, one = grade(server, {})
        versions = {one.version}
        for settings in ({"votes": 2}, {"votes": 3}):
            for how in ("mean", "median"):
                config = GraderConfig(
                    judges=(JudgeConfig(base_url=server.url, model="scripted", **settings),), combine=how
                )
                versions.add(Panel(config).version)
    assert len(versions) == 5
    assert one.version.startswith("scripted/")


def test_a_trainer_can_take_either_grader() -> None:
    problem = generate("train", 1, seed=1)[0]
    of = [item.points for item in problem.rubric.items]

    async def by(grader: Grader) -> Grade:
        try:
            return await grader.grade(problem, reference_proof(problem))
        finally:
            await grader.close()

    with JudgeServer(in_turn("give " + " ".join(map(str, of)))) as server:
        judge = make_grader(GraderConfig(judges=(JudgeConfig(base_url=server.url, model="scripted"),)))
        grades = [asyncio.run(by(judge)), asyncio.run(by(make_grader(GraderConfig())))]
    for grade in grades:
        assert isinstance(grade, Graded)
        assert (grade.points, [item.points for item in grade.items]) == (7, of)
    assert [grade.grader for grade in grades] == [judge.version, symbolic.VERSION]
    with pytest.raises(UserError, match="knows the embedded problems only"):
        asyncio.run(by_symbolic_grader())


async def by_symbolic_grader() -> Grade:
    return await SymbolicGrader().grade(PROBLEM, "Proof.")


def test_the_symbolic_grader_lets_the_loop_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, turned, real = generate("train", 1, seed=3)[0], threading.Event(), symbolic.grade

    def grade_after_a_turn(problem: Problem, proof: str) -> Grade:
        assert turned.wait(10), "the event loop stood still while a proof was graded"
        return real(problem, proof)

    async def run() -> None:
        grader = SymbolicGrader()
        work = asyncio.ensure_future(grader.grade(problem, reference_proof(problem)))
        await asyncio.sleep(0.001)
        turned.set()
        assert isinstance(await work, Graded)
        await grader.close()

    monkeypatch.setattr(symbolic, "grade", grade_after_a_turn)
    asyncio.run(run())

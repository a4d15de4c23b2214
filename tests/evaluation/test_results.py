"""What is kept is read back, by another process too; nothing is kept twice; names stand for one thing."""

import asyncio
from decimal import Decimal

import pytest

from qedmeg.data.problems import generate
from qedmeg.errors import UserError
from qedmeg.evaluation.problem import BenchmarkProblem
from qedmeg.evaluation.results import Attempt, EvaluationRun, Results, StoredGrade
from qedmeg.grading.grade import Cost, Failed, Graded, ItemGrade
from qedmeg.grading.grader import AnswerProblem, ProofProblem
from qedmeg.grading.rubric import Rubric, RubricItem
from qedmeg.reasoning.call import Call, Message, Reply

PROBLEMS = [
    BenchmarkProblem(generate("heldout", 1, seed=0)[0], "1", "parity"),
    BenchmarkProblem(ProofProblem("p", "Prove it.", "7 for a proof.", "By hand."), "IMO-easy", "Algebra"),
    BenchmarkProblem(ProofProblem("q", "And it.", Rubric((RubricItem("all", 7, "all of it"),))), "", "Geometry"),
    BenchmarkProblem(AnswerProblem("a", "What is 1 + 1?", "2"), "", "Algebra"),
]
RUN = EvaluationRun("one", "mixed", "m", "single", 2, {"temperature": 1.0})
ATTEMPT = Attempt("p", 0, "Clear.", "done", 5, 2, 7, 6, Decimal("0.25"), 1.5)
GRADE = Graded(3, 7, (ItemGrade("all", 3, 7, "half of it"),), "g1", Cost(1, 2, 3, Decimal("0.1")))


@pytest.fixture
def results(tmp_path):
    results = Results(tmp_path / "results.sqlite")
    results.begin(RUN, PROBLEMS)
    yield results
    results.close()


def test_reads_back_what_was_written(results):
    async def write():
        await results.add_attempt("one", ATTEMPT)
        await results.add_grade("one", StoredGrade("p", 0, "g1", 0, GRADE))
        await results.add_grade("one", StoredGrade("p", 0, "g1", 1, Failed("timeout", "no answer")))

    asyncio.run(write())
    other = Results(results.path)
    assert other.runs() == [RUN]
    assert other.problems("one") == PROBLEMS
    assert other.attempts("one") == [ATTEMPT]
    assert [stored.grade for stored in other.grades("one")] == [GRADE, Failed("timeout", "no answer")]
    other.close()


def test_the_first_attempt_and_grade_stay_but_a_failed_grade_gives_way(results):
    async def write():
        await results.add_attempt("one", ATTEMPT)
        await results.add_attempt("one", Attempt("p", 0, "Other.", "done", 1, 1, 1, 1, Decimal(0), 0.0))
        for grade in (Failed("timeout", "no answer"), GRADE, Graded(7, 7, (), "g1"), Failed("timeout", "again")):
            await results.add_grade("one", StoredGrade("p", 0, "g1", 0, grade))

    asyncio.run(write())
    assert results.attempts("one") == [ATTEMPT]
    assert [stored.grade for stored in results.grades("one")] == [GRADE]


def test_calls_are_found_again_by_all_that_they_depend_on(results):
    call = Call("round 1/verify 2", "verifier", (Message("user", "Is it so?"),), 30)
    reply = Reply("Yes.", "Hm.", "stop", 4, Cost(2, 3, 5), 0.5)
    others = [
        Call("round 1/verify 3", "verifier", call.messages, 30),
        Call(call.path, "prover", call.messages, 30),
        Call(call.path, "verifier", (Message("user", "Is it?"),), 30),
        Call(call.path, "verifier", call.messages, 31),
    ]

    async def write():
        log = results.log("one", "p", 0)
        assert await log.find("m", call) is None
        await log.keep("m", call, reply)

    async def read():
        log = Results(results.path).log("one", "p", 0)
        found = await log.find("m", call)
        missing = [await log.find("m", other) for other in others]
        elsewhere = [await log.find("n", call), await results.log("one", "p", 1).find("m", call)]
        return found, missing + elsewhere

    asyncio.run(write())
    found, missing = asyncio.run(read())
    assert found == reply
    assert missing == [None] * 6
    assert [stored.call.path for stored in results.calls("one", "p", 0)] == ["round 1/verify 2"]


def test_many_at_once_are_all_on_disk_when_awaited(results):
    async def write():
        attempts = [Attempt("p", n, "x", "done", 1, 1, 1, 1, Decimal(0), 0.0) for n in range(500)]
        await asyncio.gather(*(results.add_attempt("one", attempt) for attempt in attempts))
        return len(Results(results.path).attempts("one"))

    assert asyncio.run(write()) == 500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "n"}, 'was begun with model "m", not "n"'),
        ({"settings": {"temperature": 0.5}}, "was begun with settings"),
    ],
)
def test_a_name_stands_for_one_run(results, change, message):
    with pytest.raises(UserError, match=message):
        results.begin(EvaluationRun(**{**vars(RUN), **change}), PROBLEMS)
    with pytest.raises(UserError, match="other problems"):
        results.begin(RUN, PROBLEMS[:2])
    results.begin(EvaluationRun(**{**vars(RUN), "samples": 3}), PROBLEMS)
    assert results.runs()[0].samples == 3


def test_refuses_what_is_no_file_of_results(tmp_path):
    (tmp_path / "x").write_text("hello" * 1000)
    with pytest.raises(UserError, match="no file of results"):
        Results(tmp_path / "x")

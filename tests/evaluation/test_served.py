"""Every scaffold over real HTTP: a server that fails one time in five changes no answer, and all accounts add up."""

import asyncio
from pathlib import Path

import pytest

from qedmeg.chat.account import ANSWERED, Account
from qedmeg.chat.model import ServedModel
from qedmeg.config import EndpointConfig
from qedmeg.evaluation.generate import generate
from qedmeg.evaluation.problem import BenchmarkProblem
from qedmeg.evaluation.results import Attempt, EvaluationRun, Results, StoredCall
from qedmeg.grading.grader import ProofProblem
from qedmeg.reasoning.call import Call, Message, ModelFailedError
from qedmeg.reasoning.scaffolds import SCAFFOLDS, make_scaffold
from qedmeg.reasoning.session import PROVER
from tests.chat.scripted_server import ScriptedServer
from tests.reasoning.scripted_model import PROBLEM, MemoryLog

PROBLEMS = [BenchmarkProblem(ProofProblem(f"p{n}", f"{PROBLEM} ({n})", "7 for a proof."), "", "") for n in (1, 2)]


def evaluated(
    path: Path, scaffold: str, share: float
) -> tuple[list[Attempt], list[StoredCall], Account, ScriptedServer]:
    results = Results(path)
    results.begin(EvaluationRun("run", "b", "m", scaffold, 1, {}), PROBLEMS)

    async def run() -> Account:
        model = ServedModel(
            EndpointConfig(base_url=server.url, model="scripted", backoff_seconds=0.0, timeout_seconds=5.0)
        )
        outcome = await generate(
            results,
            "run",
            PROBLEMS,
            1,
            make_scaffold(scaffold, {}),
            {PROVER: model},
            budget=None,
            concurrency=2,
        )
        await model.close()
        assert (outcome.finished, outcome.failed.total()) == (len(PROBLEMS), 0)
        return model.account

    with ScriptedServer(share=share, seed=1) as server:
        account = asyncio.run(run())
    attempts = results.attempts("run")
    calls = [call for problem in PROBLEMS for call in results.calls("run", problem.id, 0)]
    results.close()
    return attempts, calls, account, server


@pytest.mark.parametrize("scaffold", SCAFFOLDS)
def test_a_failing_server_changes_no_answer(scaffold, tmp_path):
    undisturbed, calls, _, _ = evaluated(tmp_path / "undisturbed.sqlite", scaffold, 0.0)
    attempts, again, account, server = evaluated(tmp_path / "failing.sqlite", scaffold, 0.2)
    assert [(one.problem, one.text, one.ended, one.tokens) for one in attempts] == [
        (one.problem, one.text, one.ended, one.tokens) for one in undisturbed
    ]
    assert {(one.call.path, one.reply.text) for one in again} == {(one.call.path, one.reply.text) for one in calls}
    # every request that the server saw is in the account, and its cost in an attempt's
    assert account.requests == server.answered.total() == sum(one.requests for one in attempts)
    assert account.outcomes[ANSWERED] == server.answered["answered"] == len(again)
    assert account.cost.completion_tokens == server.tokens == sum(one.completion_tokens for one in attempts)
    assert sum(one.tokens for one in attempts) == 5 * len(again)


def test_a_model_that_stays_away_fails_by_name():
    settings = EndpointConfig(base_url="http://127.0.0.1:9/v1", model="gone", attempts=2, backoff_seconds=0.0)

    async def ask():
        model = ServedModel(settings)
        try:
            await model.ask(Call("prove", PROVER, (Message("user", "Prove it."),)), MemoryLog())
        finally:
            await model.close()

    with pytest.raises(ModelFailedError, match=r"model gone at http://127.0.0.1:9/v1: .*\(attempt 2 of 2\)") as failure:
        asyncio.run(ask())
    assert failure.value.kind == "connection"

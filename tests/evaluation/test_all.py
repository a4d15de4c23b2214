"""What evaluations refuse before a model is started, runs beside a run, and a server that dies. More with one that
lives: test_grpo.py."""

import json
import sys

import pytest

from qedmeg.errors import UserError
from qedmeg.evaluation import everything, run
from qedmeg.evaluation.results import Results
from qedmeg.evaluation.serving import find_model, ready_models
from qedmeg.rollout import server
from tests.rollout.vllm_server import DIES_WHEN_ASKED
from tests.sft_runs import write_inputs


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_inputs(folder)
    return folder / "model"


def test_greedy_and_every_round_are_runs_of_their_own(model, tmp_path, monkeypatch):
    words = {"again": "{problem} {summary}", "summarise": "{problem} {summary} {reasoning}"}
    settings = {"rounds": 3, "reason_tokens": 8, "summary_tokens": 4, "prompts": words}
    options = ["--benchmark", "embedded", "--problems", "3", "--samples", "2", "--model", model, "--greedy"]
    options += ["--scaffold", "reasoning_cache", "--every-round", "--out", tmp_path / "results.sqlite"]
    options += [word for key, value in settings.items() for word in ("--set", f"scaffold.{key}={json.dumps(value)}")]
    monkeypatch.setattr(sys, "argv", ["all.py", *map(str, options), "--name", "one"])
    assert everything.main() == 0
    results = Results(tmp_path / "results.sqlite")
    names = ["one", "one round 1", "one round 2", "one greedy", "one greedy round 1", "one greedy round 2"]
    assert sorted(one.name for one in results.runs()) == sorted(names)
    for name, samples in (("one", 2), ("one greedy", 1)):
        for problem in results.problems(name):
            for sample in range(samples):
                replies = {one.call.path: one.reply for one in results.calls(name, problem.id, sample)}
                assert len(replies) == 5
                tokens = 0
                for number, part in enumerate((f"{name} round 1", f"{name} round 2", name), 1):
                    (attempt,) = [
                        one for one in results.attempts(part) if (one.problem, one.sample) == (problem.id, sample)
                    ]
                    tokens += replies[f"round {number}/reason"].tokens
                    assert attempt.tokens == tokens  # until the round's answer
                    tokens += replies[f"round {number}/summarise"].tokens if number < 3 else 0
    assert not any(results.calls("one round 1", problem.id, 0) for problem in results.problems("one"))  # nothing new
    settings_of = {one.name: one.settings for one in results.runs()}
    assert settings_of["one greedy"]["models"]["prover"]["temperature"] == 0
    assert settings_of["one"]["models"]["prover"]["temperature"] == 1
    assert {one.regrade for name in names for one in results.grades(name)} == {0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"--benchmark": "embeded"}, "embeded.*did you mean 'embedded'"),
        ({"--model": "qed-nan"}, "--model: qed-nan: no folder.*did you mean 'qed-nano'"),
        ({"--scaffold": "rsaa"}, "--scaffold: no scaffold 'rsaa'; did you mean 'rsa'"),
        ({"--role": "verifer=qed-nano"}, "--role: verifer: single has no such role"),
        ({"--role": "qed-nano"}, "--role: qed-nano: expected KEY=VALUE"),
        ({"--set": "temperature=1"}, r"--set: temperature: expected model\.…, scaffold\.…"),
        ({"--set": "model.temprature=1"}, "temprature: unknown setting; did you mean 'temperature'"),
        ({"--set": "scaffold.rounds=2"}, "rounds: unknown setting"),
        ({"--set": "scaffold.prompt=hello"}, r"prompt 'hello' does not hold \{problem\}"),
        ({"--samples": "0"}, "--samples: 0 is less than 1"),
        ({"--every-round": None}, "--every-round: single has no rounds to tell apart; reasoning_cache has"),
    ],
)
def test_mistakes_are_told_before_anything_is_begun(model, tmp_path, monkeypatch, options, message):
    given = {
        "--benchmark": "embedded",
        "--model": str(model),
        "--out": str(tmp_path / "r" / "results.sqlite"),
    } | options
    monkeypatch.setattr(sys, "argv", ["run.py", *(word for pair in given.items() for word in pair if word)])
    with pytest.raises(UserError, match=message):
        run.main()
    assert not (tmp_path / "r").exists()


def test_ready_settings_are_whole():
    assert {"qed-nano", "gemini-3-pro", "gpt-oss-120b", "deepseek-math-v2", "nomos-1"} <= {*ready_models()}
    for name in ready_models():
        found = find_model(name, {})
        assert found.endpoint is not None
        assert found.settings()["model"]
    assert find_model("gemini-3-pro", {"temperature": 0.5}).settings()["temperature"] == 0.5
    changed = find_model("gpt-5.1", {"reasoning_effort": None, "max_tokens": None}).settings()
    assert (changed["reasoning_effort"], changed["max_tokens"]) == (None, None)


def test_a_server_that_dies_ends_the_run_at_once(model, tmp_path, monkeypatch):
    started = [sys.executable, "-c", DIES_WHEN_ASKED]
    monkeypatch.setattr(server, "command", lambda model, host, port, options, chat: [*started, f"{port}"])
    options = ["--benchmark", "embedded", "--problems", "3", "--model", model, "--out", tmp_path / "results.sqlite"]
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, options)])
    with pytest.raises(UserError, match=r"(?s)ended with status 3; .*no room for keys.*What was answered is kept"):
        run.main()

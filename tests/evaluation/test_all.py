"""What evaluations refuse before a model is started, and a server that dies. With one that lives: test_grpo.py."""

import sys

import pytest

from qedmeg.errors import UserError
from qedmeg.evaluation import run
from qedmeg.evaluation.serving import find_model, ready_models
from qedmeg.rollout import server
from tests.sft_runs import write_inputs


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_inputs(folder)
    return folder / "model"


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
    ],
)
def test_mistakes_are_told_before_anything_is_begun(model, tmp_path, monkeypatch, options, message):
    given = {
        "--benchmark": "embedded",
        "--model": str(model),
        "--out": str(tmp_path / "r" / "results.sqlite"),
    } | options
    monkeypatch.setattr(sys, "argv", ["run.py", *(word for pair in given.items() for word in pair)])
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


DIES_WHEN_ASKED = """
import os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        print("ValueError: no room for keys", flush=True)
        os._exit(3)

HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_server_that_dies_ends_the_run_at_once(model, tmp_path, monkeypatch):
    started = [sys.executable, "-c", DIES_WHEN_ASKED]
    monkeypatch.setattr(server, "command", lambda model, host, port, options, chat: [*started, f"{port}"])
    options = ["--benchmark", "embedded", "--problems", "3", "--model", model, "--out", tmp_path / "results.sqlite"]
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, options)])
    with pytest.raises(UserError, match=r"(?s)ended with status 3; .*no room for keys.*What was answered is kept"):
        run.main()

"""Weight transfer over all combinations, and real servers that die.

    python -m pytest tests/rollout/transfer_matrix.py

Every combination starts vLLM anew, which takes most of the time: about a minute each on two cores.
"""

import signal
import threading
import time

import pytest

from qedmeg.rollout.weight_transfer import WeightSender
from tests.rollout.transfer_checks import PROMPTS, Weights, check_in_flight, check_in_process, check_over_http
from tests.rollout.transfer_ends import EngineInProcess, VllmServer, build

PATIENCE = 6.0
"""`seconds` of the sender: an engine is lost after half of it."""


@pytest.fixture(scope="module", params=[("qwen3", True), ("qwen3", False), ("qwen3_moe", True), ("qwen3_moe", False)])
def weights(request, tmp_path_factory):
    return Weights(tmp_path_factory.mktemp("weights"), *request.param)


@pytest.fixture(scope="module", params=[1, 2])
def tp(request):
    return request.param


@pytest.fixture(scope="module")
def server(weights, tp, tmp_path_factory):
    started = VllmServer(weights.a, tp, tmp_path_factory.mktemp("server"))
    try:
        started.wait()
        yield started.control
    finally:
        started.close()


def test_in_process(ranks, weights, tp, tmp_path):
    engine = EngineInProcess(weights.a, tp, tmp_path)
    try:
        engine.wait()
        check_in_process(ranks, engine.control, weights)
    finally:
        engine.close()


def test_over_http(ranks, server, weights):
    check_over_http(ranks, server, weights)


def test_in_flight(ranks, server, weights):
    check_in_flight(ranks, server, weights)


def send_to_live(folders, controls):
    """Each in turn to the engines that were not lost before, as the fleet has it."""
    from qedmeg.model import weights

    model, chunks = build(folders[0], {"tp": 2})
    sender = WeightSender(chunks, model, PATIENCE)
    reports = []
    for version, folder in enumerate(folders, 1):
        weights.load_hf(chunks, model, folder)
        reports.append(sender.send(version, controls))
        controls = [control for control in controls if control.name not in reports[-1].lost]
    sender.close()
    return reports


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_that_dies_or_hangs(ranks, tmp_path, number):
    """In a series of transfers to two servers, at some moment: the other gets all of them."""
    weights = Weights(tmp_path / "weights", "qwen3", tied=True)
    servers = [VllmServer(weights.a, 1, tmp_path) for _ in range(2)]
    try:
        for server in servers:
            server.wait()
        bad, good = (server.control for server in servers)
        timer = threading.Timer(1.5, servers[0].signal, (number,))
        timer.start()
        folders = [weights.a, weights.b] * 40
        start = time.monotonic()
        reports = ranks(send_to_live, 2, folders, [bad, good])[0]
        assert time.monotonic() - start < 60
        lost = [report.version for report in reports if bad.name in report.lost]
        print(reports[lost[0] - 1])
        assert len(lost) == 1
        assert 1 < lost[0] < len(folders)
        assert reports[lost[0] - 1].seconds < PATIENCE
        assert all(good.name in report.received for report in reports)
        weights.check(weights.b, good.logprobs(PROMPTS))
    finally:
        for server in servers:
            server.close()

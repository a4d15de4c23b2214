"""After a transfer vLLM computes with the new weights, whatever the way; a dead engine harms no other.

`transfer_matrix.py` beside this file has the combinations that take too long for every run.
"""

import contextlib
import dataclasses
import functools
import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from qedmeg.rollout.protocol import EngineLost
from tests.rollout.stand_in import Behaviour, StandIn
from tests.rollout.transfer_checks import Weights, check_in_flight, check_in_process, check_over_http
from tests.rollout.transfer_ends import EngineInProcess, VllmServer, send_each


@pytest.fixture(scope="module")
def moe_tied(tmp_path_factory):
    return Weights(tmp_path_factory.mktemp("moe"), "qwen3_moe", tied=True)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return Weights(tmp_path_factory.mktemp("dense"), "qwen3", tied=False)


@pytest.fixture(scope="module")
def engines(tmp_path_factory, moe_tied, dense):
    """An `LLM` and a server, which start at the same time."""
    scratch = tmp_path_factory.mktemp("engines")
    started = [EngineInProcess(moe_tied.a, 1, scratch), VllmServer(dense.a, 1, scratch)]
    try:
        for engine in started:
            engine.wait()
        yield started
    finally:
        for engine in started:
            engine.close()


@pytest.mark.vllm
def test_in_process(engines, ranks, moe_tied):
    """Tied embeddings and experts, whose packed copies vLLM leaves stale."""
    check_in_process(ranks, engines[0].control, moe_tied)


@pytest.mark.vllm
def test_over_http(engines, ranks, dense):
    check_over_http(ranks, engines[1].control, dense)


@pytest.mark.vllm
def test_in_flight(engines, ranks, dense):
    check_in_flight(ranks, engines[1].control, dense)


# --- engines that fail: stand-ins ------------------------------------------------------------------------------------

PATIENCE = 4.0
"""`seconds` of the sender: an engine is lost after half of it."""


@pytest.fixture
def stand_in(tmp_path):
    started = []

    def start(name, workers=1, **behaviour):
        started.append(StandIn(tmp_path, name, workers, Behaviour(**behaviour)))
        return started[-1]

    yield start
    for engine in started:
        engine.close()


def send(ranks, engines, folders, after=None):
    for engine in engines:
        engine.wait()
    reports = [result[0] for result in ranks(send_small, 2, folders, [e.control for e in engines], after)]
    assert reports[0] == reports[1]
    return reports[0]


def send_small(folders, controls, after):
    """`send_each` in buckets of 40 kB."""
    from qedmeg.rollout import weight_transfer

    whole = weight_transfer.Export
    weight_transfer.Export = functools.partial(whole, bucket_bytes=40_000)
    try:
        return send_each(folders, {"tp": 2}, controls, PATIENCE, after=after)
    finally:
        weight_transfer.Export = whole


def send_as_from_a_gpu(folders, controls):
    """`send_small`, from the GPU that all engines are on too: what CUDA would do is left out."""
    from qedmeg import device
    from qedmeg.rollout import gloo_link, nccl_link

    kept = device.gpu_name, gloo_link.pin, nccl_link.cut
    device.gpu_name, gloo_link.pin = (lambda: "GPU-1"), (lambda memory: [])
    nccl_link.cut = functools.partial(nccl_link.cut, limit=30_000)
    try:
        return send_small(folders, controls, None)
    finally:
        device.gpu_name, gloo_link.pin, nccl_link.cut = kept


def assert_holds(engine, folder, version):
    found, by_worker = engine.holds()
    stored = load_file(folder / "model.safetensors")
    assert found == version
    assert len(by_worker) == engine.control.workers
    for loaded in by_worker:
        assert loaded.keys() == stored.keys()
        for name, tensor in stored.items():
            assert torch.equal(loaded[name], tensor), name


def test_all_engines_get_all_weights(ranks, stand_in, dense):
    """One worker or two, by shared memory or, as from another machine, by gloo alone."""
    engines = [stand_in("one"), stand_in("two", workers=2), stand_in("far", workers=2, other_machine=True)]
    reports = send(ranks, engines, [dense.a, dense.b])
    assert [report.received for report in reports] == [("one", "two", "far")] * 2
    for engine in engines:
        assert_holds(engine, dense.b, version=2)


def test_engines_on_the_trainers_gpu(ranks, stand_in, dense):
    """Their buffers are cut as NCCL's are, and copied to the slots."""
    engines = [stand_in("one"), stand_in("far", workers=2, other_machine=True)]
    for engine in engines:
        engine.wait()
    controls = [dataclasses.replace(engine.control, gpus=("GPU-0", "GPU-1")) for engine in engines]
    (reports, _), other = ranks(send_as_from_a_gpu, 2, [dense.a, dense.b], controls)
    assert reports == other[0]
    assert [report.received for report in reports] == [("one", "far")] * 2
    for engine in engines:
        assert_holds(engine, dense.b, version=2)


@pytest.mark.parametrize(
    ("behaviour", "reason", "slow"),
    [
        ({"what": "die"}, "EOFError", False),
        ({"what": "raise"}, "ValueError: cannot load this", False),
        ({"what": "hang"}, "kept the transfer waiting for 2 s", True),
        ({"what": "hang", "other_machine": True}, "kept the transfer waiting for 2 s", True),
        ({"what": "dawdle"}, "kept the transfer waiting for 2 s", True),
        ({"what": "die", "other_machine": True, "workers": 2}, "EOFError", False),
    ],
)
def test_a_lost_engine_harms_no_other(ranks, stand_in, dense, behaviour, reason, slow):
    bad, good = stand_in("bad", **behaviour), stand_in("good")
    start = time.monotonic()
    reports = send(ranks, [bad, good], [dense.a])
    assert reports[0].received == ("good",)
    assert list(reports[0].lost) == ["bad"]
    assert reason in reports[0].lost["bad"]
    assert reports[0].seconds < (PATIENCE if slow else 1.5), time.monotonic() - start
    assert_holds(good, dense.a, version=1)
    assert bad.holds()[0] is None


def test_engines_that_hang_side_by_side_are_waited_for_side_by_side(ranks, stand_in, dense):
    bad, good = [stand_in("bad", what="hang"), stand_in("worse", what="hang")], stand_in("good")
    reports = send(ranks, [*bad, good], [dense.a])
    assert (reports[0].received, list(reports[0].lost)) == (("good",), ["bad", "worse"])
    assert reports[0].seconds < PATIENCE
    assert_holds(good, dense.a, version=1)


def test_an_engine_that_does_not_answer(ranks, stand_in, dense):
    """It is stopped before the transfer, as if its machine hung."""
    bad, good = stand_in("bad"), stand_in("good")
    bad.wait()
    os.kill(bad.control.call("pid"), signal.SIGSTOP)
    reports = send(ranks, [bad, good], [dense.a])
    assert reports[0].received == ("good",)
    assert "did not answer to init_transfer within 2 s" in reports[0].lost["bad"]
    assert_holds(good, dense.a, version=1)


@pytest.mark.parametrize("other_machine", [False, True])
def test_an_engine_that_comes_back_gets_all_weights(ranks, stand_in, dense, other_machine):
    bad, good = stand_in("bad", what="die", other_machine=other_machine), stand_in("good")
    reports = send(ranks, [bad, good], [dense.a, dense.b], after=restarted)
    assert [report.received for report in reports] == [("good",), ("bad", "good")]
    assert_holds(bad, dense.b, version=2)


def test_an_engine_started_anew_between_two_transfers_is_not_lost(ranks, stand_in, dense):
    engine = stand_in("one", workers=2)
    reports = send(ranks, [engine], [dense.a, dense.b], after=end)
    assert [report.received for report in reports] == [("one",)] * 2
    assert_holds(engine, dense.b, version=2)


def test_no_engine(ranks, dense):
    """All ranks go on."""
    reports = send(ranks, [], [dense.a])
    assert (reports[0].received, reports[0].lost) == ((), {})


def restarted(engine):
    """Waits until an engine answers, perhaps for the second time."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return engine.call("pid")
        except EngineLost:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def end(engine):
    before = engine.call("pid")
    with contextlib.suppress(EngineLost):
        engine.call("end")
    assert restarted(engine) != before

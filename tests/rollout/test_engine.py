"""Engines of a run's own: against transformers, and against themselves, bit for bit."""

import asyncio
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qedmeg.errors import UserError
from qedmeg.rollout.engine import make_sample
from qedmeg.rollout.engine_process import EngineProcess, Found
from qedmeg.rollout.fleet import LocalFleet, Request, deal_out
from qedmeg.rollout.protocol import EngineLost
from qedmeg.rollout.sample import Sample
from tests.rollout import policies

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def other_run(policy_folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """The same batch by other engines, begun before these."""
    command = [sys.executable, "-m", "tests.rollout.engine_run", f"{policy_folder}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.fixture(scope="module")
def runner(other_run: object) -> Iterator[asyncio.Runner]:
    """The event loop that the engine belongs to."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def fleet(policy_folder: Path, models: dict[int, Any], runner: asyncio.Runner) -> Iterator[LocalFleet]:
    """Two engines with the weights of version 1."""
    fleet = LocalFleet(policy_folder / "1", policies.options(), engines=2)
    runner.run(fleet.start())
    runner.run(policies.send(fleet, models[1], 1))
    yield fleet
    runner.run(fleet.close())
    assert not torch.distributed.is_initialized()  # it leaves nothing to the tests after it


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_distribution_sampled_from(
    fleet: LocalFleet, models: dict[int, Any], runner: asyncio.Runner, temperature: float
) -> None:
    how = policies.sampling(temperature)
    requests = policies.batch()
    samples = runner.run(policies.generate(fleet, requests, how))
    for request, sample in zip(requests, samples, strict=True):
        assert sample.prompt_P is request.prompt_P
        assert sample.versions == ((1, 0),)
        assert sample.tokens_T.dtype == np.int32
        assert sample.logprobs_T.dtype == np.float32
        np.testing.assert_allclose(sample.logprobs_T, policies.reference(models, sample, temperature), atol=1e-4)
        stops = np.isin(sample.tokens_T, how.stop_ids)
        assert not stops[:-1].any()
        assert sample.finish_reason == ("stop" if stops[-1] else "length")
        assert (len(sample.tokens_T) == how.max_tokens) >= (sample.finish_reason == "length")
    assert {sample.finish_reason for sample in samples} == {"stop", "length"}
    assert len({tuple(sample.tokens_T.tolist()) for sample in samples}) == len(samples)  # each has its own seed


def test_the_tokens_follow_the_distribution(fleet: LocalFleet, runner: asyncio.Runner, models: dict[int, Any]) -> None:
    """Of 2,000 first tokens of one prompt, the share of each is its probability, within 5 standard deviations."""
    prompt, count, temperature = np.array([5, 6, 7], dtype=np.int32), 2000, 0.7
    requests = [Request(prompt, seed) for seed in range(count)]
    samples = runner.run(policies.generate(fleet, requests, policies.sampling(temperature, 1, ())))
    with torch.no_grad():
        logits_V = models[1](torch.from_numpy(prompt).long()[None]).logits[0, -1] / temperature
    share_V = logits_V.softmax(-1).numpy()
    found_V = np.bincount([sample.tokens_T[0] for sample in samples], minlength=300) / count
    assert (np.abs(found_V - share_V) < 5 * np.sqrt(share_V / count) + 2 / count).all()


def test_the_same_batch_is_the_same_call_after_call_and_run_after_run(
    fleet: LocalFleet, runner: asyncio.Runner, models: dict[int, Any], other_run: "subprocess.Popen[str]"
) -> None:
    async def digest() -> str:
        return policies.digest(await policies.generate(fleet, policies.batch(), policies.sampling()))

    async def scene() -> list[str]:
        first = await digest()
        # another batch, of which the prefix cache could keep something, and one given up half way
        await policies.generate(fleet, policies.batch(40), policies.sampling(0.9))
        async with aclosing(fleet.generate(policies.batch(), policies.sampling())) as samples:
            await anext(samples)
        # what a validation asks
        asked = [replace(one, seed=1, max_tokens=9, ahead=True) for one in policies.batch(8)]
        greedy = await policies.generate(fleet, asked, policies.sampling(0.0, stop_ids=()))
        assert {len(sample.tokens_T) for sample in greedy} == {9}
        for sample in greedy:
            likeliest_TV = policies.logits(models[1], sample)
            np.testing.assert_array_equal(likeliest_TV.argmax(-1), sample.tokens_T)
        second = await digest()
        await policies.send(fleet, models[2], 2)
        others = await digest()
        await policies.send(fleet, models[1], 1)
        return [first, second, await digest(), others]

    *same, others = runner.run(scene())
    assert len(set(same)) == 1
    assert others not in same
    out, _ = other_run.communicate(timeout=120)
    assert out.split()[-1] == same[0]


def test_samples_come_as_they_finish(fleet: LocalFleet, runner: asyncio.Runner) -> None:
    requests = policies.batch(16)

    async def scene() -> dict[int, int]:
        async with aclosing(fleet.generate(requests, policies.sampling())) as samples:
            return {index: len(sample.tokens_T) async for index, sample in samples}

    lengths, in_order = runner.run(scene()), []
    for part in deal_out(requests, 2):
        of_one_engine = [length for index, length in lengths.items() if index in part]
        # some tokens at a time, among which they have no order
        assert all(
            longest - length < 16 for longest, length in zip(accumulate(of_one_engine, max), of_one_engine, strict=True)
        )
        assert of_one_engine[0] < of_one_engine[-1]
        in_order.append(of_one_engine == sorted(of_one_engine))
    assert not all(in_order), "no burst of more than one token"


def test_a_prompt_goes_to_one_engine() -> None:
    """Prompts of 3, 1, 2 and 2 requests: the first to one engine, the next two to the other, the last evens them."""
    prompts = [np.array([number], dtype=np.int32) for number in (7, 7, 7, 8, 9, 9, 5, 5)]
    requests = [Request(prompt, seed) for seed, prompt in enumerate(prompts)]
    assert deal_out(requests, 2) == [[0, 1, 2, 6, 7], [3, 4, 5]]
    assert deal_out(requests[:3], 2) == [[0, 1, 2], []]


def test_weights_change_in_flight(fleet: LocalFleet, runner: asyncio.Runner, models: dict[int, Any]) -> None:
    async def scene() -> list[Sample]:
        found = await policies.change_in_flight(fleet, models[2], 2)
        await policies.send(fleet, models[1], 1)
        return found

    for sample in runner.run(scene()):
        np.testing.assert_allclose(sample.logprobs_T, policies.reference(models, sample, 1.0), atol=1e-4)


def test_an_engine_that_a_transfer_failed_for_waits_for_weights(
    fleet: LocalFleet, runner: asyncio.Runner, models: dict[int, Any]
) -> None:
    async def fail(name: str) -> None:
        with pytest.raises(EngineLost, match="update: "):
            await fleet.call(name, "update", {"nonsense": 1})

    async def interrupted() -> None:
        async with aclosing(fleet.generate(policies.batch(480), policies.sampling())) as samples:
            await anext(samples)
            await fleet.pause()
            await fail("local 1")
            await fleet.resume(1)
            async for _ in samples:
                pass

    async def scene() -> None:
        requests, how = policies.batch(12), policies.sampling()
        await fleet.pause()
        await fail("local 0")
        await fleet.resume(1)
        assert not fleet.needs_weights()
        alone = await policies.generate(fleet, requests, how)  # by the other
        assert {sample.versions for sample in alone} == {((1, 0),)}
        await policies.send(fleet, models[1], 1)
        with pytest.raises(EngineLost, match="local 1: it has not got weight version 1"):
            await interrupted()
        await fleet.pause()
        await fail("local 0")
        await fleet.resume(1)
        assert fleet.needs_weights()
        waits = asyncio.create_task(policies.generate(fleet, requests, how))
        await asyncio.sleep(0.1)
        assert not waits.done()
        await policies.send(fleet, models[1], 2)
        assert not fleet.needs_weights()
        assert {sample.versions for sample in await waits} == {((2, 0),)}
        await policies.send(fleet, models[1], 1)

    runner.run(scene())


def test_a_paused_engine_generates_nothing(fleet: LocalFleet, runner: asyncio.Runner) -> None:
    async def scene() -> None:
        await fleet.pause()
        work = asyncio.create_task(policies.generate(fleet, policies.batch(4), policies.sampling()))
        await asyncio.sleep(0.2)
        assert not work.done()
        await fleet.resume(1)
        await asyncio.wait_for(work, 20)

    runner.run(scene())


def test_prompt_logprobs_are_at_temperature_1(
    fleet: LocalFleet, runner: asyncio.Runner, models: dict[int, Any]
) -> None:
    prompts = [request.prompt_P for request in policies.batch()[::4]]
    found = runner.run(fleet.prompt_logprobs("local 1", prompts))
    for prompt, logprobs in zip(prompts, found, strict=True):
        rest = Sample(prompt[:1], prompt[1:], logprobs, ((1, 0),), "length")
        np.testing.assert_allclose(logprobs, policies.reference(models, rest, 1.0), atol=1e-4)


def test_what_an_engine_cannot_do_is_told(fleet: LocalFleet, runner: asyncio.Runner) -> None:
    long = [Request(np.zeros(221, dtype=np.int32), 0)]
    with pytest.raises(UserError, match=r"a prompt of 221 tokens and rollout\.max_tokens 100 .* context of 320"):
        runner.run(policies.generate(fleet, long, policies.sampling()))
    with pytest.raises(EngineLost, match="local 0: update: ") as lost:
        runner.run(fleet.call("local 0", "update", {"nonsense": 1}))
    assert lost.value.name == "local 0"


def test_an_engine_that_ends_is_told(tmp_path: Path) -> None:
    async def scene() -> None:
        engine = EngineProcess("local 3", tmp_path, {})
        engine._process.kill()
        told: list[Found] = []
        engine._found = told.append
        with pytest.raises(EngineLost, match="local 3: the engine's process has ended"):
            await asyncio.wait_for(engine.started, 20)
        assert [type(one) for one in told] == [EngineLost]
        with pytest.raises(EngineLost, match="local 3"):
            await asyncio.wait_for(engine.call("pause"), 1)
        await engine.abort()
        await engine.close()

    asyncio.run(scene())


def test_an_engine_ends_with_who_started_it() -> None:
    """It finds its socket closed, be it ever so busy with its start."""
    ours, theirs = multiprocessing.Pipe()
    command = [sys.executable, "-m", "qedmeg.rollout.engine_process", f"{theirs.fileno()}"]
    with subprocess.Popen(command, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        ours.close()
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"finish_reason": "abort"}, "ended with 'abort'"),
        ({"token_ids": [], "logprobs": []}, "0 tokens"),
        ({"logprobs": [-1.0]}, "2 tokens has 1 logprobs"),
        ({"logprobs": [-1.0, float("nan")]}, "no number"),
        ({"logprobs": [-1.0, -9999.0]}, "no number"),
        ({"spans": [("default", 0)]}, "not been sent weights"),
        ({"spans": []}, "not been sent weights"),
    ],
)
def test_what_is_no_sample_is_refused(changed: dict[str, Any], message: str) -> None:
    given = {
        "prompt_P": np.array([1], dtype=np.int32),
        "token_ids": [1, 2],
        "logprobs": [-1.0, -2.0],
        "spans": [("3", 0), ("4", 1)],
        "finish_reason": "stop",
    }
    assert make_sample(**given).versions == ((3, 0), (4, 1))
    with pytest.raises(ValueError, match=message):
        make_sample(**(given | changed))

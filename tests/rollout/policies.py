"""Two small models, what transformers makes of their samples, and how engines get their weights."""

import asyncio
import hashlib
import socket
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from qedmeg.rollout.engine import rollout_options
from qedmeg.rollout.fleet import Fleet, Request
from qedmeg.rollout.gloo_link import Slots, TrainerLink
from qedmeg.rollout.sample import Sample, Sampling
from tests.checkpoints import make_checkpoint

MAX_LENGTH = 320
SECONDS = 60.0
STOPS = tuple(range(0, 300, 60))


def options(**others: Any) -> dict[str, Any]:
    """What the tests' engines are started with."""
    small_blocks = {"block_size": 32}  # answers go on from one into the next
    return rollout_options(MAX_LENGTH, tp=1, concurrency=16, kv_cache_gib=0.0625) | small_blocks | others


def make_policies(folder: Path) -> None:
    """Weights of version 1 in folder/1, other ones in folder/2."""
    for version in (1, 2):
        model = make_checkpoint(folder / f"{version}", num_hidden_layers=2)
        if version == 2:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.02)
            model.save_pretrained(folder / "2")


def load(folder: Path, version: int) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder / f"{version}", dtype=torch.float32).eval()


def batch(count: int = 24, longest: int = 40) -> list[Request]:
    """Prompts in groups of four."""
    draw = np.random.default_rng(5)
    prompts = [draw.integers(0, 300, draw.integers(2, longest)).astype(np.int32) for _ in range(count // 4)]
    return [Request(prompts[i // 4], 1000 + i) for i in range(count)]


def sampling(temperature: float = 1.0, max_tokens: int = 100, stop_ids: tuple[int, ...] = STOPS) -> Sampling:
    return Sampling(temperature=temperature, max_tokens=max_tokens, stop_ids=stop_ids, seed=0)


async def generate(fleet: Fleet, requests: Sequence[Request], how: Sampling) -> list[Sample]:
    """All samples, in the requests' order."""
    async with aclosing(fleet.generate(requests, how)) as samples:
        found = dict([pair async for pair in samples])
    assert sorted(found) == list(range(len(requests)))
    return [found[index] for index in range(len(requests))]


def digest(samples: Sequence[Sample]) -> str:
    """Of every bit of the tokens and logprobs."""
    told = hashlib.sha256()
    for sample in samples:
        told.update(sample.tokens_T.tobytes() + sample.logprobs_T.tobytes())
    return told.hexdigest()


def reference(models: dict[int, Any], sample: Sample, temperature: float) -> np.ndarray:
    """The sample's logprobs [T] by transformers, each of the weights that generated the token."""
    tokens = torch.tensor([[*sample.prompt_P.tolist(), *sample.tokens_T.tolist()]])
    first, expected = len(sample.prompt_P), np.zeros(len(sample.tokens_T), dtype=np.float32)
    for version, start in sample.versions:
        with torch.no_grad():
            logits_TV = models[version](tokens).logits[0, first - 1 : -1] / temperature
        logprobs_T = logits_TV.log_softmax(-1).gather(1, tokens[0, first:, None])[:, 0]
        expected[start:] = logprobs_T.numpy()[start:]
    return expected


def logits(model: Any, sample: Sample) -> torch.Tensor:
    """Those [T, V] that a sample's tokens were drawn by, by transformers."""
    tokens = torch.tensor([[*sample.prompt_P.tolist(), *sample.tokens_T.tolist()]])
    with torch.no_grad():
        return model(tokens).logits[0, len(sample.prompt_P) - 1 : -1]


async def send(fleet: Fleet, model: Any, version: int) -> None:
    """Send weights to every engine, in one bucket, as the trainer does at each step: pause, transfer, resume."""
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    whole = torch.cat([tensor.flatten().view(torch.uint8) for tensor in weights.values()])
    slots = Slots([len(whole)])
    info = {
        "names": list(weights),
        "dtype_names": ["float32"] * len(weights),
        "shapes": [list(tensor.shape) for tensor in weights.values()],
        "buckets": [len(weights)],
    }
    await fleet.pause()
    for name, workers in fleet.live():
        listener, size = socket.create_server(("127.0.0.1", 0)), workers + 1
        host, port = listener.getsockname()
        joining = asyncio.create_task(asyncio.to_thread(TrainerLink, listener, size, SECONDS))
        where = {"master_address": host, "master_port": port, "world_size": size, "seconds": SECONDS}
        await fleet.call(name, "init_transfer", where | {"memory": asdict(slots.describe())})
        link = await joining
        await fleet.call(name, "start_update", {})
        slots.restart()
        works = link.send(slots.allocate(len(whole)).copy_(whole))
        await fleet.call(name, "update", info)
        for work in works:
            work.wait()
        await fleet.call(name, "finish_update", {"version": version})
        link.close()
    slots.close()
    await fleet.resume(version)


async def change_in_flight(fleet: Fleet, model: Any, version: int) -> list[Sample]:
    """All samples of many requests, of which the fourth is followed by weights of `version`: some are of those before,
    some of both, some of the new ones. So many are asked for, of many lengths, that however slow or fast the machine
    is, requests are on their way when the weights come."""
    requests, found = batch(160), {}
    async with aclosing(fleet.generate(requests, sampling())) as samples:
        async for index, sample in samples:
            found[index] = sample
            if len(found) == 4:
                await send(fleet, model, version)
    assert sorted(found) == list(range(len(requests)))
    spans = {tuple(of for of, _ in sample.versions) for sample in found.values()}
    assert spans == {(version - 1,), (version - 1, version), (version,)}
    return list(found.values())

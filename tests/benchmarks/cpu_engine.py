"""An engine for rollouts on a CPU as qedmeg starts vLLM (qedmeg/rollout: cpu_engine, decode_*), and as it is by itself.

    python tests/benchmarks/cpu_engine.py

Batches of `--requests` answers of 50 to 130 tokens by a model of the demo's size with random weights, one thread. The
two engines are processes of their own and take turns, batch by batch; medians of `--repeats` each, in the engine's
CPU time a token. The floor is the model's arithmetic, 2 operations a parameter and token, at the rate of the product of
its widest layer. Status 1 where ours takes longer.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from qedmeg import onednn
from qedmeg.data.problems import generate
from qedmeg.demo.base_model import make_base_model
from qedmeg.rollout.engine import Request, RolloutEngine, rollout_options
from qedmeg.rollout.sample import Sampling

RESULT = Path(__file__).with_suffix(".json")
LONGEST_PROMPT, LONGEST_ANSWER = 40, 130
BY_ITSELF = {
    "ir_op_priority": {"rms_norm": ["native"], "fused_add_rms_norm": ["native"]},
    "scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler",
    "worker_cls": "auto",
}


def batch(count: int, seed: int) -> list[Request]:
    """Eight answers of each prompt, as long as they may be."""
    draw, requests = np.random.default_rng(seed), []
    for place in range(count):
        if place % 8 == 0:
            prompt_P = draw.integers(5, 500, draw.integers(25, LONGEST_PROMPT)).astype(np.int32)
        requests.append(Request(prompt_P, seed * count + place, int(draw.integers(50, LONGEST_ANSWER))))
    return requests


def serve(connection: Connection, model: Path, count: int, changed: dict[str, Any]) -> None:
    """Generate the batch of each seed that comes; answers with its seconds of CPU and tokens."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    options = rollout_options(LONGEST_PROMPT + LONGEST_ANSWER, 1, count, None) | {"load_format": "auto"} | changed
    for name in ("weight_transfer_config", "worker_extension_cls"):
        del options[name]
    if changed:
        _give_methods_back()
    engine = RolloutEngine(model, options)
    while (seed := connection.recv()) is not None:
        requests, tokens = batch(count, seed), 0
        start = time.process_time()
        engine.begin(requests, Sampling(1.0, LONGEST_ANSWER, (), 0))
        while engine.busy:  # not `engine.step`, which refuses answers of weights that nobody sent
            tokens += sum(len(output.outputs[0].token_ids) for output in engine._engine.step())
        connection.send((time.process_time() - start, tokens))


def _give_methods_back() -> None:
    """vLLM's own for those that qedmeg.rollout.cpu_engine replaces in this process."""
    from vllm.v1.engine.logprobs import LogprobsProcessor
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    from qedmeg.rollout import cpu_engine

    TopKTopPSampler.forward_cpu = cpu_engine.sample_by_vllm
    LogprobsProcessor._update_sample_logprobs = cpu_engine.add_logprobs_by_vllm


def highest_rate() -> float:
    """Operations a second of the model's widest product, on one thread."""
    torch.set_num_threads(1)
    left, right = torch.randn(128, 256), torch.randn(256, 1024)
    seconds = []
    for _ in range(200):
        start = time.perf_counter()
        onednn.product(left, right)
        seconds.append(time.perf_counter() - start)
    return 2 * 128 * 256 * 1024 / statistics.median(seconds)


@contextmanager
def engine(model: Path, count: int, changed: dict[str, Any]) -> Iterator[Connection]:
    """A process with an engine, which is asked over what is returned."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, model, count, changed), daemon=True)
    process.start()
    yield ours
    ours.send(None)
    process.join(30)


def main() -> int:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=128, help="of a batch (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="batches of each (default: %(default)s)")
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder)
        parameters = make_base_model(model, generate("train", 200, 0), 0)
        with engine(model, arguments.requests, {}) as ours, engine(model, arguments.requests, BY_ITSELF) as theirs:
            seconds: dict[str, list[float]] = {"ours": [], "vllm": []}
            for seed in range(arguments.repeats + 2):
                for name, connection in (("ours", ours), ("vllm", theirs)):
                    connection.send(seed)
                    taken, tokens = connection.recv()
                    seconds[name].append(taken / tokens * 1e6)
    found = {name: sorted(taken[2:]) for name, taken in seconds.items()}
    medians = {name: statistics.median(taken) for name, taken in found.items()}
    result: dict[str, Any] = {"requests": arguments.requests, "microseconds_a_token": found, "medians": medians}
    result["times"], result["floor"] = medians["vllm"] / medians["ours"], 2 * parameters / highest_rate() * 1e6
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    for name, taken in found.items():
        print(f"{name}: {medians[name]:.0f} µs of CPU a token ({taken[0]:.0f} to {taken[-1]:.0f})")
    print(f"{result['times']:.2f} times vLLM's speed; floor {result['floor']:.0f} µs")
    return int(result["times"] < 1)


if __name__ == "__main__":
    sys.exit(main())

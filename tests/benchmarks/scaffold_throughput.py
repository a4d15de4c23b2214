"""How much of a server's capacity 1,000 scaffold problems side by side use, and in what memory.

    python tests/benchmarks/scaffold_throughput.py

The server answers every request after 50 ms, so many at a time; what it could answer in the time is its capacity. It
runs in a process of its own on the same machine. Each problem takes the reasoning cache's five calls, every reply is
kept on disk as in an evaluation. Asked are 90 % of the capacity, in less than 1 GB.
"""

import argparse
import asyncio
import json
import multiprocessing
import resource
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from aiohttp import web

sys.path.insert(0, str(Path(__file__).parents[2]))

from qedmeg.chat.model import ServedModel
from qedmeg.config import EndpointConfig
from qedmeg.evaluation.generate import generate
from qedmeg.evaluation.problem import BenchmarkProblem
from qedmeg.evaluation.results import EvaluationRun, Results
from qedmeg.grading.grader import ProofProblem
from qedmeg.reasoning.scaffolds import make_scaffold
from qedmeg.reasoning.session import PROVER

RESULT = Path(__file__).with_suffix(".json")
LATENCY = 0.05
CALLS = 5
SHARE_BAR, GB_BAR = 0.9, 1.0
ANSWER = "A step follows from the one before. " * 60


def serve(slots: int, told: Connection) -> None:
    """A server that answers `slots` requests at a time, each after the latency."""
    free = asyncio.Semaphore(slots)
    served = {"requests": 0}

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        async with free:
            await asyncio.sleep(LATENCY)
        served["requests"] += 1
        message = {"role": "assistant", "content": ANSWER, "reasoning_content": ANSWER}
        usage = {"prompt_tokens": 100, "completion_tokens": 1000}
        return web.json_response({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})

    async def run() -> None:
        application = web.Application(client_max_size=2**26)
        application.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
        await site.start()
        told.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(run())


def measure(folder: Path, problems: int, slots: int) -> dict[str, Any]:
    """One run: its share of the capacity."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(slots, theirs), daemon=True)
    server.start()
    config = EndpointConfig(
        base_url=f"http://127.0.0.1:{ours.recv()}/v1", model="scripted", concurrency=min(1000, 4 * slots)
    )
    asked = [BenchmarkProblem(ProofProblem(f"p{n}", f"Prove {n}.", "7 for a proof."), "", "") for n in range(problems)]

    async def run(results: Results) -> float:
        model = ServedModel(config)
        started = time.monotonic()
        done = await generate(
            results,
            "r",
            asked,
            1,
            make_scaffold("reasoning_cache", {}),
            {PROVER: model},
            budget=None,
            concurrency=problems,
        )
        seconds = time.monotonic() - started
        assert (done.finished, model.account.requests) == (problems, CALLS * problems)
        await model.close()
        return seconds

    with closing(Results(folder / f"{slots}-{time.monotonic_ns()}.sqlite")) as results:
        results.begin(EvaluationRun("r", "b", "m", "reasoning_cache", 1, {}), asked)
        seconds = asyncio.run(run(results))
    server.terminate()
    server.join()
    capacity = slots / LATENCY
    return {
        "requests_per_second": CALLS * problems / seconds,
        "capacity": capacity,
        "share": CALLS * problems / seconds / capacity,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


def main() -> int:
    """Run, print and keep; status 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=1000, help="side by side (default: %(default)s)")
    parser.add_argument("--slots", type=int, default=8, help="requests that the server answers at a time (default: 8)")
    parser.add_argument("--repeats", type=int, default=3, help="(default: %(default)s)")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="scaffold-throughput-"))
    try:
        runs = [measure(folder, args.problems, args.slots) for _ in range(args.repeats)]
    finally:
        shutil.rmtree(folder)
    share, peak = statistics.median(run["share"] for run in runs), max(run["peak_gb"] for run in runs)
    print(f"{share:.0%} of {runs[0]['capacity']:g} requests/s (median of {len(runs)}), peak {peak:.2f} GB")
    RESULT.write_text(json.dumps({"problems": args.problems, "slots": args.slots, "runs": runs}, indent=1) + "\n")
    return 0 if share >= SHARE_BAR and peak < GB_BAR else 1


if __name__ == "__main__":
    sys.exit(main())

"""How long the viewer takes to start and to answer over 20,000 attempts, and the memory that it holds.

    python tests/benchmarks/viewer_speed.py

20 runs of 100 problems with 10 attempts each, 12 kB a proof, 5 rubric items with reasons. Each page is asked for five
times, with other filters each time, so that no answer is a kept one; the median counts.
"""

import asyncio
import json
import platform
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from aiohttp.test_utils import TestClient, TestServer

from qedmeg.evaluation.problem import BenchmarkProblem
from qedmeg.evaluation.results import Attempt, EvaluationRun, Results, StoredGrade
from qedmeg.grading.grade import Cost, Failed, Graded, ItemGrade
from qedmeg.grading.grader import ProofProblem
from qedmeg.viewer.catalogue import Catalogue
from qedmeg.viewer.server import make_app

RUNS, PROBLEMS, SAMPLES = 20, 100, 10
PROOF = "By the inequality $x^2 + y^2 \\ge 2xy$ we have what was to be shown.\n\n" * 170
REASON = "The step is there, with its reason, and follows from $x^2 \\ge 0$. " * 4
PAGES = {
    "runs": "/?low={}",
    "runs, searched": "/?q=number+{}",
    "a problem": "/problem?b=bench&p=p{}",
    "an attempt": "/attempt?r=run+{}&p=p3&n=1",
    "grading": "/grade?r=run+{}&p=p3&n=1",
}


async def fill(results: Results) -> None:
    problems = [
        BenchmarkProblem(ProofProblem(f"p{n}", f"Prove number {n}. " * 20, "7 for a proof."), f"{n % 3}", f"c{n % 5}")
        for n in range(PROBLEMS)
    ]
    for run in range(RUNS):
        name = f"run {run}"
        results.begin(EvaluationRun(name, "bench", name, "single", SAMPLES, {}), problems)
        work = []
        for number in range(PROBLEMS * SAMPLES):
            problem, sample = f"p{number // SAMPLES}", number % SAMPLES
            points = (number * 7 + run) % 8
            items = tuple(ItemGrade(f"item {n}", points / 5, 1, REASON) for n in range(5))
            grade = Failed("timeout", "none") if number % 50 == 0 else Graded(points, 7, items, "judge", Cost())
            attempt = Attempt(problem, sample, PROOF, "done", 1000 + number, 1, 10, 1000, Cost().money, 1.0)
            work += [
                results.add_attempt(name, attempt),
                results.add_grade(name, StoredGrade(problem, sample, "judge", 0, grade)),
            ]
        await asyncio.gather(*work)


async def ask(catalogue: Catalogue) -> dict[str, float]:
    seconds: dict[str, float] = {}
    async with TestClient(TestServer(make_app(catalogue, "127.0.0.1"))) as client:
        for name, address in PAGES.items():
            times = []
            for number in range(5):
                began = time.perf_counter()
                async with client.get(address.format(number)) as response:
                    assert response.status == 200, await response.text()
                    await response.read()
                times.append(time.perf_counter() - began)
            seconds[name] = round(median(times), 4)
    return seconds


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.sqlite"
        results = Results(path)
        asyncio.run(fill(results))
        results.close()
        before = psutil.Process().memory_info().rss
        began = time.perf_counter()
        catalogue = Catalogue([path])
        report: dict[str, Any] = {
            "machine": f"{platform.machine()}, {psutil.cpu_count()} cores",
            "attempts": RUNS * PROBLEMS * SAMPLES,
            "file_MB": round(path.stat().st_size / 1e6),
            "start_seconds": round(time.perf_counter() - began, 2),
            "memory_MB": round((psutil.Process().memory_info().rss - before) / 1e6),
            "page_seconds": asyncio.run(ask(catalogue)),
        }
    text = json.dumps(report, indent=1)
    print(text)
    Path(__file__).with_suffix(".json").write_text(text + "\n")


if __name__ == "__main__":
    main()

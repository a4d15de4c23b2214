"""How often 95 % intervals cover the truth: those of qedmeg, and others that one might use.

Benchmarks are drawn from populations of problems whose true mean is known (tests/evaluation/drawn_points.py).

python tests/benchmarks/interval_coverage.py
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[2]))

from qedmeg.evaluation.statistics import CONFIDENCE, Interval, bootstrap_interval, mean_interval, repeat_interval
from qedmeg.monitor.progress import bar
from tests.evaluation.drawn_points import EVEN, MIDDLING, STRONG, VERY_WEAK, WEAK, Population

RESULT = Path(__file__).with_suffix(".json")
SIZES = ((60, 3), (30, 3), (145, 3), (60, 1), (60, 8), (15, 3), (10, 3))
"""Problems and attempts at each."""
RESAMPLES = 500
_TAILS = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2


def student(points_NS: npt.NDArray[np.float64], rng: np.random.Generator) -> Interval:
    """Student's t over problems' means."""
    values_N = points_NS.mean(1)
    return Interval(*stats.t.interval(CONFIDENCE, len(values_N) - 1, values_N.mean(), max(stats.sem(values_N), 1e-12)))


def percentile(points_NS: npt.NDArray[np.float64], rng: np.random.Generator) -> Interval:
    """Percentiles of the means of resampled problems."""
    values_N = points_NS.mean(1)
    drawn_RN = rng.integers(0, len(values_N), (RESAMPLES, len(values_N)))
    return Interval(*np.quantile(values_N[drawn_RN].mean(1), _TAILS))


def nested(points_NS: npt.NDArray[np.float64], rng: np.random.Generator) -> Interval:
    """Percentiles of the means of resampled attempts inside resampled problems."""
    problems, samples = points_NS.shape
    drawn_RN = rng.integers(0, problems, (RESAMPLES, problems))
    inside_RNS = rng.integers(0, samples, (RESAMPLES, problems, samples))
    return Interval(*np.quantile(points_NS[drawn_RN[..., None], inside_RNS].mean((1, 2)), _TAILS))


OVER_PROBLEMS: dict[str, Callable[[npt.NDArray[np.float64], np.random.Generator], Interval | None]] = {
    "mean_interval": lambda points_NS, rng: mean_interval(points_NS.mean(1)),
    "bootstrap_interval": lambda points_NS, rng: bootstrap_interval(
        points_NS.mean(1), seed=int(rng.integers(2**31)), resamples=RESAMPLES
    ),
    "student": student,
    "percentile": percentile,
    "nested": nested,
}


def measure(population: Population, problems: int, samples: int, simulations: int) -> dict[str, Any]:
    """Share of intervals that cover the truth, and their mean width in points, by method."""
    rng = np.random.default_rng(0)
    points_BNS, own_means_B = population.draw(rng, simulations, problems, samples)
    result: dict[str, Any] = {
        "population": population.name,
        "scale": population.scale,
        "problems": problems,
        "samples": samples,
    }
    for name, method in OVER_PROBLEMS.items():
        found = [method(points_NS, rng) for points_NS in points_BNS]
        result[name] = _shares(found, np.full(simulations, population.true_mean()))
    if samples > 1:
        result["repeat_interval"] = _shares([repeat_interval(one.tolist()) for one in points_BNS], own_means_B)
    return result


def _shares(found: list[Interval | None], truths_B: npt.NDArray[np.float64]) -> dict[str, float]:
    pairs = [(one, truth) for one, truth in zip(found, truths_B, strict=True) if one is not None]
    covered = np.mean([one.low - 1e-9 <= truth <= one.high + 1e-9 for one, truth in pairs])
    return {"covered": round(float(covered), 4), "width": round(float(np.mean([o.high - o.low for o, _ in pairs])), 3)}


def main() -> int:
    """Simulate all settings; print a table and write the JSON file beside this script."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python tests/benchmarks/interval_coverage.py --simulations 1000",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--simulations", type=int, default=1000, help="benchmarks of each setting (%(default)s)")
    arguments = parser.parse_args()
    kinds = (MIDDLING, EVEN, WEAK, STRONG, VERY_WEAK)
    populations = [Population(*kind, scale) for kind in kinds for scale in ("0/1/6/7", "0..7", "0/7")]
    settings = [(population, *size) for size in SIZES for population in populations]
    results = []
    with bar("simulating", len(settings)) as progress:
        for population, problems, samples in settings:
            results.append(measure(population, problems, samples, arguments.simulations))
            progress.advance()
    names = [*OVER_PROBLEMS, "repeat_interval"]
    print(f"covered, % (width in points)\n{'':38}" + "".join(f"{name:>20}" for name in names))
    for row in results:
        cells = [
            f"{100 * row[name]['covered']:.1f} ({row[name]['width']:.2f})" if name in row else "-" for name in names
        ]
        what = f"{row['population']:16} {row['scale']:8} {row['problems']:4} × {row['samples']}"
        print(f"{what:38}" + "".join(f"{cell:>20}" for cell in cells))
    report = {
        "simulations": arguments.simulations,
        "resamples": RESAMPLES,
        "confidence": CONFIDENCE,
        "results": results,
    }
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {RESULT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

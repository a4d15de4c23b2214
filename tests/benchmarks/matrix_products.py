"""fp32 matrix products by torch's own way (MKL) and by oneDNN, as qedmeg.onednn has it: a layer's forward and backward.

    python tests/benchmarks/matrix_products.py --threads 1 2

The two take turns, product by product; medians of `--repeats` each. The floor is what the CPU's units can do, told by
the highest rate of any product here. Status 1 where oneDNN is slower for a product that it is asked for.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from qedmeg import device, onednn

RESULT = Path(__file__).with_suffix(".json")
LAYERS = {"demo, gate and up": (1536, 256), "demo, down": (256, 768), "0.6 B, q, k and v": (4096, 1024)}
"""Outputs and inputs."""
TOKENS = (64, 512, 2048)


def measure(repeats: int) -> list[dict[str, Any]]:
    """One line for each layer, number of tokens and product."""
    lines = []
    for name, (outputs, inputs) in LAYERS.items():
        for tokens in TOKENS:
            x, weight, grad = torch.randn(tokens, inputs), torch.randn(outputs, inputs), torch.randn(tokens, outputs)
            products = {"forward": (x, weight.T), "inputs' gradient": (grad, weight), "weight's gradient": (grad.T, x)}
            for product, (left, right) in products.items():
                result = torch.empty(left.shape[0], right.shape[1])
                ways = partial(torch.mm, left, right, out=result), partial(onednn.product, left, right)
                seconds = turns(ways, repeats)
                operations = 2 * tokens * outputs * inputs
                rates = [operations / one / 1e9 for one in seconds]
                lines.append({
                    "layer": name, "tokens": tokens, "product": product, "torch_gigaflops": rates[0],
                    "onednn_gigaflops": rates[1], "times": rates[1] / rates[0],
                })  # fmt: skip
                print(f"{name}, {tokens} tokens, {product}: {rates[0]:.0f} and {rates[1]:.0f} GFLOP/s", flush=True)
    return lines


def turns(ways: tuple[Callable[[], Any], ...], repeats: int) -> list[float]:
    """Median seconds of each way, which take turns."""
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(repeats + 2):
        for way, found in zip(ways, seconds, strict=True):
            start = time.perf_counter()
            way()
            found.append(time.perf_counter() - start)
    return [statistics.median(found[2:]) for found in seconds]


def main() -> int:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="(default: 1 2)")
    parser.add_argument("--repeats", type=int, default=21, help="of each product (default: %(default)s)")
    arguments = parser.parse_args()
    device.keep_freed_memory()
    result: dict[str, Any] = {"chosen_on_this_cpu": onednn.use_onednn() is not None}
    slower = False
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        lines = measure(arguments.repeats)
        times = [line["times"] for line in lines]
        slower |= min(times) < 1
        result[f"{threads} threads"] = {"median_times": statistics.median(times), "products": lines}
        print(f"{threads} threads: {statistics.median(times):.2f} times torch's rate, at least {min(times):.2f}")
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    return int(slower and result["chosen_on_this_cpu"])


if __name__ == "__main__":
    sys.exit(main())

"""Peak memory of the output layer's loss, forward and backward, against sequence length: in chunks and in full.

python tests/benchmarks/output_loss_memory.py
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from pathlib import Path
from typing import Any

VOCABULARY = 151_936  # Qwen3's
RESULT = Path(__file__).with_suffix(".json")


def measure(kind: str, tokens: int, hidden: int) -> dict[str, Any]:
    """Memory above that of inputs and imports, in MiB, and seconds; run it in a process of its own."""
    import torch
    import torch.distributed as dist
    import torch.nn.functional as F

    from qedmeg.model.output_loss import summed_cross_entropy

    torch.manual_seed(0)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    hidden_TH = torch.randn(tokens, hidden, requires_grad=True)
    weight_VH = torch.randn(VOCABULARY, hidden).mul_(0.02).requires_grad_()
    labels_T = torch.randint(0, VOCABULARY, (tokens,))
    (hidden_TH[:64] @ weight_VH[:64].T).sum().backward()  # threads and buffers of the matrix products
    hidden_TH.grad = weight_VH.grad = None
    before = _peak_mib()
    start = time.perf_counter()
    if kind == "chunked":
        mask_T = torch.ones(tokens)
        loss = summed_cross_entropy(hidden_TH, weight_VH, labels_T, mask_T, VOCABULARY, dist.group.WORLD)
    else:
        loss = F.cross_entropy(hidden_TH @ weight_VH.T, labels_T, reduction="sum")
    loss.backward()
    seconds = time.perf_counter() - start
    return {
        "kind": kind,
        "tokens": tokens,
        "peak_mib": round(_peak_mib() - before),
        "seconds": round(seconds, 2),
        "loss": loss.item(),
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Measure each length in both ways; print a table and write the JSON file beside this script."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python tests/benchmarks/output_loss_memory.py --tokens 1024 4096",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024, 2048, 4096], help="sequence lengths")
    parser.add_argument("--hidden", type=int, default=128, help="hidden size")
    arguments = parser.parse_args()
    results = []
    print("tokens      kind   peak MiB   seconds")
    for tokens in arguments.tokens:
        for kind in ("chunked", "full"):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                result = pool.apply(measure, (kind, tokens, arguments.hidden))
            print(f"{tokens:6d} {kind:>9} {result['peak_mib']:10d} {result['seconds']:9.2f}", flush=True)
            results.append(result)
    weight_mib = round(VOCABULARY * arguments.hidden * 4 / 2**20)
    report = {"vocabulary": VOCABULARY, "hidden": arguments.hidden, "weight_mib": weight_mib, "results": results}
    RESULT.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {RESULT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

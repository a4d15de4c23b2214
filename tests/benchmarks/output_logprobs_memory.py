"""Peak memory of log-probabilities and entropies, forward and backward, against sequence length: in chunks and naively.

python tests/benchmarks/output_logprobs_memory.py
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
TEMPERATURE = 0.8
RESULT = Path(__file__).with_suffix(".json")


def measure(kind: str, tokens: int, hidden: int) -> dict[str, Any]:
    """Memory above that of inputs and imports, in MiB, and seconds; run it in a process of its own."""
    import torch
    import torch.distributed as dist

    from qedmeg.model.output_logprobs import token_logprobs

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
        logprobs_T, entropy_T = token_logprobs(
            hidden_TH,
            weight_VH,
            labels_T,
            torch.ones(tokens),
            VOCABULARY,
            dist.group.WORLD,
            temperature=TEMPERATURE,
            entropy=True,
        )
    else:
        logprobs_TV = ((hidden_TH @ weight_VH.T) / TEMPERATURE).log_softmax(1)
        logprobs_T = logprobs_TV.gather(1, labels_T[:, None]).squeeze(1)
        entropy_T = -(logprobs_TV.exp() * logprobs_TV).sum(1)
        del logprobs_TV
    loss = -(logprobs_T + 0.1 * entropy_T).mean()
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
        epilog="example:\n  python tests/benchmarks/output_logprobs_memory.py --tokens 1024 --naive 512 1024",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096, 16384], help="lengths, in chunks")
    parser.add_argument("--naive", type=int, nargs="+", default=[1024, 2048, 4096], help="lengths, naively")
    parser.add_argument("--hidden", type=int, default=128, help="hidden size")
    arguments = parser.parse_args()
    results = []
    print("tokens      kind   peak MiB   seconds")
    for kind, tokens in [("chunked", n) for n in arguments.tokens] + [("naive", n) for n in arguments.naive]:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            result = pool.apply(measure, (kind, tokens, arguments.hidden))
        print(f"{tokens:6d} {kind:>9} {result['peak_mib']:10d} {result['seconds']:9.2f}", flush=True)
        results.append(result)
    # Both ends of the naive lengths give a straight line; it is drawn out to the longest length that chunks allow.
    naive = sorted((result["tokens"], result["peak_mib"]) for result in results if result["kind"] == "naive")
    (low, low_mib), (high, high_mib) = naive[0], naive[-1]
    longest = max((result for result in results if result["kind"] == "chunked"), key=lambda result: result["tokens"])
    slope = (high_mib - low_mib) / (high - low)
    extrapolated = round(high_mib + slope * (longest["tokens"] - high))
    report = {
        "vocabulary": VOCABULARY,
        "hidden": arguments.hidden,
        "weight_mib": round(VOCABULARY * arguments.hidden * 4 / 2**20),
        "results": results,
        "at_tokens": longest["tokens"],
        "chunked_mib_measured": longest["peak_mib"],
        "naive_mib_extrapolated": extrapolated,
        "times_less": round(extrapolated / longest["peak_mib"], 1),
        "times_less_both_measured": round(high_mib / longest["peak_mib"], 1),
    }
    RESULT.write_text(json.dumps(report, indent=2) + "\n")
    print(
        f"at {longest['tokens']} tokens: {longest['peak_mib']} MiB in chunks (measured); naively {extrapolated} MiB "
        f"(extrapolated from {low} and {high} tokens): {report['times_less']} times as much"
    )
    print(f"written to {RESULT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

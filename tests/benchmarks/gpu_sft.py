"""Tokens a second, share of the GPU's matrix rate and peak memory of SFT steps of a Qwen3-4B-shaped model on one GPU.

    python tests/benchmarks/gpu_sft.py

Each way of computing (torch's layers, Transformer Engine in bf16, its FP8 recipes) runs in a process of its own, with
random weights and documents, on the policy and the optimizer that recipes/sft.py has. The share is of the dense bf16
matrix rate that is measured in the same process, for FP8 too. An update's arithmetic is counted as 6 operations for
each weight of a matrix and token, output layer included, and 6 for each pair of attended tokens and attention width.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

RESULT = Path(__file__).with_suffix(".json")
WAYS: dict[str, dict[str, Any]] = {
    "torch": {},
    "transformer engine": {"transformer_engine": True},
    "fp8 tensorwise": {"transformer_engine": True, "fp8": "tensorwise"},
    "fp8 delayed": {"transformer_engine": True, "fp8": "delayed"},
    "fp8 blockwise": {"transformer_engine": True, "fp8": "blockwise"},
    "transformer engine, fused gradients": {"transformer_engine": True, "gradient_accumulation_fusion": True},
    "fp8 blockwise, fused gradients": {
        "transformer_engine": True,
        "gradient_accumulation_fusion": True,
        "fp8": "blockwise",
    },
}
SHAPE = {
    "name": "Qwen3ForCausalLM",
    "layers": 36,
    "hidden": 2560,
    "ffn_hidden": 9728,
    "heads": 32,
    "kv_heads": 8,
    "head_dim": 128,
    "vocabulary": 151936,
    "max_positions": 40960,
    "norm_eps": 1e-6,
    "rope_base": 1e6,
    "rope_factor": None,
    "tied": True,
}
DOCUMENT, DOCUMENTS = 4096, 2
"""Tokens of a document, and documents of a micro-batch."""


def matrix_rate() -> float:
    """Operations a second of a bf16 product of 8192 × 8192 matrices with random entries."""
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    for _ in range(5):
        a @ b
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(20):
        a @ b
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - started)


def operations() -> float:
    """Of a forward and backward pass over one document."""
    attention = SHAPE["heads"] * SHAPE["head_dim"]
    keys = SHAPE["kv_heads"] * SHAPE["head_dim"]
    layer = SHAPE["hidden"] * (2 * attention + 2 * keys + 3 * SHAPE["ffn_hidden"])
    weights = SHAPE["layers"] * layer + SHAPE["vocabulary"] * SHAPE["hidden"]
    return 6.0 * DOCUMENT * weights + 6.0 * SHAPE["layers"] * DOCUMENT**2 * attention


def measure(compute: dict[str, Any], microbatches: int, steps: int) -> dict[str, Any]:
    """Train `steps` updates after two that are not counted."""
    from qedmeg import device, parallel
    from qedmeg.config import OptimizerConfig
    from qedmeg.data.chat import Document
    from qedmeg.data.loader import Step
    from qedmeg.data.packing import make_batch
    from qedmeg.model.build import Compute
    from qedmeg.model.families import Architecture
    from qedmeg.parallel import Parallelism
    from qedmeg.training.optimizer import Optimizer
    from qedmeg.training.policy import Policy

    device.prepare()
    parallelism = Parallelism()
    parallel.initialize(parallelism, seed=1)
    architecture = Architecture(**SHAPE, dtype=torch.bfloat16)
    policy = Policy(architecture, parallelism, Compute(dtype=torch.bfloat16, **compute), prompts_per_step=4)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.chunks[0].named_parameters():
            parameter.fill_(1.0) if "norm" in name else parameter.normal_(std=0.02)
    optimizer = Optimizer(policy.ddp, OptimizerConfig(lr=1e-4), torch.bfloat16)
    optimizer.megatron.reload_model_params()
    generator = np.random.default_rng(0)
    trained = np.ones(DOCUMENT, dtype=bool)

    def step() -> Step:
        def document() -> Document:
            return Document(generator.integers(0, SHAPE["vocabulary"], DOCUMENT).astype(np.int32), trained)

        batches = tuple(
            make_batch([document() for _ in range(DOCUMENTS)], DOCUMENT * DOCUMENTS) for _ in range(microbatches)
        )
        tokens = DOCUMENT * DOCUMENTS * microbatches
        return Step(batches, tuple(range(DOCUMENTS * microbatches)), tokens, tokens, float(tokens), 0.0, 1.0)

    rate = matrix_rate()
    seconds, losses = [], []
    batch = step()  # the same one at every step: its loss has to fall
    for _ in range(2 + steps):
        torch.cuda.synchronize()
        started = time.perf_counter()
        policy.prepare_for_training_step()
        loss, _ = policy.get_loss_and_metrics(batch, forward_only=False)
        optimizer.step()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        losses.append(loss)
    counted = seconds[2:]
    median = statistics.median(counted)
    documents = DOCUMENTS * microbatches
    return {
        "tokens_per_second": documents * DOCUMENT / median,
        "seconds": counted,
        "tflops": documents * operations() / median / 1e12,
        "bf16_matrix_tflops": rate / 1e12,
        "share": documents * operations() / median / rate,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "losses": losses,
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }


def main() -> int:
    """Run every way in turn; status 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS), help="(default: all)")
    parser.add_argument("--microbatches", type=int, default=4, help="of a step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="counted ones (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds a way (default: %(default)s)")
    parser.add_argument("--recompute", default="none", choices=("none", "selective", "full"))
    parser.add_argument("--out", type=Path, default=RESULT, help="(default: %(default)s)")
    parser.add_argument("--one", choices=list(WAYS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        found = measure(WAYS[args.one] | {"recompute": args.recompute}, args.microbatches, args.steps)
        args.out.write_text(json.dumps(found))
        return 0
    result: dict[str, Any] = {"document": DOCUMENT, "microbatch": DOCUMENT * DOCUMENTS, "recompute": args.recompute}
    sizes = ["--microbatches", args.microbatches, "--steps", args.steps, "--recompute", args.recompute]
    for way in args.ways:
        part = args.out.with_suffix(".part")
        command = [sys.executable, __file__, "--one", way, "--out", part, *sizes]
        try:
            done = subprocess.run(
                [*map(str, command)], timeout=args.timeout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            output, failed = done.stdout, done.returncode != 0
        except subprocess.TimeoutExpired:
            output, failed = f"no end after {args.timeout:g} s", True
        if failed:
            result[way] = {"error": output.strip()[-2000:]}
            print(f"{way}: FAILED\n{output[-2000:]}", flush=True)
            continue
        result[way] = found = json.loads(part.read_text())
        part.unlink()
        print(
            f"{way:20} {found['tokens_per_second']:8,.0f} tokens/s  {found['tflops']:4.0f} TFLOP/s, "
            f"{found['share']:.0%} of the bf16 matrix rate  {found['peak_gib']:.1f} GiB  "
            f"loss {found['losses'][0]:.3f} to {found['losses'][-1]:.3f}",
            flush=True,
        )
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if any("error" in result[way] for way in args.ways) else 0


if __name__ == "__main__":
    sys.exit(main())

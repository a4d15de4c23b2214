"""Transfer of a 0.6 B-shaped Qwen3 from TP 2 ranks to a vLLM engine on this machine, beside a copy of its bytes.

The copy is one of rank 0 in memory that both it and the target have touched before, by one thread, as each rank has
one. Copies and transfers take turns, so that both see the same machine. A transfer ends when the engine may generate.
Its fixed cost, which a model of any size has, is stated apart: what it takes to tell the engine before the first bucket
and after the last, and a whole transfer of a model of four small layers, by the same means. The first transfer is
stated apart too: it makes the group, and all memory is new. The engine has all cores, the ranks one thread each.

On a CPU vLLM packs each matrix for oneDNN once it is loaded, whoever loads it. What that takes is stated apart:
everything is measured once more with an engine that packs nothing. Asked is a transfer with the packing, without the
fixed cost of a small model's, within 3 × the copy.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # for the test helpers

RESULT = Path(__file__).with_suffix(".json")
LIMIT = 3.0
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 8}


def trainer(folder: Path, dtype_name: str, path: str, repeats: int) -> None:
    """A rank of the trainer, started by torchrun; rank 0 prints what it measured."""
    from qedmeg import device

    device.prepare()
    import torch
    import torch.distributed as dist

    from qedmeg.model import weights
    from qedmeg.rollout.weight_transfer import WeightSender
    from tests.rollout.transfer_ends import PipeControl, build

    device.init_process_group()
    torch.set_num_threads(1)
    model, chunks = build(folder, {"tp": 2}, getattr(torch, dtype_name))
    weights.load_hf(chunks, model, folder)
    sender = WeightSender(chunks, model, 600.0)
    leads = dist.get_rank() == 0
    reports, copies, buffers = [], [], None
    for version in range(repeats + 1):
        dist.barrier()
        reports.append(sender.send(version, [PipeControl("local", 1, path, 600.0)] if leads else []))
        assert not reports[-1].lost, reports[-1].lost
        if leads:
            if buffers is None:
                buffers = [torch.ones(reports[0].bytes, dtype=torch.uint8) for _ in range(2)]
            start = time.perf_counter()
            buffers[0].copy_(buffers[1])
            copies.append(time.perf_counter() - start)
    if leads:
        runs = [{"seconds": report.seconds, "fixed": report.fixed_seconds} for report in reports]
        print(json.dumps({"bytes": reports[0].bytes, "first": runs[0], "transfers": runs[1:], "copies": copies[1:]}))
    dist.destroy_process_group()


def host_without_packing(*arguments: Any) -> None:
    """The process of an engine whose layers multiply by their weights as they are."""
    import vllm._custom_ops

    from tests.rollout.transfer_ends import host_engine

    vllm._custom_ops._supports_onednn = False
    host_engine(*arguments)


def run(folder: Path, dtype_name: str, repeats: int, scratch: Path, *, packs: bool = True) -> dict[str, Any]:
    """Start an engine and the ranks, and return what rank 0 printed."""
    from tests.rollout.transfer_ends import EngineInProcess, host_engine

    host = host_engine if packs else host_without_packing
    engine = EngineInProcess(folder, 1, scratch, host, dtype=dtype_name, kv_cache_memory_bytes=512 << 20)
    try:
        engine.wait()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
        command += [__file__, "--trainer", str(folder), dtype_name, engine.control.path, str(repeats)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        measured: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
        return measured
    finally:
        engine.close()


def measure(dtype_name: str, repeats: int, scratch: Path) -> dict[str, Any]:
    """Medians of a transfer and of a copy, and the fixed cost."""
    from conversion_speed import QWEN3, SIZES, make_model

    if not (scratch / "0.6b").exists():
        make_model(scratch / "0.6b", "0.6b")
        SIZES["small"], QWEN3["vocab_size"] = SMALL, 1024
        make_model(scratch / "small", "small")
    runs = {
        "large": run(scratch / "0.6b", dtype_name, repeats, scratch),
        "large without packing": run(scratch / "0.6b", dtype_name, repeats, scratch, packs=False),
        "small": run(scratch / "small", dtype_name, repeats, scratch),
    }
    seconds = {name: statistics.median(one["seconds"] for one in found["transfers"]) for name, found in runs.items()}
    copies = {name: statistics.median(found["copies"]) for name, found in runs.items()}
    fixed = seconds["small"]
    times_copy = {name: (seconds[name] - fixed) / copies[name] for name in ("large", "large without packing")}
    large = runs["large"]
    return {
        "gigabytes": round(large["bytes"] / 1e9, 3),
        "cpus": os.cpu_count(),
        "load_average_at_end": os.getloadavg()[0],
        "transfer_seconds": seconds["large"],
        "transfer_seconds_without_packing": seconds["large without packing"],
        "copy_seconds": copies["large"],
        "times_copy": times_copy["large"],
        "times_copy_without_packing": times_copy["large without packing"],
        "within_limit": times_copy["large"] <= LIMIT,
        "fixed_seconds": {
            "telling the engine": statistics.median(one["fixed"] for one in large["transfers"]),
            "whole transfer of a small model": fixed,
        },
        "first_transfer_seconds": large["first"]["seconds"],
        "runs": runs,
    }


def main() -> int:
    """Measure, print, and write the JSON file beside this script; status 1 outside the limit."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python tests/benchmarks/weight_transfer.py --dtype bfloat16 --repeats 15",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dtype", nargs="+", choices=("bfloat16", "float32"), default=["bfloat16", "float32"])
    parser.add_argument("--repeats", type=int, default=15, help="transfers and copies (default: %(default)s)")
    parser.add_argument("--trainer", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.trainer:
        folder, dtype_name, path, repeats = arguments.trainer
        trainer(Path(folder), dtype_name, path, int(repeats))
        return 0
    from qedmeg.rollout.engine import CPU_ENVIRONMENT

    os.environ.update(CPU_ENVIRONMENT)  # as the rollout process is started
    results = {}
    with tempfile.TemporaryDirectory(prefix="weight-transfer-") as scratch:
        for dtype_name in arguments.dtype:
            results[dtype_name] = measure(dtype_name, arguments.repeats, Path(scratch))
            shown = {name: value for name, value in results[dtype_name].items() if name != "runs"}
            print(json.dumps({dtype_name: shown}, indent=2), flush=True)
    before = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    RESULT.write_text(json.dumps(before | results, indent=2) + "\n")
    return 0 if all(result["within_limit"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

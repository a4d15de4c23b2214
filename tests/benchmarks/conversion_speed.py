"""Conversion of a Qwen3-shaped model in bf16, both ways, beside `cp` of the same bytes: seconds and peak memory.

All three are brought to disk before the clock stops, and take turns. Each conversion runs in a process of its own;
start-up and imports are reported apart, and memory is counted above what a process holds after them. Asked are the
limits of 2 x cp, and of memory: 1.2 GB for the 0.6 B-shaped model, 2 GB for the 4 B-shaped one.

Virtual machines may give free memory back to their host, and getting it again costs several times what the copy does.
So just before each clock starts, a file of the same size is written and removed: all three find memory at hand.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULT = Path(__file__).with_suffix(".json")
CHECKS = ("tensors", "config", "tokenizer")
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
SIZES: dict[str, dict[str, int]] = {
    "0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "4b": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
}
MEMORY_LIMIT_MB = {"0.6b": 1200, "4b": 2000}
TIME_LIMIT = 2.0


def make_model(folder: Path, size: str) -> None:
    """Write a model of random weights, a block at a time."""
    import torch

    from qedmeg.model import families, weights
    from qedmeg.model.safetensors_file import Writer
    from qedmeg.model.tensor_bytes import blocks

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN3 | SIZES[size]))
    model = families.read_architecture(folder)
    sources = [source for tensor in weights.global_tensors(model).values() for source in tensor.sources]
    writer = Writer(folder, [(source.name, torch.bfloat16, source.shape) for source in sources])
    random = torch.Generator().manual_seed(0)
    for source in sources:
        for start, stop in blocks(source.shape, torch.bfloat16):
            rows = torch.empty((stop - start, *source.shape[1:]), dtype=torch.bfloat16)
            writer.write_rows(source.name, start, rows.normal_(0.0, 0.02, generator=random))
    writer.close()


def get_memory(folder: Path, size: int) -> None:
    """Make the system take `size` bytes of memory for files, and free it again."""
    block, path = bytes(8 << 20), folder / "memory"
    with path.open("wb") as file:
        for _ in range(size // len(block) + 1):
            file.write(block)
    path.unlink()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def copy(source: Path, target: Path) -> float:
    """Seconds of `cp` and of bringing the copy to disk."""
    get_memory(target.parent, _size(source))
    start = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    for path in [*target.iterdir(), target]:
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.close(file)
    return time.perf_counter() - start


def convert(way: str, source: Path, target: Path) -> dict[str, float]:
    """One conversion, in this process: seconds and megabytes."""
    from qedmeg import device

    device.prepare()
    from qedmeg import parallel  # noqa: F401  (conversion imports it when it begins)
    from qedmeg.conversion.convert import hf_to_megatron, megatron_to_hf

    get_memory(target.parent, _size(source))
    before = _memory_mb("VmRSS")
    start = time.perf_counter()
    sizes = {"tp": 2, "pp": 2} if way == "hf_to_megatron" else {}
    function: Any = hf_to_megatron if way == "hf_to_megatron" else megatron_to_hf
    report = function(source, target, checks=CHECKS, **sizes)
    seconds = time.perf_counter() - start
    assert report.equal
    return {"written": report.seconds["write"], "proved": seconds, "peak_mb": _memory_mb("VmHWM") - before}


def _memory_mb(field: str) -> float:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024 / 1e6


def _convert_apart(way: str, source: Path, target: Path) -> dict[str, float]:
    """`convert` in a new process, and the seconds that its start and end took."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "--one", way, str(source), str(target)]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - start
    measured: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return measured | {"start_up": seconds - measured["proved"]}


def measure(size: str, repeats: int, folder: Path) -> dict[str, Any]:
    """Medians and spreads of all three, each repeat in turn."""
    hf, megatron, back, copied = (folder / name for name in ("hf", "megatron", "back", "copied"))
    make_model(hf, size)
    runs: dict[str, list[dict[str, float]]] = {"cp": [], "hf_to_megatron": [], "megatron_to_hf": []}

    def run_copy() -> None:
        runs["cp"].append({"seconds": copy(hf, copied)})
        shutil.rmtree(copied)

    def run_conversion(way: str, source: Path, target: Path) -> None:
        runs[way].append(_convert_apart(way, source, target))

    turn: list[Callable[[], None]] = [
        lambda: run_conversion("hf_to_megatron", hf, megatron),
        lambda: run_conversion("megatron_to_hf", megatron, back),
    ]
    for repeat in range(repeats):
        # the copy first, between the two and last in turn: a disk may be slower the more was just written to it
        place = repeat % 3
        for one in [*turn[:place], run_copy, *turn[place:]]:
            one()
        shutil.rmtree(megatron)
        shutil.rmtree(back)
        print(
            f"{repeat + 1}/{repeats}: " + ", ".join(f"{name} {_shown(run[-1])}" for name, run in runs.items()),
            flush=True,
        )
    medians = {
        name: {field: statistics.median(run[field] for run in run_list) for field in run_list[0]}
        for name, run_list in runs.items()
    }
    cp = medians["cp"]["seconds"]
    ways = {name: medians[name] for name in ("hf_to_megatron", "megatron_to_hf")}
    return {
        "gigabytes": round(_size(hf) / 1e9, 2),
        "cpus": os.cpu_count(),
        "load_average_at_end": os.getloadavg()[0],
        "medians": medians,
        "times_cp_written": {name: median["written"] / cp for name, median in ways.items()},
        "times_cp_proved": {name: median["proved"] / cp for name, median in ways.items()},
        "within_limits": {
            "time": all(median["written"] <= TIME_LIMIT * cp for median in ways.values()),
            "memory": all(run["peak_mb"] <= MEMORY_LIMIT_MB[size] for name in ways for run in runs[name]),
        },
        "runs": runs,
    }


def _shown(run: dict[str, float]) -> str:
    return " ".join(f"{field} {value:.2f}" for field, value in run.items())


def main() -> int:
    """Measure, print, and write the JSON file beside this script; status 1 outside the limits."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python tests/benchmarks/conversion_speed.py --size 4b --repeats 3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=SIZES, default="0.6b", help="of the model (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="of each (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to write: 4 times the model (default: a temporary folder)")
    parser.add_argument("--one", nargs=3, metavar=("WAY", "SOURCE", "TARGET"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        way, source, target = arguments.one
        print(json.dumps(convert(way, Path(source), Path(target))))
        return 0
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="conversion-speed-") as folder:
        result = measure(arguments.size, arguments.repeats, Path(folder))
    results = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    RESULT.write_text(json.dumps(results | {arguments.size: result}, indent=2) + "\n")
    shown = {name: result[name] for name in ("medians", "times_cp_written", "times_cp_proved", "within_limits")}
    print(json.dumps(shown, indent=2))
    return 0 if all(result["within_limits"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())

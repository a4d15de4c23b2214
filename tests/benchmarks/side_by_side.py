"""What the comparisons with TRL share: its environment, runs with their memory, the speed of the machine meanwhile."""

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@dataclass(frozen=True)
class Run:
    """A command that ended well: when it started (seconds since the epoch), how long it ran, its peak of memory."""

    started: float
    seconds: float
    peak_bytes: int


def trl_python() -> Path:
    """The interpreter of TRL's environment, made where it is not there yet."""
    folder = HERE / "trl" / ".venv"
    python, marker = folder / "bin" / "python", folder / "installed"
    if not marker.is_file():
        print("making TRL's environment (minutes)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        requirements = str(HERE / "trl" / "requirements.txt")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", requirements], check=True)
        marker.touch()
    return python


def run(command: Sequence[str], threads: int, log: Path) -> Run:
    """Run a command of the repository. The peak is of its processes together (proportional set size).

    Ends the program with the end of the log where the command fails.
    """
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started ends with this program
    started, clock, peak = time.time(), time.monotonic(), 0
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                looked = time.monotonic()
                peak = max(peak, _memory(process.pid))
                time.sleep(max(0.5, 30 * (time.monotonic() - looked)))  # it takes time from what is measured
        finally:
            process.terminate()
            process.wait()
    if process.returncode:
        sys.exit(f"status {process.returncode} from {' '.join(command)}\n{log.read_text(errors='replace')[-3000:]}")
    return Run(started, time.monotonic() - clock, peak)


def _memory(pid: int) -> int:
    """Of all processes now, or what the first alone held at most so far if that is more: no peak is missed between."""
    total = highest = 0
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        highest = next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            total += process.memory_full_info().pss
    except (psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):
        pass  # ended while it was looked at
    return max(total, highest)


def gigaflops(precision: str, threads: int) -> float:
    """The rate of plain matrix products of `threads` threads, in GFLOP/s: the median of some."""
    dtype = "bfloat16" if precision == "bf16" else "float32"
    code = (
        "import statistics, time, torch\n"
        f"torch.set_num_threads({threads}); n = 1024; dtype = torch.{dtype}\n"
        "a, b = torch.randn(n, n, dtype=dtype), torch.randn(n, n, dtype=dtype); a @ b; times = []\n"
        "for _ in range(9 if dtype == torch.float32 else 3):\n"
        "    started = time.perf_counter(); a @ b; times.append(time.perf_counter() - started)\n"
        "print(2 * n**3 / statistics.median(times) / 1e9)\n"
    )
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, lowest and highest of some runs."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}

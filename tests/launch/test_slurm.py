"""launch/slurm.py without a SLURM: the file that it writes, and what it refuses. The rest is tests/slurm."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def slurm(tmp_path: Path):
    """Runs launch/slurm.py in tmp_path; by default on tiny.yaml over two nodes of four GPUs."""
    (tmp_path / "sft.py").write_text("print('a recipe')\n")
    (tmp_path / "tiny.yaml").write_text("steps: 3\n")

    def run(*arguments: str, machines: tuple[str, ...] = ("--nodes=2", "--gpus-per-node=4"), path: str | None = None):
        command = [sys.executable, str(ROOT / "launch/slurm.py"), "sft.py", "--config", "tiny.yaml"]
        environment = os.environ if path is None else os.environ | {"PATH": path}
        return subprocess.run(
            [*command, *machines, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def directives(script: str) -> dict[str, str]:
    """The #SBATCH lines above the first command, as sbatch reads them."""
    lines = script[: re.search(r"^[^#]", script, re.MULTILINE).start()].splitlines()
    options = [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH --")]
    return {name: value for name, _, value in (option.partition("=") for option in options)}


def step_command(script: str) -> list[str]:
    """The arguments that srun gets, as bash reads them."""
    start = script.index("\nsrun ")
    command = script[start : script.index(" &\n", start)]
    listing = subprocess.run(
        ["bash", "-c", f"srun() {{ printf '%s\\0' \"$@\"; }}\n{command}"], capture_output=True, text=True
    )
    return listing.stdout.split("\0")[:-1]


def test_dry_run_writes_nothing_and_asks_for_the_machines(slurm, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    answer = slurm("--dry-run", "--partition=h100", "--time=1-00:00:00", "--sbatch", "qos=long")
    assert answer.returncode == 0, answer.stderr
    assert sorted(tmp_path.rglob("*")) == before
    assert "world size   8 = 2 nodes × 4 GPUs" in answer.stderr
    asked = directives(answer.stdout)
    assert asked == {
        "job-name": "tiny",
        "nodes": "2",
        "ntasks-per-node": "1",
        "gpus-per-node": "4",
        "exclusive": "",
        "mem": "0",
        "partition": "h100",
        "time": "1-00:00:00",
        "qos": "long",
        "requeue": "",
        "signal": "TERM@300",
        "output": f"{tmp_path}/runs/tiny/logs/slurm.log",
        "open-mode": "append",
    }
    assert subprocess.run(["bash", "-n"], input=answer.stdout, text=True, check=False).returncode == 0


def test_cpu_nodes_can_be_shared(slurm) -> None:
    machines = ("--nodes=3", "--procs-per-node=2", "--cpus-per-node=16", "--grace=60")
    answer = slurm("--dry-run", machines=machines)
    asked = directives(answer.stdout)
    assert "world size   6 = 3 nodes × 2 CPU processes" in answer.stderr
    assert asked["cpus-per-task"] == "16"
    assert not {"gpus-per-node", "exclusive", "mem"} & set(asked)
    assert asked["signal"] == "TERM@60"
    command = step_command(answer.stdout)
    assert "--cpus-per-task=16" in command  # srun does not take it over from the job
    assert int(command[command.index("--grace") + 1]) < 60


def test_step_runs_the_recipe_in_the_folder_decided_now(slurm, tmp_path: Path) -> None:
    nasty = 'name=it\'s $HOME `x` \\ "q"'
    answer = slurm("--dry-run", nasty, "run_dir=elsewhere/run", "data.seed=1")
    command = step_command(answer.stdout)
    run_dir = tmp_path / "elsewhere/run"
    assert command[command.index("--") + 1 :] == [
        str(tmp_path / "sft.py"),
        "--config",
        str(run_dir / "launch/config.yaml"),
        f"run_dir={run_dir}",
        nasty,
        "data.seed=1",
    ]
    assert command[command.index("-m") - 1] == sys.executable
    assert "--kill-on-bad-exit=1" in command
    assert command[command.index("--processes") + 1] == "4"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--nodes=0", "--gpus-per-node=8"), "--nodes 0: must be 1 or more"),
        (("--nodes=2", "--gpus-per-node=0"), "--gpus-per-node 0: must be 1 or more"),
        (("--nodes=2",), "--gpus-per-node or --procs-per-node: give one of them"),
        (("--nodes=2", "--gpus-per-node=1", "--procs-per-node=1"), "--gpus-per-node or --procs-per-node: give one"),
        (("--nodes=2", "--gpus-per-node=1", "--grace=10"), "--grace 10: must be 30 or more"),
        (("--nodes=2", "--gpus-per-node=1", "--time=soon"), "--time 'soon': not a time limit"),
        (("--nodes=2", "--gpus-per-node=1", "--time=4"), "--time '4': leaves nothing before SIGTERM, 300 s earlier"),
        (("--nodes=2", "--gpus-per-node=1", "--sbatch=wrap=a b"), "sbatch option 'wrap=a b': expected"),
        (("--nodes=2", "--gpus-per-node=1", "--partition=a\nb"), "sbatch option 'partition=a"),
        (("--nodes=2", "--gpus-per-node=1", "--job-name=a b"), "--job-name 'a b': only letters"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(slurm, tmp_path, arguments, message) -> None:
    answer = slurm(machines=arguments)
    assert answer.returncode == 2
    assert answer.stderr.startswith(f"error: {message}")
    assert not (tmp_path / "runs").exists()


def test_without_sbatch_the_remedy_is_named(slurm, tmp_path: Path) -> None:
    answer = slurm(path=str(tmp_path))
    assert answer.returncode == 2
    assert "sbatch: not found" in answer.stderr
    assert "--dry-run" in answer.stderr
    assert not (tmp_path / "runs").exists()

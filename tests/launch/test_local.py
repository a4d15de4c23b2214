"""launch/local.py with two real ranks: its status, its logs, and SIGTERM on its way to the ranks."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 120.0

# Keeps to what the launchers ask of a recipe. It is without torch for the sake of time: tests/slurm has one with.
RECIPE = """\
import os, signal, sys, time
from pathlib import Path
from qedmeg.errors import EXIT_REQUEUE

asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append("stop"))
settings = dict(argument.split("=", 1) for argument in sys.argv[3:])
saved = Path(settings["run_dir"], "step-" + os.environ["RANK"])
step = int(saved.read_text()) if saved.exists() else 0
print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], "starts at step", step)
while step < int(settings["steps"]):
    time.sleep(float(settings["seconds"]))
    step += 1
    saved.write_text(str(step))
    print("step", step)
    if asked:
        sys.exit(EXIT_REQUEUE)
"""


def local(folder: Path, recipe: str, *overrides: str) -> list[str]:
    """The command that runs the text `recipe` in two ranks, with the run folder `folder`/run."""
    (folder / "recipe.py").write_text(recipe)
    (folder / "empty.yaml").touch()
    command = [sys.executable, str(ROOT / "launch/local.py"), str(folder / "recipe.py")]
    return [*command, "--config", str(folder / "empty.yaml"), "--nproc", "2", f"run_dir={folder}/run", *overrides]


def test_sigterm_saves_and_the_same_command_resumes(tmp_path: Path) -> None:
    shown = ""
    command = local(tmp_path, RECIPE, "seconds=0.5", "steps=1000")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
        watchdog = threading.Timer(DEADLINE_SECONDS, job.kill)
        watchdog.start()
        assert job.stdout
        for line in job.stdout:
            shown += line
            if line == "[rank 0] step 2\n":
                job.send_signal(signal.SIGTERM)
            if line.startswith("SIGTERM:"):
                job.send_signal(signal.SIGTERM)  # as SLURM may: the step under way is not cut short
        job.wait()
        watchdog.cancel()
    assert job.returncode == 75, shown
    assert "the same command resumes the run" in shown
    step = int((tmp_path / "run/step-0").read_text())
    assert 3 <= step < 1000  # the step under way was finished
    assert (tmp_path / "run/logs/local.1/rank-1.out").read_text().startswith("rank 1 of 2 starts at step 0\nstep 1\n")

    command = local(tmp_path, RECIPE, "seconds=0.01", f"steps={step + 2}")
    resumed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    lines = (tmp_path / "run/logs/local.2/rank-0.out").read_text().splitlines()
    assert lines == [f"rank 0 of 2 starts at step {step}", f"step {step + 1}", f"step {step + 2}"]


@pytest.mark.parametrize(
    ("failing", "status"),
    [
        ("raise RuntimeError('failing as told')", 1),
        ("print('error: a mistake', file=sys.stderr); sys.exit(2)", 2),
        ("os.kill(os.getpid(), 9)", 137),
    ],
)
def test_status_is_that_of_the_rank_that_failed(tmp_path: Path, failing: str, status: int) -> None:
    recipe = f"import os, sys, time\nif os.environ['RANK'] == '1':\n    {failing}\ntime.sleep({DEADLINE_SECONDS})\n"
    job = subprocess.run(local(tmp_path, recipe), capture_output=True, text=True, check=False)
    assert job.returncode == status, job.stderr
    assert ("rank-1.err" in job.stderr) == (status != 2)
    assert ("error: a mistake\n" in job.stderr) == (status == 2)  # all there is to say of a mistake
    assert ("RuntimeError: failing as told" in job.stderr) == (status == 1)


def test_too_few_ranks_are_refused(tmp_path: Path) -> None:
    job = subprocess.run([*local(tmp_path, RECIPE), "--nproc", "0"], capture_output=True, text=True, check=False)
    assert job.returncode == 2
    assert job.stderr == "error: --nproc 0: must be 1 or more\n"
    assert not (tmp_path / "run").exists()

"""Kill a fine-tuning run again and again, and compare its end with that of a run that was left alone.

The run is started with torchrun, all of its processes are killed with SIGKILL at random moments (one in two while a
checkpoint is being written), and the same command is started again until the run is through. Weights, moments and
master weights must then equal the undisturbed run's bit for bit, and every step must have had the same loss. The
result is written as JSON beside this script.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from qedmeg.monitor.metrics import read_metrics  # noqa: E402
from tests import sft_runs  # noqa: E402

RESULT = Path(__file__).with_suffix(".json")
STEPS_PER_KILL = 8


@dataclass(frozen=True)
class Kill:
    """What was killed."""

    moment: str
    """'training', 'saving' (files of a checkpoint were being written) or 'starting'."""
    steps: int
    """Steps that were done."""
    checkpoint: int
    """Step of the newest whole checkpoint, 0 without one."""


def main() -> int:
    """Run the campaign; exit status 0 when the ends are equal and all kills were made."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python tests/kill_campaign.py --kills 10 --seed 1 --ranks 2 parallel.tp=2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=10, help="how many times the run is killed (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default 0)")
    parser.add_argument("--ranks", type=int, default=2, help="processes of the run (default 2)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the run, such as parallel.tp=2")
    arguments = parser.parse_intermixed_args()
    steps = STEPS_PER_KILL * (arguments.kills + 1)
    with tempfile.TemporaryDirectory(prefix="kill-campaign-") as name:
        config_file = sft_runs.write_inputs(Path(name))
        settings = [f"max_steps={steps}", "checkpoint.save_every=4", "checkpoint.keep_last=2", *arguments.settings]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={arguments.ranks}"]
        command += ["recipes/sft.py", "--config", str(config_file), *settings]
        left_alone, disturbed = Path(name) / "left-alone", Path(name) / "disturbed"
        begin = time.monotonic()
        if _run([*command, f"run_dir={left_alone}"]) != 0:
            return 1
        print(f"undisturbed run of {steps} steps: {time.monotonic() - begin:.0f} s", flush=True)
        kills = _campaign([*command, f"run_dir={disturbed}"], disturbed, arguments.kills, random.Random(arguments.seed))
        last = f"checkpoints/step_{steps:08d}"
        differing = sft_runs.differing(left_alone / last, disturbed / last)
        same_losses = _losses(left_alone) == _losses(disturbed)
        compared = len(sft_runs.tensors(left_alone / last))
    passed = not differing and same_losses and len(kills) == arguments.kills
    report = {
        "passed": passed,
        "seed": arguments.seed,
        "ranks": arguments.ranks,
        "settings": arguments.settings,
        "steps": steps,
        "seconds": round(time.monotonic() - begin),
        "tensors_compared": compared,
        "tensors_differing": differing,
        "losses_equal": same_losses,
        "kills": [asdict(kill) for kill in kills],
    }
    RESULT.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{len(kills)} kills, {compared} tensors compared, {len(differing)} differ, losses equal: {same_losses}")
    print("passed" if passed else "FAILED")
    return 0 if passed else 1


def _campaign(command: list[str], run_dir: Path, kills: int, moments: random.Random) -> list[Kill]:
    """Start the run until it is through, killing it `kills` times."""
    made: list[Kill] = []
    while True:
        with _started(command, run_dir.with_suffix(".log")) as process:
            if len(made) == kills:
                process.wait()
            else:
                _wait_for_moment(process, run_dir, moments)
            if process.poll() is not None:
                if process.returncode != 0:
                    sys.exit(f"the run failed:\n{run_dir.with_suffix('.log').read_text()[-4000:]}")
                return made
            saving = any((run_dir / "checkpoints").glob("*.partial"))
            _kill_all(process)
        done = _steps(run_dir)
        whole = [int(path.parent.name[5:]) for path in (run_dir / "checkpoints").glob("step_*/complete")]
        moment = "saving" if saving else "training" if done else "starting"
        made.append(Kill(moment, done, max(whole, default=0)))
        print(f"kill {len(made)}: {made[-1]}", flush=True)


def _wait_for_moment(process: "subprocess.Popen[bytes]", run_dir: Path, moments: random.Random) -> None:
    """Until some steps more are done, and a checkpoint is being written (one time in two) or is not, and a little
    longer."""
    target, saving = _steps(run_dir) + moments.randint(1, STEPS_PER_KILL), moments.random() < 0.5
    started = time.time()  # the log may hold steps of the attempt before
    while process.poll() is None:
        fresh = (run_dir / "metrics.jsonl").exists() and (run_dir / "metrics.jsonl").stat().st_mtime > started
        writing = any((run_dir / "checkpoints").glob("*.partial/*.distcp"))
        if fresh and _steps(run_dir) >= target and writing == saving:
            break
        time.sleep(0.005)
    time.sleep(moments.uniform(0.0, 0.05))


@contextlib.contextmanager
def _started(command: list[str], log: Path):  # type: ignore[no-untyped-def]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield process
        finally:
            _kill_all(process)


def _run(command: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder, _started(command, Path(folder) / "log") as process:
        if process.wait() != 0:
            print((Path(folder) / "log").read_text()[-4000:], file=sys.stderr)
        return process.returncode


def _kill_all(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL to torchrun, the ranks and the writers of their checkpoints, all of them stopped before any is killed."""
    stopped: dict[int, psutil.Process] = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(process.pid)
        while more := [one for one in [top, *top.children(recursive=True)] if one.pid not in stopped]:
            for one in more:
                stopped[one.pid] = one
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.send_signal(signal.SIGSTOP)
    for one in stopped.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def _steps(run_dir: Path) -> int:
    return max((int(line["step"]) + 1 for line in read_metrics(run_dir)), default=0)


def _losses(run_dir: Path) -> dict[float, float]:
    return {line["step"]: line["train/loss"] for line in read_metrics(run_dir)}


if __name__ == "__main__":
    sys.exit(main())

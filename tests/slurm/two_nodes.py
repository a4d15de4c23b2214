"""launch/slurm.py on a real SLURM of two nodes: requeue, resume, and when not to.

Not collected by a plain pytest (no test_ in the file's name): it needs the cluster that it is run in,

    python tests/slurm/cluster.py python -m pytest tests/slurm/two_nodes.py
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
START_SECONDS = 180.0  # from submission or requeue to the first step
END_SECONDS = 240.0


@dataclass(frozen=True)
class Recipe:
    """A recipe to prove the launcher with: long enough to be interrupted, short enough to wait for."""

    path: Path
    prepare: Callable[[Path], Path]
    """Writes what the recipe needs into a folder and returns its settings file."""
    started_at: str
    """Pattern of a line that rank 0 prints before its first step; group 1 is the number of steps done before."""
    steps_done: Callable[[Path], int]
    """How many steps the run in a run folder has done; fewer when it has not yet told."""
    disturb_after: int
    """Steps before a run is disturbed: past its first periodic checkpoint, whose writers then live on beside it."""


def prepare_counter(folder: Path) -> Path:
    config = folder / "counter.yaml"
    config.write_text("steps: 30\nseconds: 0.3\n")
    return config


def counted(run_dir: Path) -> int:
    logs = [path.read_text() for path in run_dir.glob("logs/*/rank-0.out")]
    return max((int(number) for text in logs for number in re.findall(r"^step (\d+)$", text, re.MULTILINE)), default=0)


def prepare_sft(folder: Path) -> Path:
    from tests.sft_runs import write_inputs  # imports transformers, which the counter does without

    config = write_inputs(folder)
    settings = yaml.safe_load(config.read_text()) | {"max_steps": 100, "parallel": {"tp": 2}}
    config.write_text(yaml.safe_dump(settings))
    return config


def trained(run_dir: Path) -> int:
    metrics = run_dir / "metrics.jsonl"
    return metrics.read_text().count("train/loss") if metrics.exists() else 0


COUNTER = Recipe(ROOT / "tests/slurm/counter.py", prepare_counter, r"rank 0 starts at step (\d+)", counted, 3)
SFT = Recipe(ROOT / "recipes/sft.py", prepare_sft, r"^SFT of .* steps (\d+) to", trained, 8)
RECIPES = [pytest.param(COUNTER, id="counter"), pytest.param(SFT, id="sft")]


@dataclass(frozen=True)
class Submitted:
    """A job in the queue, and what it has left in its run folder."""

    number: str
    run_dir: Path
    recipe: Recipe

    def state(self) -> str:
        return self.field("JobState")

    def restarts(self) -> int:
        return int(self.field("Restarts"))

    def field(self, name: str) -> str:
        command = ["scontrol", "--oneliner", "show", "job", self.number]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = re.search(rf"\b{name}=(\S*)", shown)
        assert found, shown
        return found[1]

    def started_at(self, attempt: int) -> int:
        """The number of steps that an attempt found done."""
        logs = self.run_dir / f"logs/{self.number}.{attempt}"
        (found,) = re.findall(self.recipe.started_at, (logs / "rank-0.out").read_text(), re.MULTILINE)
        return int(found)

    def assert_ended_by_themselves(self, attempt: int) -> None:
        """No rank of an attempt failed in its save, and none hung in it until it was killed."""
        for log in (self.run_dir / f"logs/{self.number}.{attempt}").glob("*"):
            text = log.read_text()
            assert "Traceback" not in text, f"{log}\n{text[-3000:]}"
            assert "forcefully exiting" not in text, f"{log}\n{text[-3000:]}"

    def wait_for_steps(self) -> int:
        """Waits until the run may be disturbed; returns how many steps are done then."""
        wait_for(lambda: self.recipe.steps_done(self.run_dir) >= self.recipe.disturb_after, START_SECONDS, self)
        return self.recipe.steps_done(self.run_dir)

    def wait_for_end(self) -> str:
        """The state that the job ends in."""
        going = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED")
        wait_for(lambda: self.state() not in going, START_SECONDS + END_SECONDS, self)
        return self.state()

    def attempts(self) -> int:
        return len([folder for folder in (self.run_dir / "logs").iterdir() if folder.is_dir()])


def wait_for(reached: Callable[[], bool], seconds: float, job: Submitted) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            logs = sorted(path for path in (job.run_dir / "logs").rglob("*") if path.is_file())
            texts = "\n".join(f"--- {path}\n{path.read_text()[-3000:]}" for path in logs)
            raise TimeoutError(f"job {job.number} is {job.state()} after {seconds} s\n{texts}")
        time.sleep(0.3)


@pytest.fixture(scope="session", autouse=True)
def _only_in_the_cluster_of_these_tests() -> None:
    conf = Path(os.environ.get("SLURM_CONF", "none"))
    if not conf.is_file() or "ClusterName=loopback" not in conf.read_text():
        pytest.exit("run it in its cluster: python tests/slurm/cluster.py python -m pytest tests/slurm/two_nodes.py", 2)


@pytest.fixture
def submit(tmp_path: Path):
    """Submits a recipe over two nodes with one rank each; what is left of its jobs at the end is cancelled."""
    jobs = []

    def submit_one(recipe: Recipe, *arguments: str) -> Submitted:
        config = recipe.prepare(tmp_path)
        run_dir = tmp_path / "proof"
        command = [sys.executable, "launch/slurm.py", str(recipe.path), "--config", str(config), "--nodes=2"]
        command += ["--procs-per-node=1", "--grace=90", *arguments, f"run_dir={run_dir}"]
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stderr
        jobs.append(Submitted(answer.stdout.strip(), run_dir, recipe))
        return jobs[-1]

    yield submit_one
    for job in jobs:
        subprocess.run(["scancel", job.number], check=True)
        wait_for(lambda job=job: job.state() not in ("PENDING", "RUNNING", "COMPLETING"), END_SECONDS, job)


def events(job: Submitted) -> list[dict]:
    """What the counter has noted, of all ranks and attempts."""
    return [json.loads(line) for line in (job.run_dir / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("recipe", RECIPES)
def test_undisturbed(submit, recipe: Recipe, tmp_path: Path) -> None:
    job = submit(recipe)
    assert job.wait_for_end() == "COMPLETED"
    assert job.field("ExitCode") == "0:0"
    assert job.restarts() == 0
    logs = job.run_dir / f"logs/{job.number}.0"
    assert [(logs / f"node-{node}.status").read_text() for node in (0, 1)] == ["0\n", "0\n"]
    assert sorted(path.name for path in logs.glob("rank-*.out")) == ["rank-0.out", "rank-1.out"]
    assert job.attempts() == 1
    assert (job.run_dir / "launch/config.yaml").read_text() == recipe.prepare(tmp_path).read_text()


@pytest.mark.parametrize("recipe", RECIPES)
def test_sigterm_saves_requeues_and_resumes(submit, recipe: Recipe) -> None:
    job = submit(recipe)
    done = job.wait_for_steps()
    subprocess.run(["scancel", "--signal=TERM", job.number], check=True)
    assert job.wait_for_end() == "COMPLETED"
    assert job.restarts() == 1
    assert job.attempts() == 2
    job.assert_ended_by_themselves(attempt=0)
    assert job.started_at(attempt=1) >= done  # no step is lost
    statuses = {path.read_text() for path in (job.run_dir / f"logs/{job.number}.0").glob("*.status")}
    assert statuses == {"75\n"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_requeue_from_outside_resumes(submit, recipe: Recipe) -> None:
    job = submit(recipe)
    job.wait_for_steps()
    subprocess.run(["scontrol", "requeue", job.number], check=True)
    assert job.wait_for_end() == "COMPLETED"
    assert job.restarts() == 1  # the job's own script has not requeued it once more
    assert job.started_at(attempt=1) > 0  # from some checkpoint: SLURM allows KillWait seconds alone for a save


def test_both_nodes_took_part_and_counted_as_one(submit) -> None:
    job = submit(COUNTER)
    job.wait_for_steps()
    subprocess.run(["scancel", "--signal=TERM", job.number], check=True)
    assert job.wait_for_end() == "COMPLETED"
    for attempt in (0, 1):
        starts = [event for event in events(job) if event["event"] == "start" and event["attempt"] == attempt]
        assert sorted((event["rank"], event["node"]) for event in starts) == [(0, "n1"), (1, "n2")]
    done = [event for event in events(job) if event["event"] == "done"]
    assert [event["total"] for event in done] == [30 * (1 + 2)] * 2
    saved, resumed = ([event["step"] for event in events(job) if event["event"] == name] for name in ("saved", "start"))
    assert saved == resumed[2:]


def test_time_limit(submit) -> None:
    """SLURM sends the signal up to a minute early, so that a limit of two minutes leaves half a minute at least."""
    job = submit(COUNTER, "--time=2", "--grace=30", "steps=90", "seconds=1")
    wait_for(lambda: job.restarts() == 1, 240, job)
    assert job.wait_for_end() == "COMPLETED"
    saved = [event for event in events(job) if event["event"] == "saved" and event["rank"] == 0]
    assert len(saved) == job.restarts() >= 1
    assert job.started_at(attempt=1) == saved[0]["step"]


def test_stop_before_the_first_step_is_requeued(submit) -> None:
    job = submit(COUNTER)
    wait_for(lambda: (job.run_dir / f"logs/{job.number}.0/node-1.log").exists(), START_SECONDS, job)
    subprocess.run(["scancel", "--signal=TERM", job.number], check=True)
    assert job.wait_for_end() == "COMPLETED"
    assert job.restarts() == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_failure_is_not_requeued(submit, rank: int) -> None:
    job = submit(COUNTER, "fail_at=4", f"fail_rank={rank}")
    assert job.wait_for_end() == "FAILED"
    assert job.restarts() == 0
    assert "failing as told" in (job.run_dir / f"logs/{job.number}.0/rank-{rank}.err").read_text()


def test_failure_counts_for_more_than_the_stop_of_the_other_node(submit) -> None:
    """Rank 0 does not notice that rank 1 has failed: what ends it is srun's SIGTERM, which it takes for a stop."""
    job = submit(COUNTER, "--grace=30", "fail_at=0", "fail_rank=1", "seconds=60")
    assert job.wait_for_end() == "FAILED"
    assert job.field("ExitCode") == "1:0"
    assert job.restarts() == 0
    logs = job.run_dir / f"logs/{job.number}.0"
    assert [(logs / f"node-{node}.status").read_text() for node in (0, 1)] == ["75\n", "1\n"]


def test_cancelled_job_is_not_requeued(submit) -> None:
    job = submit(COUNTER)
    job.wait_for_steps()
    subprocess.run(["scancel", job.number], check=True)
    assert job.wait_for_end() == "CANCELLED"
    wait_for(lambda: "not requeued here" in (job.run_dir / "logs/slurm.log").read_text(), END_SECONDS, job)
    assert job.restarts() == 0
    assert (job.run_dir / "checkpoint.json").exists()


def test_requeues_are_bounded(submit) -> None:
    job = submit(COUNTER, "--max-requeues=0")
    job.wait_for_steps()
    subprocess.run(["scancel", "--signal=TERM", job.number], check=True)
    assert job.wait_for_end() == "FAILED"
    assert job.field("ExitCode") == "75:0"
    assert job.restarts() == 0


def test_run_folder_of_a_job_in_the_queue_is_refused(submit) -> None:
    job = submit(COUNTER)
    with pytest.raises(AssertionError, match=f"its job {job.number} is still in the queue"):
        submit(COUNTER)

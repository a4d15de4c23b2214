"""GRPO from end to end: real ranks, a real rollout process, a real vLLM engine, a judge over HTTP."""

import json
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qedmeg.conversion import convert
from qedmeg.errors import EXIT_USER_ERROR
from qedmeg.evaluation import everything, stats
from qedmeg.evaluation.results import Results
from qedmeg.monitor.metrics import read_metrics
from qedmeg.monitor.report import write_run_report
from qedmeg.rollout.store import STORE_FILE, read_batch
from qedmeg.rollout.validation import VALIDATION_FILE
from tests import grpo_runs
from tests.grading.judge_server import JudgeServer
from tests.grpo_runs import read_steps
from tests.sft_runs import differing
from tests.training.greedy import check_greedy


@pytest.fixture(scope="module")
def judge():
    with JudgeServer() as server:
        yield server


@pytest.fixture(scope="module")
def finished(judge, tmp_path_factory) -> Path:
    """The settings of a run of four steps on one rank, with validations, that nothing disturbed."""
    folder = tmp_path_factory.mktemp("grpo")
    config = grpo_runs.write_inputs(folder, judge.url, validation=grpo_runs.validation(folder))
    status, output = grpo_runs.finish(grpo_runs.start(config))
    assert status == 0, output[-3000:]
    assert "validation: every 2 steps, at the first and at the last; 12 problems" in output
    assert "rollouts: step 2: validation " in output
    return config


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory) -> Path:
    """The weights that the run ended with, as a Hugging Face folder."""
    out = tmp_path_factory.mktemp("exported") / "model"
    checkpoint = finished.parent / "run" / "checkpoints" / "step_00000004"
    assert convert.megatron_to_hf(checkpoint, out, checks=frozenset({"tensors"}), overwrite=False).equal
    return out


def test_a_run_logs_what_happened_and_leaves_checkpoints(finished):
    run = finished.parent / "run"
    steps = read_steps(run)
    assert [line["step"] for line in steps] == [0, 1, 2, 3]
    for line in steps:
        assert line["train/rollouts"] == 12
        assert line["train/lag_max"] == 0
        assert line["train/mismatch_max"] < 1e-4  # the engine's log-probabilities are the trainer's
        assert line["train/grad_norm"] > 0
        assert 0 < line["train/reward"] < 1
    assert [line["step"] for line in steps if "train/gate" in line] == [1, 3]
    assert all(line["train/gate"] < 1e-4 for line in steps if "train/gate" in line)
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["step_00000002", "step_00000004"]


def test_a_score_in_tensorboard_and_a_score_in_a_table_are_the_same_number(finished, tmp_path, monkeypatch, capsys):
    run = finished.parent / "run"
    logged = {int(line["step"]): line for line in read_metrics(run) if "validation/score" in line}
    assert sorted(logged) == [0, 2, 4]
    monkeypatch.setattr(sys, "argv", ["stats.py", str(run / VALIDATION_FILE), "--out", str(tmp_path)])
    assert stats.main() == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if "│ run " in line]
    told = {one["run"]: one for one in json.loads((tmp_path / "stats.json").read_text())}
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    for step, line in logged.items():
        for kind, name in (("score", f"step {step}"), ("greedy", f"step {step} greedy")):
            whole = told[name]["whole"]
            assert line[f"validation/{kind}"] == whole["mean"]
            assert line[f"validation/{kind}_low"] == whole["interval"]["low"]
            (event,) = [one for one in board.Scalars(f"validation/{kind}") if one.step == step]
            assert event.value == np.float32(whole["mean"])
            row = next(row for row in printed if row.split("│")[1].strip() == name)
            assert f"{whole['mean']:.2f}" in [cell.strip() for cell in row.split("│")]
        assert line["validation/graded"] == 36
    validated = [line["step"] for line in read_steps(run) if "train/time/validate" in line]
    assert validated == [0, 2, 3]  # the last weights within the last step
    page = write_run_report(run).read_text()
    assert "Validation score, of 7" in page
    assert f"{logged[0]['validation/score']:.2f} → {logged[4]['validation/score']:.2f}" in page


def test_the_table_of_the_exported_weights_has_the_same_score(finished, exported, judge, tmp_path, monkeypatch):
    """A vLLM server of its own, asked over HTTP with the same seeds, gives the same texts."""
    results = tmp_path / "results.sqlite"
    shutil.copy(finished.parent / "run" / VALIDATION_FILE, results)
    (tmp_path / "judge.yaml").write_text(f"judges: [{{base_url: {judge.url}, model: judge}}]\n")
    options = ["--benchmark", finished.parent / "held_out.jsonl", "--samples", "2", "--model", exported]
    options += ["--set", 'scaffold.prompt="{problem}"', "--set", "model.max_tokens=24"]
    options += ["--grader", tmp_path / "judge.yaml", "--name", "table", "--against", "step 4"]
    options += ["--out", results, "--report", tmp_path / "report"]
    monkeypatch.setattr(sys, "argv", ["all.py", *map(str, options)])
    assert everything.main() == 0
    told = json.loads((tmp_path / "report" / "stats.json").read_text())
    (last,) = [line for line in read_metrics(finished.parent / "run") if line["step"] == 4]
    assert told[0]["whole"]["mean"] == last["validation/score"]
    assert json.loads((tmp_path / "report" / "compare.json").read_text())["whole"]["difference"]["mean"] == 0
    with closing(Results(results)) as found:
        table, validated = (found.attempts(name) for name in ("table", "step 4"))
    said = [[(one.text, one.ended, one.tokens, one.prompt_tokens) for one in run] for run in (table, validated)]
    assert said[0] == said[1]
    assert len({text for text, *_ in said[0]}) > 12


def test_greedy_attempts_take_the_likeliest_token_of_the_exported_weights(finished, exported):
    assert check_greedy(exported, finished.parent / "run" / VALIDATION_FILE, "step 4 greedy", max_tokens=24) == 12


def test_killed_while_it_validates_it_ends_with_the_same_weights_and_scores(finished, judge, tmp_path):
    """Killed after step 1, whose checkpoint is there or not, in the validation of step 2."""
    config = grpo_runs.write_inputs(tmp_path, judge.url, validation=grpo_runs.validation(tmp_path))
    run = tmp_path / "run"
    killed = grpo_runs.start(config)
    deadline = time.monotonic() + grpo_runs.SECONDS
    while not (kept := calls(run, "step 2")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    with closing(Results(run / VALIDATION_FILE)) as found:
        graded = {one.text for name in ("step 0", "step 0 greedy") for one in found.attempts(name)}
    asked_before = len(judge.served)
    grpo_runs.kill(killed)
    status, output = grpo_runs.finish(grpo_runs.start(config))
    assert status == 0, output[-3000:]
    assert "validated anew" not in output
    # what was graded is not graded again; requests that were under way at the kill may be counted among the later ones
    before, after = (
        {served.proof for served in part} for part in (judge.served[:asked_before], judge.served[asked_before:])
    )
    assert len(graded & before) > 24, "of 36; a few are fenced in other characters"
    assert not graded & after
    assert kept <= calls(run, "step 2")
    last = "checkpoints/step_00000004"
    assert differing(finished.parent / "run" / last, run / last) == []
    one, other = read_steps(finished.parent / "run"), read_steps(run)
    for name in ("train/loss", "train/reward", "train/grad_norm", "train/mismatch"):
        assert [line[name] for line in one] == [line[name] for line in other]
    scores = [
        {line["step"]: line for line in read_metrics(at) if "validation/score" in line}
        for at in (finished.parent / "run", run)
    ]
    for step, line in scores[0].items():
        assert line | {"validation/seconds": 0} == scores[1][step] | {"validation/seconds": 0}


def calls(run: Path, name: str) -> set[tuple[str, int, str]]:
    """The replies that a validation has kept, each with its text."""
    if not (run / VALIDATION_FILE).exists():
        return set()
    with closing(sqlite3.connect(run / VALIDATION_FILE, timeout=10)) as database:
        try:
            rows = database.execute("SELECT problem, sample, reply FROM calls WHERE run = ?", (name,)).fetchall()
        except sqlite3.OperationalError:  # its tables are being made
            return set()
    assert max(Counter((problem, sample) for problem, sample, _ in rows).values(), default=1) == 1
    return set(rows)


_OWN_DISKS = subprocess.run(["unshare", "-Urm", "true"], check=False, capture_output=True).returncode == 0


@pytest.mark.skipif(not _OWN_DISKS, reason="this user may not mount a small disk")
def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(finished, judge, tmp_path):
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    config = grpo_runs.write_inputs(tmp_path, judge.url, run_dir=str(disk / "run"))
    command = shlex.join(grpo_runs.command_line(config))
    script = f"""
        mount -t tmpfs -o size=6m none {disk}  # room for the first of two checkpoints, and for all rollouts
        {command}
        echo "status $? with $(ls {disk}/run/checkpoints)"
        mount -o remount,size=1g {disk}
        {command} && cp -r {disk}/run {out}"""
    status, output = grpo_runs.finish(grpo_runs.start_command(["unshare", "-Urm", "sh", "-c", script]))
    assert status == 0, output[-3000:]
    first, _, second = output.partition(f"status {EXIT_USER_ERROR} with step_00000002\n")
    assert f"error: {disk}/run/checkpoints: No space left on device" in first.splitlines()[-1], output[-3000:]
    assert "steps 2 to 4" in second
    assert "Traceback" not in output
    last = "checkpoints/step_00000004"
    assert differing(finished.parent / "run" / last, out / last) == []
    for step in range(4):
        assert len(read_batch(out / STORE_FILE, step).groups) == 3
    query = "SELECT count(*) FROM (SELECT 1 FROM grades GROUP BY rollout HAVING count(*) > 1)"
    with closing(sqlite3.connect(out / STORE_FILE)) as database:
        assert database.execute(query).fetchone() == (0,)


def test_two_model_parallel_ranks_do_the_same_without_validation(finished, judge, tmp_path):
    """TP 2 adds in another order: the same rollouts as long as no token falls on the other side, the same curve."""
    config = grpo_runs.write_inputs(tmp_path, judge.url)
    status, output = grpo_runs.finish(grpo_runs.start(config, "parallel.tp=2", "max_steps=2", ranks=2))
    assert status == 0, output[-3000:]
    runs = finished.parent / "run", tmp_path / "run"
    one, other = read_steps(runs[0])[:2], read_metrics(runs[1])
    for name in ("train/loss", "train/reward", "train/grad_norm"):
        assert [line[name] for line in other] == pytest.approx([line[name] for line in one], rel=1e-3, abs=1e-5)
    tokens = [
        [
            rollout.sample.tokens_T.tolist()
            for step in (0, 1)
            for group in read_batch(run / STORE_FILE, step).groups
            for rollout in group.rollouts
        ]
        for run in runs
    ]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["rollout.max_tokens=20000"], "20000 leaves no room for a prompt in the model's context of "),
        (
            ["data.tokens_per_microbatch=8"],
            "no room for a prompt in data.tokens_per_microbatch of 8; lower it, or raise",
        ),
        (["data.tokens_per_microbatch=32"], "tokens, but data.tokens_per_microbatch leaves "),
        (["data.train=nowhere.jsonl"], "nowhere.jsonl"),
        (["rollout.max_lag=2"], "max_lag 2 generates while training runs"),
        (["rollout.engines=2", "rollout.start=1"], "engines: 2 are for a run without servers"),
        (["loss.ratio_against=engine"], "would correct twice"),
        (["parallel.tp=3"], "parallel.tp: 3 does not divide"),
        (["data.prompt=Prove it."], "must hold {problem}"),
        (["grader.judges=[{serve: {folder: nowhere}}]"], "nowhere/config.json: no such file"),
        (["grader.judges=[{model: judge}]"], "give either base_url, the address of a server, or serve"),
        (["validation.benchmark=embeded"], "validation.benchmark: 'embeded' is neither known nor a file"),
        (["validation.every=3"], "validation.benchmark: missing and has no default: What is answered"),
    ],
)
def test_mistakes_end_before_anything_is_generated(ranks, judge, tmp_path, settings, message):
    config = grpo_runs.write_inputs(tmp_path, judge.url)
    (told,) = ranks(grpo_runs.refused, 1, config, settings)
    assert message in told
    assert not (tmp_path / "run").exists()


def test_a_mistake_is_one_line_and_status_2(judge, tmp_path):
    config = grpo_runs.write_inputs(tmp_path, judge.url)
    status, output = grpo_runs.finish(grpo_runs.start(config, "rollout.max_lag=2"))
    assert status == EXIT_USER_ERROR
    assert "error: " in output
    assert "Traceback" not in output

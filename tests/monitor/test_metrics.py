"""The metrics file of a run that is killed and goes on."""

import pytest

from qedmeg.monitor import progress
from qedmeg.monitor.metrics import METRICS_FILE, MetricsLogger, read_metrics, rl_note, time_metrics, validation_note


def _log(run_dir, first, last):
    logger = MetricsLogger(run_dir, "SFT", first, 10, is_main=True)
    for step in range(first, last):
        logger.log_metrics({"loss": float(step), "tokens": 100.0, "step_time": 0.5}, step, "train/")
    logger.finalize()


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path):
    _log(tmp_path, 0, 7)
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 7, "train/lo')  # the kill came in the middle of a line
    _log(tmp_path, 4, 10)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(10))
    assert lines[5]["train/tokens_per_second"] == pytest.approx(200.0)
    assert list((tmp_path / "tensorboard").iterdir())


def test_other_ranks_write_nothing(tmp_path):
    logger = MetricsLogger(tmp_path / "run", "SFT", 0, 10, is_main=False)
    logger.log_metrics({"loss": 1.0, "tokens": 1.0, "step_time": 1.0}, 0, "train/")
    logger.finalize()
    assert not (tmp_path / "run").exists()


def test_steps_of_fine_tuning_are_too_many_for_a_line_each(tmp_path, capsys):
    _log(tmp_path, 0, 10)
    assert capsys.readouterr().err == ""


def test_the_line_of_fine_tuning(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    _log(tmp_path, 8, 10)
    assert [line.rsplit(" ", 3)[0] for line in capsys.readouterr().err.splitlines()] == [
        "SFT: 9/10 loss 8.0000  200 tokens/s",
        "SFT: 10/10 loss 9.0000  200 tokens/s",
    ]


RL_STEP = {
    "reward": 0.43,
    "lag_mean": 0.0,
    "mismatch": 2.1e-6,
    "grades_failed": 0.0,
    "time/idle": 0.1,
    "time/train": 1.4,
    "time/generate": 1.1,
    "time/grade": 0.2,
    "time/transfer": 0.06,
}


def test_every_step_of_reinforcement_learning_leaves_its_line(tmp_path, capsys):
    logger = MetricsLogger(tmp_path, "GRPO", 0, 150, is_main=True, step_line=rl_note)
    for step in range(3):
        logger.log_metrics(RL_STEP, step, "train/")
    logger.finalize()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    for number, line in enumerate(lines, 1):
        assert line.startswith(
            f"GRPO: {number}/150 reward 0.43 (3.0 of 7)  lag 0.0  mismatch 2e-6  "
            "generate 1.1 s grade 0.2 s train 1.4 s transfer 0.1 s idle 0.1 s "
        )
    assert read_metrics(tmp_path)[0]["train/time/grade"] == 0.2


def test_the_line_of_a_validated_step_tells_the_score(tmp_path, capsys):
    logger = MetricsLogger(tmp_path, "GRPO", 3, 5, is_main=True, step_line=rl_note)
    scores = {"score": 4.071, "score_low": 3.6, "score_high": 4.5, "greedy": 4.34, "failed_grades": 2.0}
    logger.log_metrics(scores, 3, "validation/")
    for step in (3, 4):
        logger.log_metrics({"reward": 1.0}, step, "train/")
    logger.finalize()
    validated, other = capsys.readouterr().err.splitlines()
    assert validated.startswith(
        "GRPO: 4/5 validation 4.07 [3.60, 4.50] of 7, greedy 4.34, 2 grades failed  reward 1.00 (7.0 of 7)"
    )
    assert other.startswith("GRPO: 5/5 reward 1.00")
    assert read_metrics(tmp_path)[0] == {"step": 3, **{f"validation/{name}": value for name, value in scores.items()}}


def test_a_validation_without_grades_says_so():
    assert validation_note({"missing": 3.0}) == "validation without a score, 3 attempts are missing"


def test_validation_is_no_part_of_the_time_of_a_step():
    assert time_metrics({"train": 2.0, "validate": 5.0, "idle": 1.0}) == {
        "step_time": 3.0,
        "time/train": 2.0,
        "time/validate": 5.0,
        "time/idle": 1.0,
    }


@pytest.mark.parametrize(
    ("metrics", "note"),
    [
        ({}, ""),
        ({"reward": 1.0, "grades_failed": 3.0}, "reward 1.00 (7.0 of 7)  3 grades failed"),
        ({"mismatch": 0.0}, "mismatch 0"),
        ({"mismatch": 1.25}, "mismatch 1"),
        ({"mismatch": 2e-13}, "mismatch 2e-13"),
        ({"time/idle": 1.0, "time/score": 2.0, "time/train": 3.0}, "train 3.0 s score 2.0 s idle 1.0 s"),
    ],
)
def test_what_a_step_lacks_is_left_out(metrics, note):
    assert rl_note(metrics) == note

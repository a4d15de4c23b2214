"""The metrics file of a run that is killed and goes on."""

import pytest

from qedmeg.monitor.metrics import METRICS_FILE, MetricsLogger, read_metrics


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

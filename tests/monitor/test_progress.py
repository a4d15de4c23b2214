"""Progress: a bar counts, and tells the time that is left."""

import io
import sys

import pytest

from qedmeg.monitor import progress


def test_track_counts_and_tells_the_time_left(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    for _ in progress.track(range(4), "reading", 4):
        now[0] += 30.0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("reading: 1/4")
    assert lines[0].endswith("90 s left")
    assert lines[-1].startswith("reading: 4/4")


def test_a_run_that_goes_on_tells_the_time_of_its_own_steps(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.bar("SFT", 100, done=90) as bar:
        now[0] += 30.0
        bar.advance()
    assert capsys.readouterr().err.startswith("SFT: 91/100")
    assert bar.seconds_left() == 270.0


@pytest.mark.parametrize(
    ("done", "left"),
    [
        # 31 others are half done: 16.5 of 320 in 33 s, 2 s each
        (1, 2.0 * (320 - 16.5)),
        # 32 and half of 31, which is 47.5; at the end 7 are in flight, and then none
        (32, 33 / 47.5 * (320 - 47.5)),
        (313, 33 / 316.5 * 3.5),
        (320, 0.0),
    ],
)
def test_steps_side_by_side_are_half_done_before_the_first_of_them_is(monkeypatch, done, left):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.bar("answering", 320, at_once=32) as bar:
        now[0] += 33.0
        bar.advance(done)
        assert bar.seconds_left() == pytest.approx(left)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_to_be_kept_stay_above_the_bar_of_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stderr", _Terminal())
    with progress.bar("GRPO", 3) as bar:
        bar.advance(note="reward 0.1 [/b] " + "x" * 90, keep=True)
        bar.advance(note="reward 0.2", keep=True)
        bar.advance(note="not kept")
    shown = sys.stderr.getvalue()
    # rich writes over its bar in place: what stays begins where that was
    kept = [line[line.index("GRPO:") :] for line in shown.splitlines() if "GRPO:" in line]
    assert [line.rsplit(" ", 3)[0] for line in kept] == [
        "GRPO: 1/3 reward 0.1 [/b] " + "x" * 90,
        "GRPO: 2/3 reward 0.2",
    ]
    assert "not kept" in shown


def test_silent_bar_prints_nothing(capsys):
    with progress.bar("quiet", 3, show=False) as bar:
        bar.advance(3)
    assert capsys.readouterr().err == ""

"""Progress: a bar counts, and tells the time that is left."""

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


def test_silent_bar_prints_nothing(capsys):
    with progress.bar("quiet", 3, show=False) as bar:
        bar.advance(3)
    assert capsys.readouterr().err == ""

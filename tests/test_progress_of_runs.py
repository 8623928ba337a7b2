"""How far a sweep is, as it is said while it runs."""

import pytest

from imgrec_jax.sweeps import progress
from imgrec_jax.sweeps.progress import Progress, step_of


def log(folder, name, *lines):
    path = folder / f"{name}.log"
    path.write_text("\n".join(lines))
    return path


def test_the_last_step_of_a_log_counts(tmp_path):
    assert step_of(tmp_path / "none.log") is None
    assert step_of(log(tmp_path, "a", "reading the data")) is None
    assert step_of(log(tmp_path, "b", "step 1/30  loss 2", "saved", "step 12/30  test: accuracy 0.5", "x" * 5000)) == (12, 30)
    earlier = log(tmp_path, "d", "step 30/30", "")
    size = earlier.stat().st_size
    assert step_of(earlier, size) is None
    assert step_of(log(tmp_path, "d", "step 30/30", "step 31/60"), size) == (31, 60)
    assert step_of(log(tmp_path, "c", "step 1/30", "x" * 50_000)) is None  # not the whole of a long log is read


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_said(tmp_path, monkeypatch, capsys, terminal):
    monkeypatch.setenv("COLUMNS", "200")
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: terminal, raising=False)
    shown = Progress(4, 1)
    running = [(log(tmp_path, "lr=0.1,seed=0", "step 0/30"), 0), (log(tmp_path, "lr=0.1,seed=1", ""), 0)]
    shown.show(1, running)
    assert ("done" in capsys.readouterr().err) == terminal  # a terminal is told at once, a pipe after a minute
    clock[0] += 90
    log(tmp_path, "lr=0.1,seed=0", "step 15/30")
    shown.show(1, running)
    said = capsys.readouterr().err
    # Half a run in 90 seconds: two and a half are left.
    assert "1/4 done  ETA 7:30  lr=0.1,seed=0 15/30, lr=0.1,seed=1 begins" in said
    with shown.cleared():
        pass
    shown.show(2, [(log(tmp_path, f"seed={n}", "step 1/9"), 0) for n in range(6)])
    shown.close()
    if terminal:
        assert "seed=3 1/9, and 2 more" in capsys.readouterr().err

"""Signals end a run in order, whatever it is doing; what was written and what the next start adds make the whole run."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from imgrec_jax import assemble
from imgrec_jax.run import after_step, loop, stop
from imgrec_jax.run.stop import Interrupted, Stop
from tests import small_runs

TASK = "classification"


class At(Stop):
    """A stop whose signal comes at the n-th time that the run asks for one at a place."""

    def __init__(self, place: str, count: int, number: int = signal.SIGTERM):
        super().__init__()
        self._place, self._left, self._number, self._stack = place, count, number, ["raising"]

    def come(self, place: str) -> None:
        if place == self._place and self.signal is None:
            self._left -= 1
            if self._left == 0:
                self.signal = self._number


@pytest.mark.parametrize("place", ["evaluation", "step", "save", "best"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_signal_at_any_place_leaves_a_run_that_goes_on_bit_for_bit(finished, small_data, tmp_path, monkeypatch, place, count):
    config = small_runs.config_of(TASK, small_data[TASK])
    asked = At(place, count)
    evaluate, save = after_step.evaluate, loop.Run.save

    def evaluated(*args, **kwargs):
        asked.come("evaluation")
        return evaluate(*args, **kwargs)

    def saved(run, *args, **kwargs):
        asked.come("best" if kwargs.get("best") else "save")
        return save(run, *args, **kwargs)

    monkeypatch.setattr(after_step, "evaluate", evaluated)
    monkeypatch.setattr(loop.Run, "save", saved)
    monkeypatch.setattr(loop.Run, "report", lambda run, step, report=loop.Run.report: (asked.come("step"), report(run, step)))
    said = []
    loop.train(assemble.build(config), tmp_path / "w", said.append, stop=asked)
    stopped = asked.signal is not None
    assert asked.kept and asked.status == 0
    again = []
    loop.train(assemble.build(config), tmp_path / "w", again.append)
    if stopped and again[-1].startswith("nothing left") is False:
        assert any(
            line.startswith("terminated at step") and line.endswith("the same command goes on from there") for line in said
        )
    assert (tmp_path / "w" / "metrics.jsonl").read_bytes() == (finished[TASK] / "metrics.jsonl").read_bytes()
    last = [path.name for path in (tmp_path / "w" / "checkpoints").iterdir()]
    assert max(map(int, last)) == 6


def test_work_is_ended_by_raising_and_a_step_by_a_note():
    asked = Stop()
    with asked.noting():
        asked.handle(signal.SIGTERM, None)
        assert asked.signal == signal.SIGTERM and asked.status == 143 and asked.word == "terminated"
        asked.kept = True
        assert asked.status == 0
        with pytest.raises(Interrupted), asked.raising():
            pytest.fail("a signal that was noted ends the body before it begins")
    with pytest.raises(Interrupted):
        asked.handle(signal.SIGTERM, None)


def test_a_run_that_kept_nothing_does_not_end_as_if_it_had(small_data, tmp_path, monkeypatch):
    config = small_runs.config_of(TASK, small_data[TASK], checkpoint__enabled=False)
    asked = At("step", 1)
    monkeypatch.setattr(loop.Run, "report", lambda run, step, report=loop.Run.report: (asked.come("step"), report(run, step)))
    loop.train(assemble.build(config), tmp_path / "w", lambda line: None, stop=asked)
    assert asked.signal == signal.SIGTERM and not asked.kept and asked.status == 143
    asked = At("nowhere", 1)
    loop.train(assemble.build(config), tmp_path / "whole", lambda line: None, stop=asked)
    assert asked.kept and asked.status == 0


def test_an_evaluation_that_is_cut_off_is_no_success(finished, tmp_path):
    workdir = shutil.copytree(finished[TASK], tmp_path / "w")
    program = (
        "import os, signal\nfrom imgrec_jax import main\nfrom imgrec_jax.run import evaluate\n"
        "def merge(*args):\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "evaluate.metrics.merge = merge\nmain.main()\n"
    )
    code, _, err = small_runs.run([sys.executable, "-c", program, f"--workdir={workdir}", "--mode=eval"])
    assert code == 128 + signal.SIGTERM and "terminated" in err and "Traceback" not in err
    assert not (workdir / "eval.json").exists()


def test_handlers_come_back_and_other_threads_have_none():
    before = {number: signal.getsignal(number) for number in stop.SIGNALS}
    with stop.caught() as asked, pytest.raises(Interrupted):
        assert signal.getsignal(signal.SIGTERM) == asked.handle
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert asked.signal == signal.SIGINT and asked.status == 130
    assert {number: signal.getsignal(number) for number in stop.SIGNALS} == before
    seen = []

    def elsewhere():
        with stop.caught() as asked:
            seen.append((asked.signal, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [(None, before[signal.SIGTERM])]


def test_a_call_that_does_not_return_is_ended_all_the_same():
    program = (
        "import ctypes\nfrom imgrec_jax.run import stop\nstop.GRACE_SECONDS = 0.5\n"
        "with stop.caught() as asked, asked.noting():\n    print('in', flush=True)\n"
        "    while True:\n        ctypes.CDLL(None).sleep(60)\n"
    )
    process = small_runs.launch([sys.executable, "-c", program])
    assert process.stdout.readline() == "in\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM and "goes on from the last checkpoint" in err


def endless(small_data, workdir, *flags):
    more = ["--config.train.total_steps=1000000", "--config.log.every_steps=50", "--config.eval.every_steps=1000000"]
    return small_runs.command(TASK, small_data[TASK], workdir, *more, "--config.checkpoint.every_steps=100", *flags)


@pytest.mark.parametrize(("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGHUP, 0, "terminated")])
def test_the_program_saves_says_so_and_goes_on(small_data, tmp_path, number, status, word):
    process = small_runs.launch(endless(small_data, tmp_path / "w"))
    for line in process.stdout:
        if line.startswith("step 100/"):
            break
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == status and "Traceback" not in err and err == ""
    line = next(line for line in out.splitlines() if line.startswith(f"{word} at step"))
    step = int(line.split("step ")[1].split(";")[0])
    assert str(step) in {path.name for path in (tmp_path / "w" / "checkpoints").iterdir()}
    flags = [f"--config.train.total_steps={step + 3}", "--config.log.every_steps=50", "--config.eval.every_steps=1000000"]
    command = small_runs.command(TASK, small_data[TASK], tmp_path / "w", *flags, "--config.checkpoint.every_steps=100")
    code, out, err = small_runs.run(command)
    assert code == 0 and f"resumed at step {step}" in out, err


@pytest.mark.parametrize("delay", [0.3, 1.5, 3.0])
def test_a_signal_during_the_start_is_answered_at_once(small_data, tmp_path, delay):
    process = small_runs.launch(endless(small_data, tmp_path / "w"))
    time.sleep(delay)
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - sent < 10 and "Traceback" not in err
    if process.returncode == 128 + signal.SIGTERM:
        assert "terminated before there was anything to save" in err
    elif process.returncode == 0:
        assert "the same command goes on" in out
    else:  # the interpreter had not come to our first line yet
        assert process.returncode == -signal.SIGTERM and delay < 1


def test_a_reader_that_leaves_does_not_end_the_run(small_data, tmp_path):
    command = small_runs.command(TASK, small_data[TASK], tmp_path / "w")
    process = small_runs.launch(["bash", "-c", '"$@" | head -2', "bash", *command])
    out, err = process.communicate(timeout=120)
    assert len(out.splitlines()) == 2 and err.splitlines() == ["note: nobody reads the output any more; the run goes on"]
    assert (tmp_path / "w" / "checkpoints" / "6").is_dir()


@pytest.mark.slow  # test_workdir refuses it within one process
def test_the_command_line_refuses_a_workdir_in_use(small_data, tmp_path):
    first = small_runs.launch(endless(small_data, tmp_path / "w"))
    for line in first.stdout:
        if line.startswith("step 50/"):
            break
    code, _, err = small_runs.run(endless(small_data, tmp_path / "w"))
    assert code == 1 and f"is in use by process {first.pid} on" in err and "Traceback" not in err
    first.kill()  # and needs no hand to go on
    first.communicate()
    second = small_runs.launch(endless(small_data, tmp_path / "w"), stderr=subprocess.STDOUT)
    for line in second.stdout:
        if line.startswith("step "):
            break
    else:
        pytest.fail("the second start did not train")
    second.kill()
    second.communicate()

"""What a person sees: a bar on a terminal, plain lines in a pipe, and the last lines below the bar."""

import os
import shlex
import struct
import subprocess
import sys
from types import SimpleNamespace

import pytest

from imgrec_jax.inference import command
from imgrec_jax.run import writers
from tests import small_runs

fcntl, pty, termios = (pytest.importorskip(name, reason="needs a POSIX terminal") for name in ("fcntl", "pty", "termios"))


def on_a_terminal(command: list[str]) -> str:
    """What the command writes to its terminal."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(command, cwd=small_runs.ROOT, stdin=side, stdout=side, stderr=side, env=environment)
    os.close(side)
    written = b""
    try:
        while chunk := os.read(main, 65536):
            written += chunk
    except OSError:  # the last process has closed it
        pass
    finally:
        os.close(main)
        process.wait()
    return written.decode()


def test_a_terminal_shows_a_bar_and_the_end_below_it(tmp_path):
    command = small_runs.command("classification", small_runs.MAKERS["classification"](tmp_path / "data"), tmp_path / "run")
    written = on_a_terminal(command)
    assert "6/6" in written and "step 2/6" not in written
    end = written[written.index("6 steps in") :]
    assert "\r\nin " in end and "6/6" not in end, "the bar was drawn again after the last lines"
    before = written[: written.index("6 steps in")]
    assert before.endswith("\n"), "the last line does not begin on a line of its own"
    again = on_a_terminal(command)
    assert "nothing left to train at step 6" in again and "it/s" not in again and "step/s" not in again


def test_the_reader_of_the_help_may_leave():
    command = f"{sys.executable} -m imgrec_jax.main --help | head -n 2"
    done = subprocess.run(command, shell=True, cwd=small_runs.ROOT, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 2 and done.stderr == ""


def test_a_pipe_shows_plain_lines(tmp_path):
    command = small_runs.command("classification", small_runs.MAKERS["classification"](tmp_path / "data"), tmp_path / "run")
    status, out, error = small_runs.run(command)
    assert status == 0 and error == "" and "\r" not in out
    assert [line.split()[1] for line in out.splitlines() if line.startswith("step ")] == ["2/6", "4/6", "6/6"]


def test_the_script_s_help_shows_flags_and_commands():
    program = "import sys; sys.argv = ['imgrec', '--help']; from imgrec_jax.main import imgrec; imgrec()"
    done = subprocess.run([sys.executable, "-c", program], cwd=small_runs.ROOT, capture_output=True, text=True, check=True)
    assert "--workdir" in done.stdout and "predict" in done.stdout and done.stderr == ""


def test_a_forgotten_length_leaves_the_run_s_own(tmp_path):
    data = small_runs.MAKERS["classification"](tmp_path / "data")
    long = small_runs.command("classification", data, tmp_path / "run")
    assert small_runs.run(long)[0] == 0
    status, out, _ = small_runs.run([*long, "--config.train.total_steps=4"])
    assert status == 0 and "asks for 4 steps, and the run is at 6" in out
    assert '"total_steps": 6' in (tmp_path / "run" / "config.json").read_text()


@pytest.mark.parametrize("words", [["--help"], ["sweep", "--help"]])
def test_help_that_nobody_reads_is_no_fault(words):
    program = f"import sys; sys.argv[1:] = {words!r}; from imgrec_jax.main import imgrec; imgrec()"
    script = 'exec 3>&1; { "$@"; echo "$?" >&3; } | true'
    done = subprocess.run(
        ["bash", "-c", script, "bash", sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_answers_that_nobody_reads_are_no_success():
    with pytest.raises(SystemExit) as ended, command.ending_in_one_line():
        raise BrokenPipeError(32, "Broken pipe")
    assert ended.value.code == 141
    with pytest.raises(SystemExit) as ended, command.ending_in_one_line():
        raise SystemExit(1)
    assert ended.value.code == 1


def test_loops_that_orbax_closed_are_passed_over_and_nothing_else(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    writers.pass_over_closed_loops()
    for error in (RuntimeError("Event loop is closed"), RuntimeError("something else")):
        sys.unraisablehook(SimpleNamespace(exc_value=error))
    assert [str(one.exc_value) for one in told] == ["something else"]


def test_a_program_without_standard_streams_has_them_all_the_same(tmp_path):
    program = "\n".join([
        "import os, sys",
        "from imgrec_jax.run import writers",
        "writers.open_closed()",
        "file = open(sys.argv[1], 'w')",
        "os.write(2, b'of a library')",
        "print(file.fileno() > 2, sys.stderr.isatty(), sys.stdin.read() == '', file=file)",
        "writers.emit('x')",
    ])  # fmt: skip
    words = shlex.join([sys.executable, "-c", program, str(tmp_path / "file")])
    status = subprocess.run(["sh", "-c", f"{words} <&- >&- 2>&-"], check=False).returncode
    assert status == 0 and (tmp_path / "file").read_text() == "True False True\n"

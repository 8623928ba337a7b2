"""What a run leaves for people and programs: `metrics.jsonl`, and lines or a bar on the terminal; more is in `boards`.

`metrics.jsonl` holds nothing that depends on the clock on the wall, so two equal runs write equal files; speed goes to
boards and the terminal.
"""

import contextlib
import json
import math
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO


def emit(line: str, file: TextIO | None = None) -> None:
    """Prints a line to stdout, or to `file`. A reader that leaves (`| head`) or a full disk behind it ends the lines, not the
    work."""
    file = sys.stdout if file is None else file
    try:
        print(line, file=file, flush=True)
    except OSError:
        silence(file)
        if file is not sys.stderr:
            emit("note: nobody reads the output any more; the run goes on", sys.stderr)


def silence(file: TextIO) -> None:
    """What is written to a standard stream from now on, and what is in its buffer, goes nowhere."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(quiet, file.fileno())
    os.close(quiet)


def open_closed() -> None:
    """Gives a program that was started without a standard stream (`2>&-`) one that goes nowhere: the next file that it opens
    would have that number, and what libraries print there would be written into it."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "r" if name == "stdin" else "w"))


def pass_over_closed_loops() -> None:
    """Tells nobody of readers of a damaged checkpoint that orbax leaves behind, and that find their event loop closed."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def aside(path: Path) -> Path:
    """Gives a file or folder a name that is not taken, `metrics_1.jsonl`, and returns it."""
    number = 1
    while (free := path.with_name(f"{path.stem}_{number}{path.suffix}")).exists():
        number += 1
    path.rename(free)
    return free


class MetricsFile:
    """Append-only JSON lines that can be cut back to where a checkpoint was taken.

    Attributes:
      count: records in it.
      kept: those that were in it when it was opened.
    """

    def __init__(
        self,
        path: Path,
        *,
        resume_at: int = 0,
        crc: int | None = None,
        say: Callable[[str], None] = emit,
        silent: bool = False,
    ):
        """Opens `path`, of which the first `resume_at` bytes stay.

        Args:
          crc: CRC-32 of these bytes; None where it is not known. A file that does not begin with them, or holds records where
            none stay, is kept under another name.
          say: told when that happens.
          silent: do nothing at all, for all but one process.
        """
        self._file, self._crc, self.count, self.kept = None, 0, 0, list[dict[str, Any]]()
        if silent:
            return
        kept = self._kept(path, resume_at, crc)
        if not kept and path.exists() and path.stat().st_size:
            say(f"note: {path} {'is not the file that this run wrote' if resume_at else 'holds records of an earlier start'}; "
                f"it is kept as {aside(path).name}")  # fmt: skip
        elif not kept and resume_at:
            say(f"note: {path} is gone; its records begin anew here")
        path.touch()
        self._file = path.open("r+b")
        self._file.truncate(kept)
        self._file.seek(kept)

    def _kept(self, path: Path, resume_at: int, crc: int | None) -> int:
        """How many bytes of the file are this run's: `resume_at` or 0."""
        try:
            with path.open("rb") as file:
                data = file.read(resume_at)
        except FileNotFoundError:
            return 0
        whole = len(data) == resume_at and data.endswith(b"\n") and (crc is None or zlib.crc32(data) == crc)
        try:
            self.kept = list(map(json.loads, data.splitlines())) if whole else []
        except ValueError:  # of an early version, which kept no checksum
            whole, self.kept = False, []
        self._crc = zlib.crc32(data) if whole else 0
        self.count = len(self.kept)
        return resume_at if whole else 0

    def write(self, record: dict[str, Any]) -> None:
        if self._file is not None:
            line = json.dumps(to_json(record), allow_nan=False).encode() + b"\n"
            try:
                self._file.write(line)
                self._file.flush()
            except OSError as error:  # half a line is cut off by the next start
                raise OSError(f"{self._file.name} cannot be written: {error}. Free space, and start again") from error
            self._crc, self.count = zlib.crc32(line, self._crc), self.count + 1

    def position(self) -> tuple[int, int, int]:
        """(the byte after the last record, once it is on the disk; CRC-32 of all bytes before; how many records these are)."""
        if self._file is None:
            return 0, 0, 0
        os.fsync(self._file.fileno())
        return self._file.tell(), self._crc, self.count

    def cut(self, position: tuple[int, int, int]) -> None:
        """Drops what was written since `position`."""
        if self._file is not None:
            self._file.truncate(position[0])
            self._file.seek(position[0])
            self._crc, self.count = position[1:]

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # said when it was written
                self._file.close()


def to_json(value: Any) -> Any:
    """JSON has no NaN and no infinity: such a number becomes null."""
    if isinstance(value, dict):
        return {key: to_json(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Profile:
    """A trace of a few steps, for TensorBoard's profile tab or Perfetto."""

    def __init__(self, folder: Path, window: tuple[int, int] | None, start: int):
        """Args: folder; window: (first step after `start`, how many), or None; start: the step at which the run begins."""
        self._folder, self._running = folder, False
        self._first = start + window[0] if window else None
        self._last = start + sum(window) if window else None

    def before(self, step: int) -> None:
        """Called before each step; starts and ends the trace."""
        import jax  # slow to import, and the lines above are of every command

        if step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        elif self._running and self._last is not None and step >= self._last:
            self.close()

    def close(self) -> None:
        if self._running:
            import jax

            jax.profiler.stop_trace()
            self._running = False


class Console:
    """Progress of a run: a bar on a terminal, plain lines in a pipe."""

    def __init__(self, total_steps: int, start: int, steps_per_epoch: int, batch_size: int, *, silent: bool = False):
        self._silent = silent
        self._total, self._epoch, self._batch = total_steps, steps_per_epoch, batch_size
        self._bar = None
        self._mark, self._waited = (start, time.perf_counter()), 0.0
        if sys.stderr.isatty() and not silent:
            from tqdm import tqdm

            self._bar = tqdm(total=total_steps, initial=start, unit="step", dynamic_ncols=True, smoothing=0.1)

    def advance(self, step: int) -> None:
        self._on_bar(lambda bar: bar.update(step - bar.n))

    def _on_bar(self, action: Callable[[Any], Any]) -> None:
        """A terminal that is gone takes the bar with it, not the run."""
        try:
            if self._bar is not None:
                action(self._bar)
        except OSError:
            self._bar = None

    @contextlib.contextmanager
    def waiting(self, computing: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Within it the loop waits for data: for nothing where, at the end, the steps before are still `computing`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._waited += 0.0 if computing() else time.perf_counter() - began

    def report(self, step: int, values: dict[str, float]) -> tuple[float, float]:
        """Shows training values as of `step`; returns examples per second since the last report, and the share of that time
        that the loop waited for data with no step left to compute: near 0 where they are there in time."""
        now = time.perf_counter()
        seconds = max(now - self._mark[1], 1e-9)
        speed, waited = (step - self._mark[0]) * self._batch / seconds, min(self._waited / seconds, 1.0)
        self._mark, self._waited = (step, now), 0.0
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        pace = f"{speed:,.0f} img/s, {100 * waited:.0f} % waiting for data"
        if self._bar is not None:
            self._on_bar(lambda bar: bar.set_postfix_str(f"{shown}  {pace}"))
        else:
            left = (self._total - step) * self._batch / max(speed, 1e-9)
            self.progress(f"step {step}/{self._total}  epoch {step / self._epoch:.2f}  {shown}  {pace}  ETA {duration(left)}")
        return speed, waited

    def restart_clock(self, step: int) -> None:
        """Leaves what happened since the last report (an evaluation, a checkpoint) out of the speed."""
        self._mark, self._waited = (step, time.perf_counter()), 0.0

    def progress(self, line: str) -> None:
        """A line on how training goes."""
        self.say(line)

    def say(self, line: str) -> None:
        if self._bar is not None:
            self._on_bar(lambda bar: bar.write(line))
        elif not self._silent:
            emit(line)

    def close(self) -> None:
        """Leaves the bar as it stands; lines that are said afterwards come below it."""
        self._on_bar(lambda bar: bar.close())
        self._bar = None


def duration(seconds: float) -> str:
    """3723.4 -> 1:02:03."""
    seconds = int(round(seconds))
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"

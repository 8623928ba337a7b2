"""What a run leaves for people and programs: `metrics.jsonl`, TensorBoard events, and lines or a bar on the terminal.

`metrics.jsonl` holds nothing that depends on the clock on the wall, so two equal runs write equal files; speed goes to
TensorBoard and the terminal.
"""

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax


class MetricsFile:
    """Append-only JSON lines that can be cut back to where a checkpoint was taken."""

    def __init__(self, path: Path, *, resume_at: int = 0, silent: bool = False):
        """Opens `path` and drops everything after byte `resume_at`; `silent` does nothing at all, for all but one process."""
        self._file = None
        if silent:
            return
        path.touch()
        self._file = path.open("r+b")
        self._file.truncate(resume_at)
        self._file.seek(resume_at)

    def write(self, record: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()

    def position(self) -> int:
        """The byte after the last record, once it is on the disk."""
        if self._file is None:
            return 0
        os.fsync(self._file.fileno())
        return self._file.tell()


class TensorBoard:
    """Scalars for TensorBoard; opened at the first write, because its package is slow to import."""

    def __init__(self, folder: Path):
        self._folder, self._writer = folder, None

    def write(self, step: int, values: dict[str, Any]) -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Profile:
    """A trace of a few steps, for TensorBoard's profile tab or Perfetto."""

    def __init__(self, folder: Path, window: tuple[int, int] | None, start: int):
        """Args: folder; window: (first step after `start`, how many), or None; start: the step at which the run begins."""
        self._folder, self._running = folder, False
        self._first, self._last = (start + window[0], start + sum(window)) if window else (None, None)

    def before(self, step: int) -> None:
        """Called before each step; starts and ends the trace."""
        if step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        elif self._running and step >= self._last:
            self.close()

    def close(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False


class Console:
    """Progress of a run: a bar on a terminal, plain lines in a pipe."""

    def __init__(self, total_steps: int, start: int, steps_per_epoch: int, batch_size: int, *, silent: bool = False):
        self._silent = silent
        self._total, self._epoch, self._batch = total_steps, steps_per_epoch, batch_size
        self._bar = None
        self._mark = (start, time.perf_counter())
        if sys.stderr.isatty() and not silent:
            from tqdm import tqdm

            self._bar = tqdm(total=total_steps, initial=start, unit="step", dynamic_ncols=True, smoothing=0.1)

    def advance(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def report(self, step: int, values: dict[str, float]) -> float:
        """Shows training values as of `step`; returns examples per second since the last report."""
        now = time.perf_counter()
        speed = (step - self._mark[0]) * self._batch / max(now - self._mark[1], 1e-9)
        self._mark = (step, now)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(f"{shown}  {speed:,.0f} img/s")
        else:
            left = (self._total - step) * self._batch / max(speed, 1e-9)
            self.say(
                f"step {step}/{self._total}  epoch {step / self._epoch:.2f}  {shown}  {speed:,.0f} img/s  ETA {duration(left)}"
            )
        return speed

    def restart_clock(self, step: int) -> None:
        """Leaves what happened since the last report (an evaluation, a checkpoint) out of the speed."""
        self._mark = (step, time.perf_counter())

    def say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line)
        elif not self._silent:
            print(line, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def duration(seconds: float) -> str:
    """3723.4 -> 1:02:03."""
    seconds = int(round(seconds))
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"

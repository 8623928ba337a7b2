"""How far runs are that train in processes of their own: a bar on a terminal, a line a minute in a pipe."""

import contextlib
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from imgrec_jax.inference.command import note
from imgrec_jax.run.writers import duration

EVERY_SECONDS = 60.0  # in a pipe
NAMED = 4  # of the runs that go on
ROOM = 20  # for the bar
TAIL_BYTES = 8192  # of a log, among which there is a line with a step
_STEP = re.compile(rb"step (\d+)/(\d+)")


def step_of(log: Path, start: int = 0) -> tuple[int, int] | None:
    """(step, of how many) as a run's log says last, after `start` bytes of earlier ones; None where it does not yet."""
    try:
        with log.open("rb") as file:
            file.seek(max(file.seek(0, 2) - TAIL_BYTES, start))
            found = _STEP.findall(file.read())
    except OSError:
        return None
    return (int(found[-1][0]), int(found[-1][1])) if found else None


class Progress:
    """Of so many runs, of which some were done before."""

    def __init__(self, total: int, done: int):
        self._total, self._said = total, time.monotonic()
        self._began: tuple[float, float] | None = None  # how far all were at the first look, and when that was
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            shape = "{percentage:3.0f}%|{bar}| {desc}"
            self._bar = tqdm(total=total, initial=done, bar_format=shape, dynamic_ncols=True, leave=False)

    def show(self, done: int, logs: Sequence[tuple[Path, int]]) -> None:
        """done: runs that are at their ends; logs: of those that go on, with the byte at which each has begun."""
        steps = {log.stem: step_of(log, start) for log, start in logs}
        far = done + sum(step / max(of, 1) for step, of in filter(None, steps.values()))
        now = time.monotonic()
        self._began = self._began or (far, now)
        made, seconds = far - self._began[0], now - self._began[1]
        eta = f"  ETA {duration(seconds / made * (self._total - far))}" if made > 0 else ""
        going = [f"{name} {found[0]}/{found[1]}" if found else f"{name} begins" for name, found in steps.items()]
        more = [f"and {len(going) - NAMED} more"] if len(going) > NAMED else []
        text = f"{done}/{self._total} done{eta}  {', '.join(going[:NAMED] + more)}"
        if self._bar is not None:
            with contextlib.suppress(OSError):  # a terminal that is gone takes the bar with it
                self._bar.n = far
                self._bar.set_description_str(text[: max(shutil.get_terminal_size().columns - ROOM, 20)])
        elif now - self._said >= EVERY_SECONDS:
            self._said = now
            note(text)

    @contextlib.contextmanager
    def cleared(self) -> Iterator[None]:
        """Within it lines can be printed: the bar is out of the way."""
        if self._bar is None:
            yield
            return
        with contextlib.suppress(OSError):
            self._bar.clear()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                self._bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.close()
            self._bar = None

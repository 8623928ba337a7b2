"""The runs of a sweep, each a process of its own on cores or a device of its own. What is done is a line of results.jsonl."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from imgrec_jax import machine
from imgrec_jax.inference.command import note
from imgrec_jax.sweeps.points import Point
from imgrec_jax.sweeps.progress import Progress

RESULTS = "results.jsonl"
LOOK_SECONDS = 1.0  # how often runs are looked at
PATIENCE_SECONDS = 20  # with a run that an earlier start of the sweep has left behind


def finished(folder: Path) -> dict[str, dict[str, Any]]:
    """{name: its line of results.jsonl} of the points that are done; a last line that was cut off counts not."""
    done = {}
    if (folder / RESULTS).exists():
        for line in (folder / RESULTS).read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError):
                entry = json.loads(line)
                done[entry["point"]] = entry
    return done


def final_values(workdir: Path) -> dict[str, dict[str, float]]:
    """{split: its last evaluation, numbers alone} of a run, up to a line that is being written."""
    splits: dict[str, dict[str, float]] = {}
    path = workdir / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if entry["split"] != "train":
            splits[entry["split"]] = {k: v for k, v in entry.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return splits


def command(config: str, point: Point, folder: Path) -> list[str]:
    flags = [f"--config.{key}={value}" for key, value in point.overrides.items()]
    return [sys.executable, "-m", "imgrec_jax.main", f"--config={config}", *flags, f"--workdir={folder / point.name}"]


class Places:
    """Cores or devices, handed out to runs and taken back."""

    def __init__(self, jobs: int, cores: int, devices: Sequence[str]):
        there = machine.cores()
        self._devices = list(devices)
        groups = [tuple(there[i : i + cores]) for i in range(0, len(there) - cores + 1, cores)] or [tuple(there)]
        self._free = [(groups[i % len(groups)], devices[i % len(devices)] if devices else None) for i in range(jobs)][::-1]

    def take(self) -> tuple[tuple[int, ...], str | None] | None:
        return self._free.pop() if self._free else None

    def give(self, place: tuple[tuple[int, ...], str | None]) -> None:
        self._free.append(place)


# Becomes the command that follows, on these cores; on Linux a sweep that is killed takes its runs with it, which save.
_LAUNCH = """
import ctypes, os, signal, sys
if sys.argv[1] and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, map(int, sys.argv[1].split(",")))
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
os.execv(sys.argv[2], sys.argv[2:])
"""


class Running(NamedTuple):
    process: subprocess.Popen
    point: Point
    place: tuple[tuple[int, ...], str | None]
    began: float
    log: tuple[Path, int]  # and the byte at which it begins there


def start(words: Sequence[str], point: Point, folder: Path, place: tuple[tuple[int, ...], str | None]) -> Running:
    """Starts a run's command on its cores; what it prints goes to NAME.log."""
    cores, device = place
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": device} if device is not None else {})}
    with (folder / f"{point.name}.log").open("a") as log:
        size = log.tell()
        place_of = ",".join(map(str, cores)) if device is None else ""
        process = subprocess.Popen(  # a session of its own: Ctrl-C reaches it through `stop` alone, once
            [sys.executable, "-c", _LAUNCH, place_of, *words],
            stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip
    return Running(process, point, place, time.perf_counter(), (Path(log.name), size))


def stop(running: Sequence[Running]) -> None:
    """Asks the runs to save and end, and waits for it."""
    for one in running:
        one.process.send_signal(signal.SIGTERM)
    for one in running:
        one.process.wait()


def run_all(
    command_of: Callable[[Point], list[str]],
    todo: Sequence[Point],
    folder: Path,
    places: Places,
    total: int,
    done: int,
    *,
    prepared: bool = False,
    meanwhile: Callable[[], None] = lambda: None,
    ended: Callable[[Point, str], None] = lambda point, why: None,
    stopping: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Runs the points, and returns {name: why} of those that failed or did not come to their ends. The first has begun to
    train before others start, so that what a data set needs to be prepared is done once; where it is `prepared`, all start.

    total, done: how many runs there are, and were done before; meanwhile: called every LOOK_SECONDS while runs go on; ended:
    told of each run that will not go on, and why it failed, "" if it did not; stopping: called before their end is waited for
    because this process is to end.
    """
    waiting, failed = list(todo), dict[str, str]()
    progress, looked, done_before = Progress(total, done), time.monotonic(), done
    running: list[Running] = []
    busy: list[str] = []
    try:
        while waiting or running:
            first = len(running) == 1 and done == done_before and not prepared
            alone = first and not _begun(folder, running[0].point)
            if waiting and not alone and (place := places.take()) is not None:
                running.append(start(command_of(waiting[0]), waiting.pop(0), folder, place))
                continue
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                places.give(one.place)
                done += 1
                seconds = time.perf_counter() - one.began
                why = unfinished(folder / one.point.name) if one.process.returncode == 0 else ""
                if one.process.returncode == 0 and not why:
                    record(folder, one.point, seconds)
                    with progress.cleared():
                        note(f"{done}/{total}  {one.point.name}: {_headline(folder / one.point.name)}  ({seconds:.0f} s)")
                    ended(one.point, "")
                    continue
                said = (folder / f"{one.point.name}.log").read_text(errors="replace").strip().splitlines()
                if said and " is in use by " in said[-1] and busy.count(one.point.name) < PATIENCE_SECONDS:
                    busy.append(one.point.name)  # a run of a sweep that was killed saves first
                    waiting.insert(0, one.point)
                    done -= 1
                    time.sleep(1.0)
                else:
                    failed[one.point.name] = why or (said[-1] if said else "without a word")
                    verb = "is unfinished" if why else "failed"
                    with progress.cleared():
                        note(f"{done}/{total}  {one.point.name} {verb}: {failed[one.point.name]}")
                    ended(one.point, failed[one.point.name])
            if time.monotonic() - looked > LOOK_SECONDS:
                looked = time.monotonic()
                with progress.cleared():
                    meanwhile()
                progress.show(done, [one.log for one in running])
            time.sleep(0.1)
    except BaseException:
        progress.close()
        stopping()
        stop(running)
        raise
    progress.close()
    meanwhile()
    return failed


def unfinished(workdir: Path) -> str:
    """Why a run that has ended in order is not at its end; "" for one that is."""
    from imgrec_jax.run import checkpoint, start  # slow to import
    from imgrec_jax.run import workdir as workdirs

    try:
        # One that keeps no checkpoints ends in order at its end alone.
        if not workdirs.read_config(workdir).checkpoint.enabled or start.has_ended(workdir):
            return ""
        steps = [found.step for found in checkpoint.saved(workdir)]
        return f"it was ended at step {steps[-1]}, before its end" if steps else "it was ended before it saved a checkpoint"
    except (workdirs.WorkdirError, start.CheckpointError) as error:
        return " ".join(str(error).split())


def _begun(folder: Path, point: Point) -> bool:
    """Whether a run has opened its data."""
    return (folder / point.name / "run.json").exists()


def record(folder: Path, point: Point, seconds: float) -> None:
    """Adds the line of a run that is done, below one that a full disk cut off."""
    entry = {"point": point.name, "seed": point.seed, "values": point.values, "seconds": round(seconds, 1)}
    line = json.dumps({**entry, "splits": final_values(folder / point.name)}).encode() + b"\n"
    with (folder / RESULTS).open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)


def _headline(workdir: Path) -> str:
    splits = final_values(workdir)
    shown = splits.get("best_test") or splits.get("test") or next(iter(splits.values()), {})
    return ", ".join(f"{name} {shown[name]:.4g}" for name in ("accuracy", "mean_iou", "AP", "loss") if name in shown)

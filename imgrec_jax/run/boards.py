"""Where a run's numbers and pictures go beside its folder: TensorBoard, Weights & Biases, MLflow.

A board is told of every record once more after a kill, because the run makes these steps again, and of all that
`metrics.jsonl` kept when a run goes on or has ended without it; it shows each once. A service that fails costs its curves, not
the run, and one that does not answer holds up no step: a thread writes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import queue
import secrets
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from imgrec_jax.data.files import write_whole
from imgrec_jax.run.workdir import METRICS

TOLD = "boards.json"  # in the workdir of a run that has ended: {board: how many records it has been told of}
PATIENCE = {True: 120.0, False: 8.0}  # seconds for what is still to be written, of a run that has ended and of another
_WRITING: dict[Path, threading.Thread] = {}  # of a workdir, what still writes after its start has ended
Pictures = Mapping[str, np.ndarray]  # {name: uint8 [H, W, 3]}


class Board(Protocol):
    """What numbers and pictures are shown on; opening it may fail in any way."""

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Scalars of a record, finite, by "SPLIT/NAME"; called again for records that were written before."""

    def show(self, step: int, pictures: Pictures) -> None:
        """Pictures of what the run is at a step; called again like `write`."""

    def close(self, finished: bool) -> None:
        """The end of this start, or of the run."""


class Place(NamedTuple):
    """folder: the workdir; config: {key: value}, flat, of a run that begins."""

    folder: Path
    config: Mapping[str, Any]


class TensorBoard:
    """Event files in WORKDIR/tensorboard; opened at the first write, because the package is slow to import."""

    PACKAGE = "tensorboardX"

    def __init__(self, place: Place):
        self._folder = place.folder / "tensorboard"
        self._writer: Any = None
        self._seen: set[tuple[str, int]] = set()

    def _open(self) -> Any:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._seen = set(_events(self._folder))
            # Its own name has whole seconds, and a start within the same second would write over it.
            self._writer = SummaryWriter(str(self._folder), filename_suffix=f".{secrets.token_hex(4)}")
        return self._writer

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        writer = self._open()
        for name, value in values.items():
            if (name, step) not in self._seen:
                writer.add_scalar(name, value, step)
                self._seen.add((name, step))
        writer.flush()

    def show(self, step: int, pictures: Pictures) -> None:
        writer = self._open()
        for name, image in pictures.items():
            if (name, step) not in self._seen:
                writer.add_image(name, image, step, dataformats="HWC")
                self._seen.add((name, step))
        writer.flush()

    def close(self, finished: bool) -> None:
        if self._writer is not None:
            self._writer.close()


def _events(folder: Path) -> Iterator[tuple[str, int]]:
    """(name, step) of everything in the event files of a folder, up to where a kill cut them off or one is damaged.

    TensorBoard shows nothing of a file behind that place, either.
    """
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        at = 0
        while at + 12 <= len(data):  # length, its checksum, content, its checksum
            stop = at + 12 + struct.unpack("<Q", data[at : at + 8])[0]
            if stop + 4 > len(data):
                break
            try:
                event = Event.FromString(data[at + 12 : stop])
            except Exception:  # protobuf's, which tensorboardX brings
                break
            yield from ((value.tag, event.step) for value in event.summary.value)
            at = stop + 4


class MLflow:
    """A run of MLflow, at MLFLOW_TRACKING_URI and of the experiment MLFLOW_EXPERIMENT_NAME; WORKDIR/mlflow.json keeps which."""

    PACKAGE = "mlflow"

    def __init__(self, place: Place):
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # its own 2 minutes, 7 times over, are an evening
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        self._client = MlflowClient()
        self._seen: set[tuple[str, int]] = set()
        kept = place.folder / "mlflow.json"
        if kept.exists():
            self._id = json.loads(kept.read_text())["run_id"]
            try:
                metrics = self._client.get_run(self._id).data.metrics
            except MlflowException as error:
                raise ValueError(
                    f"{kept} names the MLflow run {self._id}, and it is not at {self._client.tracking_uri}: set "
                    "MLFLOW_TRACKING_URI as it was at the start, or remove that file for a new run there"
                ) from error
            self._client.update_run(self._id, status="RUNNING")
            self._seen = {(m.key, m.step) for key in metrics for m in self._client.get_metric_history(self._id, key)}
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "imgrec_jax")
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        made = self._client.create_run(experiment, run_name=place.folder.resolve().name, tags={"workdir": str(place.folder)})
        self._id = made.info.run_id
        _keep(kept, {"run_id": self._id})
        from mlflow.entities import Param

        params = [Param(key, str(value)[:500]) for key, value in place.config.items()]
        for start in range(0, len(params), 100):  # as many as a call takes
            self._client.log_batch(self._id, params=params[start : start + 100])

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = [Metric(_plain(name), value, now, step) for name, value in values.items()]
        new = [metric for metric in new if (metric.key, step) not in self._seen]
        for start in range(0, len(new), 1000):
            self._client.log_batch(self._id, metrics=new[start : start + 1000])
        self._seen |= {(metric.key, step) for metric in new}

    def show(self, step: int, pictures: Pictures) -> None:
        for name, image in pictures.items():  # one written again lies where it lay
            self._client.log_image(self._id, image, artifact_file=f"{_plain(name)}/{step:08}.png")

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


def _plain(name: str) -> str:
    """A name of the letters that MLflow takes."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)


class WandB:
    """A run of Weights & Biases, of the project WANDB_PROJECT; WORKDIR/wandb.json keeps which, and what it was told.

    Nothing can be read back from it offline: what is to be written is noted before it is, so that a kill between the two loses
    a record rather than doubling it. Its rows have numbers of their own, which only grow; `step` is a column.
    """

    PACKAGE = "wandb"

    def __init__(self, place: Place):
        import wandb

        self._kept = place.folder / "wandb.json"
        fresh: dict[str, Any] = {"id": secrets.token_hex(4), "rows": 0, "step": -1, "splits": [], "shown": -1}
        self._state = json.loads(self._kept.read_text()) if self._kept.exists() else fresh
        _keep(self._kept, self._state)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "imgrec_jax"), id=self._state["id"], resume="allow",
            name=place.folder.resolve().name, dir=str(place.folder), config=dict(place.config),
            settings=wandb.Settings(console="off"),
        )  # fmt: skip
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._image = wandb.Image

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        last, splits = self._state["step"], self._state["splits"]
        if step > last or (step == last and split not in splits):
            self._log({**values, "step": step}, step=step, splits=[split] if step > last else [*splits, split])

    def show(self, step: int, pictures: Pictures) -> None:
        if step > self._state["shown"]:
            self._log({**{name: self._image(image) for name, image in pictures.items()}, "step": step}, shown=step)

    def _log(self, row: Mapping[str, Any], **noted: Any) -> None:
        """Writes a row, and that it is written; one that fails is to be written again."""
        before, number = self._state, self._state["rows"]
        self._note({**before, **noted, "rows": number + 1})
        try:
            self._run.log(row, step=number)
        except Exception:
            self._note(before)
            raise

    def _note(self, state: dict[str, Any]) -> None:
        self._state = state
        _keep(self._kept, state)

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


def _keep(path: Path, value: Any) -> None:
    write_whole(path, lambda partial: partial.write_text(json.dumps(value) + "\n"))


BOARDS: dict[str, type[Any]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


def require(names: Iterable[str]) -> None:
    """Raises ValueError for a board whose package is missing."""
    for name in names:
        if importlib.util.find_spec(BOARDS[name].PACKAGE) is None:
            raise ValueError(f"config.log.writers: {name} is not installed; pip install 'imgrec-jax[{name}]'")


class Boards:
    """All boards of a run, written to by a thread; one that fails is left out from then on, with a line that says so."""

    def __init__(self, names: Sequence[str], place: Place, say: Callable[[str], None], *, fresh: bool = True):
        """Opens them. fresh: the run begins, and can as well begin once they can be opened; another goes on without.

        A start of the same workdir in this process that has not written everything yet is waited for: two would write the same
        records, and W&B has one run a process.

        Raises:
          ValueError: for one that cannot be opened, where the run begins.
        """
        self._names, self._place, self._say, self._open = tuple(names), place, say, dict[str, Board]()
        if not _left(place.folder):
            say(f"note: {' and '.join(names)} still write what an earlier start gave them; this one goes on without, {_AGAIN}")
            self._names = ()
        for name in self._names:
            try:
                self._open[name] = BOARDS[name](place)
            except Exception as error:
                if fresh:
                    self._close_all(False)
                    raise ValueError(f"config.log.writers: {name} cannot be opened ({_line(error)})") from error
                say(_without(name, "opened", error))
        self._work = queue.SimpleQueue[Callable[[], None] | None]()
        self._thread = threading.Thread(target=self._write_on, name="boards", daemon=True)
        if self._names:
            self._thread.start()

    def __bool__(self) -> bool:
        return bool(self._open)

    def catch_up(self, records: Iterable[dict[str, Any]]) -> None:
        """Writes what a board missed of the records of a run that goes on."""
        if self._open:
            for record in records:
                self.write(record["step"], record["split"], record)

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        scalars = _scalars(split, values)
        self._each(lambda board: board.write(step, split, scalars))

    def show(self, step: int, pictures: Pictures) -> None:
        self._each(lambda board: board.show(step, pictures))

    def close(self, finished: bool) -> None:
        """Waits for what is to be written, within reason. finished: the run has ended; boards that failed are tried again."""
        if not self._thread.is_alive():
            return
        self._work.put(lambda: self._end(finished))
        self._work.put(None)
        self._thread.join(PATIENCE[finished])
        if self._thread.is_alive():
            _WRITING[self._place.folder.resolve()] = self._thread
            self._say(f"note: {' and '.join(self._names)} did not take everything in {PATIENCE[finished]:.0f} s; {_AGAIN}")

    def _write_on(self) -> None:
        while (action := self._work.get()) is not None:
            action()

    def _each(self, action: Callable[[Board], None]) -> None:
        if self._open:
            self._work.put(lambda: self._now(action))

    def _now(self, action: Callable[[Board], None]) -> None:
        for name, board in list(self._open.items()):
            try:
                action(board)
            except Exception as error:
                del self._open[name]
                self._say(_without(name, "written to", error))
                with contextlib.suppress(Exception):
                    board.close(False)

    def _end(self, finished: bool) -> None:
        closed = self._close_all(finished)
        if finished:
            _note_told(self._place.folder, closed)
            finish(self._names, self._place, self._say)

    def _close_all(self, finished: bool) -> list[str]:
        """Returns those that could be closed."""
        closed = []
        for name, board in self._open.items():
            try:
                board.close(finished)
                closed.append(name)
            except Exception as error:
                self._say(_without(name, "closed", error))
        return closed


def _left(folder: Path) -> bool:
    """Waits for what an earlier start of this process still writes of a workdir; whether that has ended."""
    thread = _WRITING.get(folder.resolve())
    if thread is not None:
        thread.join(PATIENCE[True])
        if thread.is_alive():
            return False
        del _WRITING[folder.resolve()]
    return True


def finish(names: Iterable[str], place: Place, say: Callable[[str], None]) -> None:
    """Tells boards what they lack of a run that has ended; one that still fails gets a line."""
    records, told = _records(place.folder), _told(place.folder)
    for name in names:
        if told.get(name) == len(records) or not records:
            continue
        try:
            board = BOARDS[name](place)
            for record in records:
                board.write(record["step"], record["split"], _scalars(record["split"], record))
            board.close(True)
        except Exception as error:
            say(f"note: {name} lacks records of this run ({_line(error)}); {_AGAIN}")
        else:
            _note_told(place.folder, [name])


_AGAIN = "what is missing there is written when the run is started again"


def _without(name: str, how: str, error: Exception) -> str:
    return f"note: {name} cannot be {how} ({_line(error)}); the run goes on without it, {_AGAIN}"


def _records(folder: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in (folder / METRICS).read_bytes().splitlines()]
    except (OSError, ValueError):
        return []


def _told(folder: Path) -> dict[str, int]:
    try:
        return dict(json.loads((folder / TOLD).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _note_told(folder: Path, names: Iterable[str]) -> None:
    """That boards have all records; where it cannot be noted, they are told once more."""
    told = {**_told(folder), **dict.fromkeys(names, len(_records(folder)))}
    with contextlib.suppress(OSError):
        _keep(folder / TOLD, told)


def _scalars(split: str, values: Mapping[str, Any]) -> dict[str, float]:
    return {f"{split}/{name}": float(value) for name, value in values.items() if _is_shown(name, value, values)}


def _is_shown(name: str, value: Any, values: Mapping[str, Any]) -> bool:
    """Not counts, nor an objective that is the loss: `metrics.jsonl` keeps them, nobody looks at their curves."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    same = name == "objective" and values.get("loss") == value
    return not same and name not in ("step", "epoch", "examples") and not name.endswith(("_count", "_correct"))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

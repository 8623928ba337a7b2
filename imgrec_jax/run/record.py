"""What a run remembers between steps, and writes down."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from imgrec_jax import metrics, parallel
from imgrec_jax.config import flatten
from imgrec_jax.experiment import Experiment
from imgrec_jax.run.boards import Boards, Pictures, Place
from imgrec_jax.run.checkpoint import Checkpointer
from imgrec_jax.run.stop import is_ready
from imgrec_jax.run.writers import Console, MetricsFile, Profile
from imgrec_jax.step import TrainState

# (step, split, values) of every report and evaluation; split is "train" for what training did since the last report.
Callback = Callable[[int, str, dict[str, Any]], None]


class Watch(Protocol):
    """Makes pictures of a run while it trains; `predict` answers batches of the shapes of `batch`, the first one."""

    batch: dict[str, Any]

    def training(self) -> Pictures:
        """What the network is trained on."""

    def answers(self, predict: Callable[[dict[str, Any]], Any]) -> Pictures:
        """What it answers now."""

    def plots(self, predict: Callable[[dict[str, Any]], Any]) -> Pictures:
        """What it comes to at the end."""


class NonFiniteError(FloatingPointError):
    """A loss, a gradient or an evaluation is not finite: says at which step, which values, and what to do."""


class Window:
    """Training sums since the last report. They stay on the device until they are read, so the loop never waits for a step."""

    def __init__(self, structure: Any, merged: list | None, to_host: Callable, explain: Callable[[int, dict], str]):
        """A window.

        Args:
          structure: of a step's sums.
          merged: saved by `dump`.
          to_host: the layout's.
          explain: (step, values) -> what to say if not finite.
        """
        self._to_host, self._explain = to_host, explain
        self._pending: list[tuple[int, Any]] = []
        self._merged: Any = jax.tree.unflatten(structure, [np.asarray(x) for x in merged]) if merged else None

    def add(self, step: int, sums: Any) -> None:
        self._pending.append((step, sums))

    @property
    def computing(self) -> bool:
        """Whether the step that was added last is still being computed."""
        return not all(map(is_ready, jax.tree.leaves([sums for _, sums in self._pending[-1:]])))

    def flush(self) -> None:
        """Reads and merges what is pending; raises NonFiniteError for the first step whose values are not finite."""
        pending, self._pending = self._pending, []
        steps = [step for step, _ in pending]
        for step, sums in zip(steps, self._to_host([sums for _, sums in pending]), strict=True):
            if not (np.isfinite(sums["objective"].total) and np.isfinite(sums["grad_norm"].total)):
                raise NonFiniteError(self._explain(step, metrics.compute(sums)))
            self._merged = metrics.merge(self._merged, sums)

    def take(self) -> dict[str, Any]:
        """The values since the last `take`, and starts anew."""
        self.flush()
        values, self._merged = metrics.compute(self._merged), None
        return values

    def dump(self) -> list | None:
        """The merged sums as plain numbers, which JSON keeps exactly."""
        self.flush()
        return None if self._merged is None else [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(self._merged)]


class EarlyStop:
    """Which evaluation was the best, and when to stop: all that the early stop remembers."""

    def __init__(self, metric: str, mode: str, patience: int | None, memory: dict[str, Any] | None):
        self.metric, self._sign, self._patience = metric, {"max": 1, "min": -1}[mode], patience
        self.memory = memory or {"best": None, "best_step": None, "waited": 0}

    def update(self, step: int, values: dict[str, Any]) -> bool:
        """Takes a validation result; returns whether it is the best so far.

        A value that is undefined (None, as AP of a split without objects) or not finite is never the best, and gives way to any
        other where an early version kept one. Of equal values, which a small split has many of, that of the lower loss is the
        better; for the patience it is no progress.
        """
        value, best, loss = values[self.metric], self.memory["best"], values.get("loss")
        better = _is_number(value) and (not _is_number(best) or self._sign * (value - best) > 0)
        least: Any = self.memory.get("loss")
        tied = _is_number(value) and value == best and _is_number(loss) and _is_number(least) and loss < least
        if better or tied:
            waited = 0 if better else self.memory["waited"] + 1
            self.memory = {"best": value, "best_step": step, "waited": waited} | ({"loss": loss} if _is_number(loss) else {})
        else:
            self.memory = {**self.memory, "waited": self.memory["waited"] + 1}
        return better or tied

    @property
    def exhausted(self) -> bool:
        return self._patience is not None and self.memory["waited"] >= self._patience


def _is_number(value: Any) -> bool:
    return value is not None and math.isfinite(value)


class Run:
    """What a run holds open while it trains: its files, its checkpoints and the little it remembers between steps.

    finished: set by the loop once nothing is left to do.
    """

    def __init__(
        self,
        experiment: Experiment,
        workdir: Path,
        checkpointer: Checkpointer | None,
        clock: dict[str, Any],
        sums: Any,
        to_host: Callable[[list[Any]], list[Any]],
        console: Callable[..., Console],
        say: Callable[[str], None],
        callbacks: Sequence[Callback] = (),
        watch: Watch | None = None,
    ):
        self.experiment, self.checkpointer, self._callbacks = experiment, checkpointer, tuple(callbacks)
        self.watch = watch
        self.predict_step: parallel.Step | None = None
        silent, start, cadence = not parallel.is_lead(), clock["step"], experiment.cadence
        self.file = MetricsFile(
            workdir / "metrics.jsonl",
            resume_at=clock["metrics_position"], crc=clock["metrics_crc"], say=say, silent=silent,
        )  # fmt: skip
        boards = () if silent else experiment.boards
        self.boards = Boards(boards, Place(workdir, flatten(experiment.config)), say, fresh=not start)
        self.boards.catch_up(self.file.kept)
        self.epoch = experiment.data.train.steps_per_epoch
        self.profile = Profile(workdir / "profile", cadence.profile, start)
        self.total_steps = experiment.optimisation.total_steps
        self.console = console(self.total_steps, start, self.epoch, experiment.data.batch_size, silent=silent)
        self.window = Window(sums, clock["window"], to_host, lambda step, values: _explain(experiment, step, values))
        self.early_stop = EarlyStop(*experiment.selection, clock["selection"])
        self.results, self.stopped, self.saved_step = clock["results"], clock["stopped"], start
        self._unseen, self._awaited = set(experiment.show), {"train", *experiment.data.evals}
        self.finished = False

    def report(self, step: int) -> None:
        """Writes and shows what training did since the last report."""
        values = self.window.take()
        speed, waited = self.console.report(step, {name: values[name] for name in self.experiment.show if name in values})
        self.record(step, "train", values, {"img_per_s": speed, "waiting_for_data": waited})

    def record(self, step: int, split: str, values: dict[str, Any], unrepeatable: dict[str, float] | None = None) -> None:
        """Writes a record; what differs from run to run goes to the boards alone."""
        self.file.write({"step": step, "epoch": step / self.epoch, "split": split, **values})
        self.boards.write(step, split, {**values, **(unrepeatable or {})})
        for callback in self._callbacks:
            callback(step, split, values)
        self._look_for_shown(split, values)

    def _look_for_shown(self, split: str, values: dict[str, Any]) -> None:
        """Says once of what is to be shown what neither training nor any split has."""
        if not self._awaited:
            return
        self._unseen -= values.keys()
        self._awaited.discard(split)
        if self._unseen and not self._awaited:
            names = ", ".join(sorted(self._unseen))
            self.console.say(f"note: config.log.show names {names}, which neither training nor an evaluation of this run has")

    def mark(self) -> dict[str, Any]:
        """What `back_to` needs to forget everything that is recorded from now on."""
        memory = dict(self.early_stop.memory)
        return {"position": self.file.position(), "memory": memory, "results": dict(self.results), "stopped": self.stopped}

    def back_to(self, mark: dict[str, Any]) -> None:
        """Forgets what was recorded since `mark`, as if the work had not begun."""
        self.file.cut(mark["position"])
        self.early_stop.memory, self.results, self.stopped = mark["memory"], mark["results"], mark["stopped"]

    def save(self, step: int, state: TrainState, phase: str, *, best: bool = False) -> None:
        """Starts writing a checkpoint; phase: what of the work after the step is done (see `start`)."""
        if self.checkpointer is None:
            return
        window = self.window.dump()
        position, crc, _ = self.file.position()
        clock = {
            "step": step,
            "phase": phase,
            "window": window,
            "metrics_position": position,
            "metrics_crc": crc,
            "selection": self.early_stop.memory,
            "results": self.results,
            "stopped": self.stopped,
            "total_steps": self.total_steps,
        }
        self.checkpointer.save(step, self.experiment.compute.layout.whole(state), clock, best=best)
        if not best:
            self.saved_step = step

    def close(self) -> None:
        """Waits for the checkpoints, then for the boards; called on every way out, also that of an error."""
        self.console.close()
        self.profile.close()
        try:
            if self.checkpointer is not None:
                self.checkpointer.close()
        finally:
            self.file.close()
            self.boards.close(self.finished)


def _explain(experiment: Experiment, step: int, values: dict[str, Any]) -> str:
    indices = experiment.data.train.batch(step)["index"]
    terms = ", ".join(f"{name} {value:.6g}" for name, value in values.items() if isinstance(value, float))
    return (
        f"training is not finite at step {step + 1}: {terms}. Examples of its batch (positions in "
        f"{experiment.data.train.source.info.name}): {indices.tolist()}. Checkpoints from before are intact. "
        "Lower optim.learning_rate, set optim.clip_norm, or look at these examples"
    )

"""The training loop, for every task.

A run starts in one of these ways, told apart in `_start`:
  fresh    an empty workdir: new parameters (or pretrained ones, merged before the optimiser's state is made);
  resume   a workdir with checkpoints: the newest whole one; steps, metrics file and early stop go on as if never interrupted;
  done     a workdir whose last checkpoint is at the end: nothing is trained.
"""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imgrec_jax import metrics, parallel
from imgrec_jax.build import Experiment
from imgrec_jax.checkpoint import Checkpointer, CheckpointError
from imgrec_jax.evaluate import evaluate
from imgrec_jax.step import TrainState, eval_variables, init_state, make_eval_step, make_train_step, named_key
from imgrec_jax.writers import Console, MetricsFile, TensorBoard, duration


class NonFiniteError(FloatingPointError):
    """The loss or the gradient is not finite: says at which step, which terms, and which examples were in the batch."""


class Window:
    """Training sums since the last report. They stay on the device until they are read, so the loop never waits for a step."""

    def __init__(self, structure: Any, merged: list | None, explain: Callable[[int, dict], str]):
        """Args: structure of a step's sums; merged: saved by `dump`; explain: (step, values) -> what to say if not finite."""
        self._structure, self._explain = structure, explain
        self._pending: list[tuple[int, Any]] = []
        self._merged = jax.tree.unflatten(structure, [np.asarray(x) for x in merged]) if merged else None

    def add(self, step: int, sums: Any) -> None:
        self._pending.append((step, sums))

    def flush(self) -> None:
        """Reads and merges what is pending; raises NonFiniteError for the first step whose values are not finite."""
        pending, self._pending = self._pending, []
        steps = [step for step, _ in pending]
        for step, sums in zip(steps, parallel.to_host([sums for _, sums in pending]), strict=True):
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


class Selection:
    """Which evaluation was the best, and when to stop: all that the early stop remembers."""

    def __init__(self, metric: str, mode: str, patience: int | None, memory: dict[str, Any] | None):
        self._metric, self._sign, self._patience = metric, {"max": 1, "min": -1}[mode], patience
        self.memory = memory or {"best": None, "best_step": None, "waited": 0}

    def update(self, step: int, values: dict[str, Any]) -> bool:
        """Takes a validation result; returns whether it is the best so far."""
        value, best = values[self._metric], self.memory["best"]
        better = best is None or self._sign * (value - best) > 0
        if better:
            self.memory = {"best": value, "best_step": step, "waited": 0}
        else:
            self.memory = {**self.memory, "waited": self.memory["waited"] + 1}
        return better

    @property
    def exhausted(self) -> bool:
        return self._patience is not None and self.memory["waited"] >= self._patience


def create_state(experiment: Experiment, mesh: Any) -> tuple[TrainState, Any]:
    """A fresh, placed state and its optimiser."""
    variables = jax.jit(lambda key: experiment.task.init(key, experiment.batch_spec))(named_key(experiment.seed, "init"))
    tx = experiment.make_optimizer(variables["params"])
    return parallel.put_state(init_state(variables, tx, experiment.ema_decay > 0), mesh), tx


def train(experiment: Experiment, workdir: Path, say: Callable[[str], None] = print) -> dict[str, dict[str, Any]]:
    """Trains until `experiment.total_steps`, an early stop or SIGTERM; returns the last evaluation of every split."""
    mesh = parallel.make_mesh()
    state, tx = create_state(experiment, mesh)
    step_fn = make_train_step(
        experiment.task, tx, seed=experiment.seed, schedule=experiment.schedule,
        ema_decay=experiment.ema_decay, accumulate=experiment.accumulate,
    )  # fmt: skip
    train_step = parallel.compile_train_step(step_fn, mesh)
    eval_step = parallel.compile_eval_step(make_eval_step(experiment.task, seed=experiment.seed), mesh)
    sums_structure = jax.tree.structure(jax.eval_shape(step_fn, state, experiment.batch_spec)[1])

    checkpointer = Checkpointer(workdir, keep=experiment.keep_checkpoints) if experiment.checkpoint_every else None
    state, clock = _start(checkpointer, state, say)
    start = int(state.step)
    file = MetricsFile(workdir / "metrics.jsonl", resume_at=clock["metrics_position"])
    board = TensorBoard(workdir / "tensorboard") if experiment.tensorboard else None
    console = Console(experiment.total_steps, start, experiment.train.steps_per_epoch, experiment.batch_size)
    window = Window(sums_structure, clock["window"], lambda step, values: _not_finite(experiment, step, values))
    selection = Selection(experiment.select_metric, experiment.select_mode, experiment.patience, clock["selection"])
    results = clock["results"]
    terminated = _catch_sigterm()

    def save(best: bool = False) -> None:
        if checkpointer is not None:
            clock = {
                "window": window.dump(), "metrics_position": file.position(),
                "selection": selection.memory, "results": results, "stopped": stopped,
            }  # fmt: skip
            checkpointer.save(done, state, clock, best=best)

    done, stopped = start, clock["stopped"]
    began = time.perf_counter()
    for step, batch in parallel.feed(
        experiment.train, start, start if stopped else experiment.total_steps, mesh, on_device=experiment.on_device
    ):
        state, sums = train_step(state, batch)
        window.add(step, sums)
        done = step + 1
        last = done == experiment.total_steps
        console.advance(done)
        if done % experiment.log_every == 0 or last:
            values = window.take()
            speed = console.report(done, {name: values[name] for name in experiment.show if name in values})
            file.write({"step": done, "epoch": done / experiment.train.steps_per_epoch, "split": "train", **values})
            if board is not None:
                board.write(done, {f"train/{name}": value for name, value in {**values, "img_per_s": speed}.items()})
        if done % experiment.eval_every == 0 or last:
            window.flush()  # a state that is not finite is not evaluated
            for split, pipeline in experiment.evals.items():
                results[split] = _evaluate(experiment, split, eval_step, state, pipeline, mesh, done, file, board, console)
            better = bool(selection._metric) and selection.update(done, results["validation"])
            stopped = selection.exhausted
            if better:
                save(best=True)
            console.restart_clock(done)
        if last or stopped or terminated() or (experiment.checkpoint_every and done % experiment.checkpoint_every == 0):
            save()
            console.restart_clock(done)
        if stopped:
            console.say(f"stopped early at step {done}: no better {selection._metric} since step {selection.memory['best_step']}")
        if stopped or terminated():
            break
    jax.block_until_ready(state)
    if checkpointer is not None:
        checkpointer.close()
    console.close()
    if board is not None:
        board.close()
    if done > start:
        console.say(f"{done - start} steps in {duration(time.perf_counter() - began)}")
    if terminated() and done < experiment.total_steps and not stopped:
        say(f"terminated at step {done}; the same command goes on from there")
    return results


def _start(checkpointer: Checkpointer | None, state: TrainState, say: Callable[[str], None]) -> tuple[TrainState, dict]:
    """Chooses between the ways a run can start (see the top of this file)."""
    fresh = {"window": None, "metrics_position": 0, "selection": None, "results": {}, "stopped": False}
    restored = checkpointer.restore(state, say) if checkpointer is not None else None
    if restored is None:
        return state, fresh
    say(f"resumed at step {int(restored[0].step)}")
    return restored


def _evaluate(experiment, split, eval_step, state, pipeline, mesh, step, file, board, console) -> dict[str, Any]:
    began = time.perf_counter()
    values = evaluate(
        eval_step, eval_variables(state), pipeline, mesh,
        summarise=experiment.summarise[split], on_device=experiment.on_device,
    )  # fmt: skip
    epoch = step / experiment.train.steps_per_epoch
    file.write({"step": step, "epoch": epoch, "split": split, **values})
    if board is not None:
        board.write(step, {f"{split}/{name}": value for name, value in values.items()})
    console.say(f"epoch {epoch:.4g}  {split}: {headline(values, experiment.show)}  ({time.perf_counter() - began:.1f} s)")
    return values


def headline(values: dict[str, Any], show: tuple[str, ...]) -> str:
    """`average loss 0.0423, accuracy 9871/10000 (98.71 %)`."""
    parts = []
    for name in show:
        if f"{name}_correct" in values:
            parts.append(f"{name} {values[f'{name}_correct']}/{values[f'{name}_count']} ({100 * values[name]:.2f} %)")
        elif name in values:
            parts.append(f"{'average ' if name == 'loss' else ''}{name} {values[name]:.4f}")
    return ", ".join(parts)


def evaluate_workdir(experiment: Experiment, workdir: Path, say: Callable[[str], None] = print) -> dict[str, dict[str, Any]]:
    """Evaluates the last checkpoint of a workdir on every split and writes `eval.json`."""
    mesh = parallel.make_mesh()
    state, _ = create_state(experiment, mesh)
    restored = Checkpointer(workdir).restore(state, say)
    if restored is None:
        raise CheckpointError(f"no checkpoint in {workdir}; train first, with the same --workdir")
    state, _ = restored
    eval_step = parallel.compile_eval_step(make_eval_step(experiment.task, seed=experiment.seed), mesh)
    results = {}
    for split, pipeline in experiment.evals.items():
        results[split] = evaluate(
            eval_step, eval_variables(state), pipeline, mesh,
            summarise=experiment.summarise[split], on_device=experiment.on_device,
        )  # fmt: skip
        say(f"step {int(state.step)}  {split}: {headline(results[split], experiment.show)}")
    (workdir / "eval.json").write_text(json.dumps({"step": int(state.step), **results}) + "\n")
    return results


def _not_finite(experiment: Experiment, step: int, values: dict[str, Any]) -> str:
    indices = experiment.train.batch(step)["index"]
    terms = ", ".join(f"{name} {value:.6g}" for name, value in values.items() if isinstance(value, float))
    return (
        f"training is not finite at step {step + 1}: {terms}. Examples of its batch (positions in "
        f"{experiment.train.source.info.name}): {indices.tolist()}. Checkpoints from before are intact. "
        "Lower optim.learning_rate, set optim.clip_norm, or look at these examples"
    )


def _catch_sigterm() -> Callable[[], bool]:
    """Notes SIGTERM instead of dying; returns whether it came. (Only a main thread may set a handler.)"""
    received: list[int] = []
    try:
        signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    except ValueError:
        return lambda: False
    return lambda: bool(received)

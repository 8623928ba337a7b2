"""The training loop, for every task.

A run starts in one of these ways, told apart in `_start`:
  fresh    a workdir without checkpoints: new parameters (or pretrained ones, merged before the optimiser's state is made);
  resume   a workdir with checkpoints: the newest whole one; steps, metrics file and early stop go on as if never interrupted;
  done     a workdir whose last checkpoint is at the end: nothing is trained.
"""

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imgrec_jax import distributed, metrics, parallel
from imgrec_jax.build import Experiment
from imgrec_jax.checkpoint import Checkpointer, CheckpointError, saved_steps
from imgrec_jax.evaluate import evaluate
from imgrec_jax.step import TrainState, eval_variables, init_state, make_eval_step, make_train_step, named_key
from imgrec_jax.writers import Console, MetricsFile, Profile, TensorBoard, duration


class NonFiniteError(FloatingPointError):
    """The loss or the gradient is not finite: says at which step, which terms, and which examples were in the batch."""


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
        self._merged = jax.tree.unflatten(structure, [np.asarray(x) for x in merged]) if merged else None

    def add(self, step: int, sums: Any) -> None:
        self._pending.append((step, sums))

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


class Selection:
    """Which evaluation was the best, and when to stop: all that the early stop remembers."""

    def __init__(self, metric: str, mode: str, patience: int | None, memory: dict[str, Any] | None):
        self.metric, self._sign, self._patience = metric, {"max": 1, "min": -1}[mode], patience
        self.memory = memory or {"best": None, "best_step": None, "waited": 0}

    def update(self, step: int, values: dict[str, Any]) -> bool:
        """Takes a validation result; returns whether it is the best so far."""
        value, best = values[self.metric], self.memory["best"]
        # An undefined value (AP of a split without objects) is never the best.
        better = value is not None and (best is None or self._sign * (value - best) > 0)
        if better:
            self.memory = {"best": value, "best_step": step, "waited": 0}
        else:
            self.memory = {**self.memory, "waited": self.memory["waited"] + 1}
        return better

    @property
    def exhausted(self) -> bool:
        return self._patience is not None and self.memory["waited"] >= self._patience


def create_state(experiment: Experiment, initialise: Callable | None = None) -> tuple[TrainState, Any]:
    """A fresh state, as the layout keeps it, and its optimiser.

    initialise: changes the variables before the optimiser sees them.
    """

    def make(key: jax.Array) -> dict[str, Any]:
        variables = experiment.task.init(key, experiment.batch_spec)
        return jax.tree.map(lambda v: v.astype(experiment.dtype) if jnp.issubdtype(v.dtype, jnp.floating) else v, variables)

    init = jax.jit(make).lower(named_key(experiment.seed, "init"))
    # It runs once; XLA's CPU backend would spend seconds optimising the random bits per shape (seed A: 7.5 s against 1.0).
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    variables = init.compile(options)(named_key(experiment.seed, "init"))
    variables = initialise(variables) if initialise else variables
    tx = experiment.make_optimizer(params=variables["params"])
    return experiment.layout.put_state(init_state(variables, tx, experiment.ema_decay > 0)), tx


def compile_eval_step(experiment: Experiment, state: TrainState) -> parallel.Step | None:
    """The step for the splits to evaluate; None where there are none."""
    if not experiment.evals:
        return None
    step = make_eval_step(experiment.task, seed=experiment.seed, axis_name=experiment.layout.axis_name)
    first = next(iter(experiment.evals.values())).batch(0)
    return experiment.layout.compile_eval_step(step, eval_variables(state), first)


class Run:
    """What a run holds open while it trains: its files, its checkpoints and the little it remembers between steps."""

    def __init__(
        self,
        experiment: Experiment,
        workdir: Path,
        checkpointer: Checkpointer | None,
        clock: dict,
        start: int,
        sums: Any,
    ):
        self.experiment, self.checkpointer = experiment, checkpointer
        silent = not parallel.is_lead()
        self.file = MetricsFile(workdir / "metrics.jsonl", resume_at=clock["metrics_position"], silent=silent)
        self.board = TensorBoard(workdir / "tensorboard") if experiment.tensorboard and not silent else None
        self.epoch = experiment.train.steps_per_epoch
        self.profile = Profile(workdir / "profile", experiment.profile, start)
        self.console = Console(experiment.total_steps, start, self.epoch, experiment.batch_size, silent=silent)
        self.window = Window(
            sums, clock["window"], experiment.layout.to_host, lambda step, values: _not_finite(experiment, step, values)
        )
        self.selection = Selection(experiment.select_metric, experiment.select_mode, experiment.patience, clock["selection"])
        self.results, self.stopped = clock["results"], clock["stopped"]

    def report(self, step: int) -> None:
        """Writes and shows what training did since the last report."""
        values = self.window.take()
        speed = self.console.report(step, {name: values[name] for name in self.experiment.show if name in values})
        self.record(step, "train", values, {"img_per_s": speed})

    def record(self, step: int, split: str, values: dict[str, Any], unrepeatable: dict[str, float] | None = None) -> None:
        """Writes a record; what differs from run to run goes to TensorBoard alone."""
        self.file.write({"step": step, "epoch": step / self.epoch, "split": split, **values})
        if self.board is not None:
            self.board.write(step, {f"{split}/{name}": value for name, value in {**values, **(unrepeatable or {})}.items()})

    def save(self, step: int, state: TrainState, *, best: bool = False) -> None:
        if self.checkpointer is None:
            return
        clock = {
            "step": step,
            "window": self.window.dump(),
            "metrics_position": self.file.position(),
            "selection": self.selection.memory,
            "results": self.results,
            "stopped": self.stopped,
        }
        self.checkpointer.save(step, self.experiment.layout.whole(state), clock, best=best)

    def close(self) -> None:
        """Waits for the checkpoints; called on every way out, also that of an error."""
        self.console.close()
        self.profile.close()
        if self.board is not None:
            self.board.close()
        if self.checkpointer is not None:
            self.checkpointer.close()


def train(experiment: Experiment, workdir: Path, say: Callable[[str], None] = print) -> dict[str, dict[str, Any]]:
    """Trains until `experiment.total_steps`, an early stop or SIGTERM; returns the last evaluation of every split."""
    layout = experiment.layout
    state, tx = create_state(experiment, _initialise(experiment, workdir, say))
    step_fn = make_train_step(
        experiment.task, tx, seed=experiment.seed, schedule=experiment.schedule, ema_decay=experiment.ema_decay,
        accumulate=experiment.accumulate, remat=experiment.remat, axis_name=layout.axis_name, gather=layout.gather,
    )  # fmt: skip
    train_step = layout.compile_train_step(step_fn, state, experiment.batch_spec)
    eval_step = compile_eval_step(experiment, state)
    _check_selection(experiment, eval_step)

    checkpointer = Checkpointer(workdir, keep=experiment.keep_checkpoints) if experiment.checkpoint_every else None
    state, clock = _start(checkpointer, layout, state, say)
    start = done = clock["step"]
    if start:
        say(f"resumed at step {start}")
    run = Run(experiment, workdir, checkpointer, clock, start, jax.tree.structure(train_step.out[1]))
    total = start if run.stopped else experiment.total_steps
    terminated = distributed.termination()
    began = time.perf_counter()
    with contextlib.closing(run):
        for step, batch in parallel.feed(experiment.train, start, total, layout, on_device=experiment.on_device):
            run.profile.before(step)
            state, sums = train_step(state, batch)
            run.window.add(step, sums)
            done = step + 1
            run.console.advance(done)
            if done % experiment.log_every == 0 or done == total:
                run.report(done)
            if done % experiment.eval_every == 0 or done == total:
                run.window.flush()  # a state that is not finite is neither evaluated nor saved
                for split in experiment.evals:
                    run.results[split] = _evaluate(run, split, eval_step, state, done)
                if run.selection.metric and run.selection.update(done, run.results["validation"]):
                    run.save(done, state, best=True)
                run.stopped = run.selection.exhausted
            ending = done == total or run.stopped
            if ending and run.selection.metric and checkpointer is not None:
                _evaluate_best(run, eval_step, state, done)
            ending = ending or terminated(done)
            if ending or (experiment.checkpoint_every and done % experiment.checkpoint_every == 0):
                run.save(done, state)
            if ending:
                break
        jax.block_until_ready(state)
    if run.stopped:
        say(f"stopped early at step {done}: {run.selection.metric} was best at step {run.selection.memory['best_step']}")
    elif done < total:
        say(f"terminated at step {done}; the same command goes on from there")
    say(
        f"{done - start} steps in {duration(time.perf_counter() - began)}"
        if done > start
        else f"nothing left to train at step {done}"
    )
    return run.results


def _check_selection(experiment: Experiment, eval_step: parallel.Step | None) -> None:
    """Raises ValueError now, not after the first epoch, when the metric to select by does not exist."""
    if not experiment.select_metric:
        return
    states = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), eval_step.out)
    names = sorted(
        name for name, value in experiment.summarise["validation"](states).items() if isinstance(value, int | float | None)
    )
    if experiment.select_metric not in names:
        raise ValueError(f"select.metric={experiment.select_metric!r} is no metric of this task; choose one of {names}")


def _initialise(experiment: Experiment, workdir: Path, say: Callable[[str], None]) -> Callable | None:
    """What changes the fresh variables; None where there is nothing to change, or a checkpoint will replace them all."""
    if experiment.initialise is None or (experiment.checkpoint_every and saved_steps(workdir)):
        return None

    def initialise(variables: dict) -> dict:
        variables, report = experiment.initialise(variables)
        say(report)
        return variables

    return initialise


def _start(
    checkpointer: Checkpointer | None, layout: parallel.Layout, state: TrainState, say: Callable[[str], None]
) -> tuple[TrainState, dict]:
    """Chooses between the ways a run can start (see the top of this file)."""
    fresh = {"step": 0, "window": None, "metrics_position": 0, "selection": None, "results": {}, "stopped": False}
    restored = checkpointer.restore(layout.whole(state), say) if checkpointer is not None else None
    if restored is None:
        return state, fresh
    whole, clock = restored
    return layout.put_state(whole), clock


def _evaluate(run: Run, split: str, eval_step: Callable, state: TrainState, step: int, name: str = "") -> dict[str, Any]:
    """Evaluates a split, records it under `name` or the split's own, and shows its headline."""
    began = time.perf_counter()
    experiment = run.experiment
    values = evaluate(
        eval_step, eval_variables(state), experiment.evals[split], experiment.layout,
        summarise=experiment.summarise[split], on_device=experiment.on_device,
    )  # fmt: skip
    name = name or split
    run.record(step, name, values)
    seconds = time.perf_counter() - began
    run.console.say(f"epoch {step / run.epoch:.4g}  {name}: {headline(values, experiment.show)}  ({seconds:.1f} s)")
    run.console.restart_clock(step)
    return values


def _evaluate_best(run: Run, eval_step: Callable, state: TrainState, step: int) -> None:
    """What the checkpoint that validation chose does on the test split; `state` at `step` was just evaluated."""
    if "test" not in run.experiment.evals:
        return
    if run.selection.memory["best_step"] == step:
        run.results["best_test"] = run.results["test"]
        run.record(step, "best_test", run.results["test"])
        run.console.say("best_test: that of the last state, which is the best")
        return
    layout = run.experiment.layout
    restored = run.checkpointer.restore_best(layout.whole(state))
    if restored is not None:
        best, clock = restored
        run.results["best_test"] = _evaluate(run, "test", eval_step, layout.put_state(best), clock["step"], "best_test")


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
    state, _ = create_state(experiment)
    eval_step = compile_eval_step(experiment, state)
    state, clock = _start(Checkpointer(workdir), experiment.layout, state, say)
    if not clock["step"]:
        raise CheckpointError(f"no checkpoint in {workdir}; train first, with the same --workdir")
    results = {}
    for split, pipeline in experiment.evals.items():
        results[split] = evaluate(
            eval_step, eval_variables(state), pipeline, experiment.layout,
            summarise=experiment.summarise[split], on_device=experiment.on_device,
        )  # fmt: skip
        say(f"step {clock['step']}  {split}: {headline(results[split], experiment.show)}")
    if parallel.is_lead():
        (workdir / "eval.json").write_text(json.dumps({"step": clock["step"], **results}) + "\n")
    return results


def _not_finite(experiment: Experiment, step: int, values: dict[str, Any]) -> str:
    indices = experiment.train.batch(step)["index"]
    terms = ", ".join(f"{name} {value:.6g}" for name, value in values.items() if isinstance(value, float))
    return (
        f"training is not finite at step {step + 1}: {terms}. Examples of its batch (positions in "
        f"{experiment.train.source.info.name}): {indices.tolist()}. Checkpoints from before are intact. "
        "Lower optim.learning_rate, set optim.clip_norm, or look at these examples"
    )

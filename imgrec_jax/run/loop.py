"""The training loop, for every task.

A run starts in one of these ways, told apart in `_begin`:
  fresh    a workdir without checkpoints: new parameters (or pretrained ones, merged before the optimiser's state is made);
  resume   a workdir with checkpoints: the newest whole one; steps, metrics file and early stop go on as if never interrupted;
  done     a workdir whose last checkpoint is at the end: nothing is trained.

After a step follow its report, its evaluations and, at the end of the run, the evaluation of the best checkpoint. A signal may
come in the midst of that; the checkpoint then says how far it was (`start.STEP`, `EVALUATED`, `WHOLE`), and the next start
finishes the work of that step before it makes another.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from imgrec_jax import compiled, distributed, parallel
from imgrec_jax.config import flatten
from imgrec_jax.data import pieces
from imgrec_jax.experiment import Experiment
from imgrec_jax.run import boards, checkpoint, samples
from imgrec_jax.run import workdir as workdirs
from imgrec_jax.run.checkpoint import Checkpointer, CheckpointError, DamagedError
from imgrec_jax.run.evaluate import Results, evaluate, headline, not_finite
from imgrec_jax.run.record import Callback, NonFiniteError, Run, Watch
from imgrec_jax.run.start import EVALUATED, FRESH, STEP, WHOLE, Start, at_end, find, is_cut_here, set_damaged_aside
from imgrec_jax.run.stop import Interrupted, Stop, caught
from imgrec_jax.run.together import Alone, Together, compile_eval_step, compile_train_step, create_state, initialiser
from imgrec_jax.run.writers import Console, aside, duration, emit
from imgrec_jax.step import TrainState, eval_variables


class Member(NamedTuple):
    """A run that is to be trained, alone or together with others.

    Attributes:
      say: prints a line.
      callbacks: called with (step, split, values) at every report and evaluation.
      watch: makes pictures for the boards; None for none.
      console: makes what shows the progress: (total steps, first step, steps per epoch, batch size) -> Console.
    """

    experiment: Experiment
    workdir: str | PathLike
    say: Callable[[str], None] = emit
    callbacks: Sequence[Callback] = ()
    watch: Watch | None = None
    console: Callable[..., Console] = Console


def train(
    experiment: Experiment,
    workdir: str | PathLike,
    say: Callable[[str], None] = emit,
    *,
    callbacks: Sequence[Callback] = (),
    restart: bool = False,
    stop: Stop | None = None,
    watch: Watch | None = None,
) -> Results:
    """Trains until the end, an early stop or a signal; the same call goes on from there.

    Args:
      experiment: what `assemble.build` makes.
      workdir: the folder the run lives in.
      say: prints a line.
      callbacks: called with (step, split, values) at every report and evaluation.
      restart: begin anew; what the workdir holds is kept in it under another name.
      stop: answers signals; None catches them while this function runs.
      watch: makes pictures for the boards; None for none.

    Returns:
      The last evaluation of every split.

    Raises:
      WorkdirError: when the workdir holds another run, other data were trained on, or it is in use.
      CheckpointError: when no checkpoint can be read, or one cannot be written.
      NonFiniteError: when training or an evaluation is not finite.
      Interrupted: when a signal comes before the first step; otherwise it saves and returns.
    """
    member = Member(experiment, workdir, say, tuple(callbacks), watch)
    [results] = train_together([member], restart=restart, stop=stop)
    assert results is not None
    return results


def alone(experiments: Sequence[Experiment], states: Sequence[TrainState], txs: Sequence[Any]) -> Together:
    """One run, on all devices."""
    return Alone(experiments[0], states[0], txs[0])


def train_together(
    members: Sequence[Member],
    together: Callable[..., Together] = alone,
    *,
    restart: bool = False,
    stop: Stop | None = None,
    failed: Callable[[int, Exception], None] | None = None,
) -> list[Results | None]:
    """As `train`, for several runs that one step advances; each keeps a workdir as if it were alone.

    Args:
      together: (experiments, states, optimisers) -> how their states lie, see `run.together`.
      failed: told (number of the run, error) of a run that cannot go on while others do; None raises the error.

    Returns:
      The last evaluation of every split, of each run; None for one that failed.
    """
    for member in members:
        boards.require(member.experiment.boards)
    folders = [workdirs.resolve(member.workdir) for member in members]
    with contextlib.ExitStack() as stack:
        if stop is None:
            stop = stack.enter_context(caught()) if jax.process_count() == 1 else Stop()
        if parallel.is_lead():
            for member, folder in zip(members, folders, strict=True):
                stack.enter_context(workdirs.held(folder))
                if not restart:
                    workdirs.check_config(folder, member.experiment.config, member.experiment.settle)
                    workdirs.check_card(folder, member.experiment.card)
        distributed.wait("workdir")
        starts = [
            None if restart else _find(member.experiment, folder) for member, folder in zip(members, folders, strict=True)
        ]
        done = [_already_done(m.experiment, f, s, m.say) for m, f, s in zip(members, folders, starts, strict=True)]
        if None not in done:
            stop.kept = True
            return [*done]
        lanes, joined = _begin(members, folders, starts, together, restart)
        with stop.noting(), contextlib.ExitStack() as opened:
            for lane in lanes:
                opened.enter_context(contextlib.closing(lane.run))
            _train(lanes, joined, stop, failed)
            stop.answered()  # what is left is the writing of checkpoints
            stop.kept = all(lane.run.finished or lane.run.saved_step > 0 for lane in lanes)
            return [None if lane.failed else lane.run.results for lane in lanes]


def rehearse(experiment: Experiment) -> None:
    """Raises what the beginning of a run would, before anything is moved or written."""
    boards.require(experiment.boards)
    state, _ = create_state(experiment, initialiser(experiment, lambda line: None))
    _check_selection(experiment, compile_eval_step(experiment, state))


def _find(experiment: Experiment, folder: Path) -> Start | None:
    if experiment.cadence.checkpoint_every:
        begun = find(folder)
        if begun is not None and is_cut_here(begun.clock, experiment.optimisation.total_steps):
            evaluated = begun.clock["step"] % experiment.cadence.eval_every == 0
            return begun._replace(clock={**begun.clock, "phase": EVALUATED if evaluated else STEP})
        return begun
    if checkpoint.any_ever(folder):
        raise workdirs.WorkdirError(
            f"{folder} holds checkpoints, and with config.checkpoint.enabled=False this start could not go on from them; "
            "give another --workdir (--restart begins anew and keeps the old files under another name)"
        )
    return None


def _begin(
    members: Sequence[Member],
    folders: Sequence[Path],
    starts: Sequence[Start | None],
    together: Callable[..., Together],
    restart: bool,
) -> tuple[list["Lane"], Together]:
    """Chooses between the ways a run can start (see the top of this file). Nothing is written, and nothing moved by
    `restart`, before all is found to fit."""
    experiments, says = [member.experiment for member in members], [member.say for member in members]
    clocks = [start.clock if start else FRESH for start in starts]
    fresh = [
        create_state(experiment, initialiser(experiment, say) if start is None else None)
        for experiment, say, start in zip(experiments, says, starts, strict=True)
    ]
    joined = together(experiments, *zip(*fresh, strict=True))
    eval_steps = [compile_eval_step(experiment, state) for experiment, (state, _) in zip(experiments, fresh, strict=True)]
    for experiment, eval_step in zip(experiments, eval_steps, strict=True):
        _check_selection(experiment, eval_step)
    if any(starts):
        joined.put([_restored(*of) for of in zip(experiments, starts, (state for state, _ in fresh), says, strict=True)])
    elif any(e.cadence.checkpoint_every for e in experiments) and not joined.step.wait(0.5):
        checkpoint.load_orbax()  # meanwhile
    environments = [workdirs.environment(clock["step"]) for clock in clocks]
    _wait_for(joined.step, says[0])
    for folder, say in zip(folders, says, strict=True):
        if restart and parallel.is_lead() and (kept := workdirs.restart(folder)):
            say(f"what was in {folder} is kept in {kept}")
    distributed.wait("restarted")
    sums = jax.tree.structure(joined.step.out[1])
    lanes = []
    for number, (member, folder, start, clock) in enumerate(zip(members, folders, starts, clocks, strict=True)):
        checkpointer = _open(member, folder, start, environments[number])
        run = Run(
            member.experiment, folder, checkpointer, clock, sums, joined.to_host(number), member.console, member.say,
            member.callbacks, member.watch,
        )  # fmt: skip
        lanes.append(Lane(number, run, joined, eval_steps[number], clock["phase"], member.say))
    return lanes, joined


def _restored(experiment: Experiment, start: Start | None, state: TrainState, say: Callable[[str], None]) -> TrainState:
    """The state that a run goes on with; a fresh one where it begins."""
    if start is None:
        return state
    layout, step = experiment.compute.layout, start.clock["step"]
    state = layout.put_state(checkpoint.read_state(start.found, layout.whole(state)))
    if step:
        say(f"resumed at step {step}" + (" (the best checkpoint)" if start.found.kind == checkpoint.BEST else ""))
    return state


def _open(member: Member, folder: Path, start: Start | None, environment: dict[str, Any]) -> Checkpointer | None:
    """Makes the folder the run's, and returns what writes its checkpoints, where it keeps any."""
    experiment, say, clock = member.experiment, member.say, start.clock if start else FRESH
    keeps = bool(experiment.cadence.checkpoint_every)
    if start is not None:
        set_damaged_aside(folder, start, say)
        _say_what_changed(experiment, folder, clock, environment, say)
    if parallel.is_lead():
        workdirs.write_record(folder, experiment.config, experiment.card)
        if clock["step"] < experiment.optimisation.total_steps and not clock["stopped"]:
            workdirs.append_start(folder, environment)
            _keep_samples(experiment, folder, say)
        if not keeps and (file := folder / workdirs.METRICS).exists() and file.stat().st_size:
            say(f"note: the metrics of an earlier start are kept as {aside(file).name}")
    return Checkpointer(folder, keep=experiment.cadence.keep_checkpoints, say=say) if keeps else None


def _keep_samples(experiment: Experiment, folder: Path, say: Callable[[str], None]) -> None:
    try:
        source = pieces.whole(next(iter(experiment.data.evals.values()), experiment.data.train).source)
        samples.keep(folder, source, experiment.cadence.samples)
    except Exception as error:  # of the disk, of an image, of a source of the user's own
        line = " ".join(str(error).split())[:300]
        say(f"note: {folder} keeps no samples of the data ({type(error).__name__}: {line})")


class Lane:
    """One run in the loop: what comes before and after each of its steps.

    done: steps that were made; failed: whether an error ended it while others went on.
    """

    def __init__(self, number: int, run: Run, together: Together, eval_step: parallel.Step | None, phase: str,
                 say: Callable[[str], None]):  # fmt: skip
        self.number, self.run, self._together, self._eval_step, self._phase = number, run, together, eval_step, phase
        self._say, self._start, self.done = say, run.saved_step, run.saved_step
        self.failed = self._complete = self._over = False
        self._asked: Callable[[int], bool] = lambda step: False
        self._batches: Iterator[tuple[int, Any]] = iter(())

    def begin(self, stop: Stop) -> None:
        """Finishes the work of the step before, and opens the data."""
        self._began, self._stop = time.perf_counter(), stop
        self._asked = distributed.termination(lambda: stop.signal is not None)
        if self._phase != WHOLE and self._start == self.run.total_steps and self.run.window.dump() is not None:
            self.run.report(self._start)  # of a run that was planned to go on
        self._complete = self._phase == WHOLE or self._finish(self._phase)
        self._over = not self._complete or self._at_end
        if not self._over:
            self._batches = self._together.feed(self.number, self._start, self.run.total_steps)

    @property
    def _at_end(self) -> bool:
        return self.done >= self.run.total_steps or self.run.stopped

    def next(self) -> Any | None:
        """The batch of the next step; None where there is none to be made. Raises Interrupted when a signal came."""
        if self._over:
            return None
        window = self.run.window
        with self._stop.raising(), self.run.console.waiting(lambda: window.computing):  # a batch can be asked for again
            _, batch = next(self._batches)
        return batch

    def took(self, sums: Any) -> None:
        """After a step, of which `sums` are what was returned: reports, evaluates and saves what is due."""
        run = self.run
        run.window.add(self.done, sums)
        self.done += 1
        run.console.advance(self.done)
        if self.done % run.experiment.cadence.log_every == 0 or self.done == run.total_steps:
            run.report(self.done)
        self._complete = self._finish(STEP)
        self._over = not self._complete or self._at_end
        if self._over:
            run.console.close()

    def _finish(self, phase: str) -> bool:
        state = functools.partial(self._together.state, self.number)
        return _finish_step(self.run, state, self._eval_step, self.done, phase, self._asked, self._stop)

    def interrupted(self) -> None:
        """A signal came between steps."""
        if not self._over and self.done > self.run.saved_step:
            self.run.save(self.done, self._together.state(self.number), WHOLE)
        self._over = True

    def fail(self) -> None:
        self.failed = self._over = True
        self.run.console.close()

    def end(self) -> None:
        """Says how it ended."""
        run, done, stop, say = self.run, self.done, self._stop, self._say
        run.finished = self._complete and self._at_end
        run.console.close()
        onwards = "the same command goes on from there" if run.checkpointer else "nothing is kept: checkpoint.enabled=False"
        if stop.signal is not None and (not self._complete or not self._at_end):
            say(f"{stop.word} at step {done}; {onwards}")
        elif run.stopped:
            say(f"stopped early at step {done}: {run.early_stop.metric} was best at step {run.early_stop.memory['best_step']}")
        elif done < run.total_steps:
            say(f"terminated at step {done}; {onwards}")
        trained = f"{done - self._start} steps in {duration(time.perf_counter() - self._began)}"
        say(trained if done > self._start else f"nothing left to train at step {done}")


def _train(lanes: Sequence[Lane], together: Together, stop: Stop, failed: Callable[[int, Exception], None] | None) -> None:
    """The loop."""

    def guarded(lane: Lane, action: Callable, *args: Any) -> Any:
        try:
            return action(*args)
        except Exception as error:
            if failed is None:
                raise
            lane.fail()
            failed(lane.number, error)

    for lane in lanes:
        guarded(lane, lane.begin, stop)
    while True:
        try:
            batches = [guarded(lane, lane.next) for lane in lanes]
            if all(batch is None for batch in batches):
                break
            together.prepare(batches, stop.check)
        except Interrupted:
            stop.answered()
            for lane in lanes:
                guarded(lane, lane.interrupted)
            break
        moving = [lane for lane, batch in zip(lanes, batches, strict=True) if batch is not None]
        for lane in moving:
            lane.run.profile.before(lane.done)
        sums = together.advance(batches)
        for lane in moving:
            guarded(lane, lane.took, sums)
    together.wait()
    for lane in lanes:
        if not lane.failed:
            lane.end()


def _finish_step(
    run: Run,
    state: Callable[[], TrainState],
    eval_step: parallel.Step | None,
    done: int,
    phase: str,
    asked: Callable[[int], bool],
    stop: Stop,
) -> bool:
    """Evaluates and saves after step `done`, from `phase` on. Returns whether the run may go on to the next step."""
    experiment, cadence = run.experiment, run.experiment.cadence
    mark, looked = None, False
    try:
        if phase == STEP and (done % cadence.eval_every == 0 or done == run.total_steps):
            stop.check()
            run.window.flush()  # a state that is not finite is neither evaluated nor saved
            mark = run.mark()
            for split in experiment.data.evals:
                run.results = {**run.results, split: _evaluate(run, split, eval_step, state(), done, stop)}
            best = bool(run.early_stop.metric) and run.early_stop.update(done, run.results["validation"])
            run.stopped, looked = run.early_stop.exhausted, True  # before it is saved: the next start may know of nothing else
            if best:
                run.save(done, state(), EVALUATED, best=True)
        phase, mark = EVALUATED, None
        if looked:
            _show(run, state(), done, stop)
        if (done == run.total_steps or run.stopped) and run.early_stop.metric and run.checkpointer is not None:
            mark = run.mark()
            _evaluate_best(run, eval_step, state(), done, stop)
        phase, mark = WHOLE, None
    except Interrupted:
        stop.answered()
        if mark is not None:
            run.back_to(mark)
        run.save(done, state(), phase)
        return False
    except Exception:
        if (
            phase == EVALUATED and mark is not None and done > run.saved_step
        ):  # whatever the best checkpoint did, what was trained is kept
            run.back_to(mark)
            run.save(done, state(), EVALUATED)
        raise
    ending = done == run.total_steps or run.stopped
    terminated = not ending and asked(done)
    if terminated:
        stop.answered()
    if ending or terminated or (cadence.checkpoint_every and done % cadence.checkpoint_every == 0):
        run.save(done, state(), WHOLE)
    return not terminated


def _show(run: Run, state: TrainState, done: int, stop: Stop) -> None:
    """Pictures of an evaluation for the boards; what goes wrong with them costs them, not the run."""
    watch, layout, variables = run.watch, run.experiment.compute.layout, eval_variables(state)
    if watch is None or not run.boards:
        return
    ending = done == run.total_steps or run.stopped

    def predict(batch: dict[str, Any]) -> Any:
        return layout.to_host(step(variables, layout.put_batch(batch)))

    try:
        if run.predict_step is None:
            run.predict_step = layout.compile_eval_step(run.experiment.task.predict, variables, watch.batch)
        step = run.predict_step
        step.prepare(variables, layout.put_batch(watch.batch), stop.check)
        with stop.raising():
            pictures = {**watch.answers(predict), **(watch.plots(predict) if ending else {})}
            if done <= run.experiment.cadence.eval_every:  # the first time in a run
                pictures |= watch.training()
            run.boards.show(done, pictures)
    except Exception as error:
        run.watch = None
        run.console.say(f"note: no more pictures ({type(error).__name__}: {' '.join(str(error).split())[:300]})")
    run.console.restart_clock(done)


def _wait_for(step: parallel.Step, say: Callable[[str], None]) -> None:
    """Until the step is compiled; says so where that takes long."""
    began = time.perf_counter()
    if not step.wait(2.0):
        say("compiling the train step (once) ...")
        step.wait()
        say(f"compiled in {time.perf_counter() - began:.0f} s")
    compiled.confirm()


def _already_done(experiment: Experiment, folder: Path, start: Start | None, say: Callable[[str], None]) -> Results | None:
    """The results of a run that is at its end, without compiling anything; None where there is something to do."""
    if start is None or start.damaged or not at_end(start.clock, experiment.optimisation.total_steps):
        return None
    clock = start.clock
    for split, values in clock["results"].items():
        say(f"step {clock['step']}  {split}: {headline(values, experiment.show)}")
    if clock["stopped"]:
        memory = clock["selection"]
        say(f"stopped early at step {clock['step']}: {experiment.selection.metric} was best at step {memory['best_step']}")
    total = experiment.optimisation.total_steps
    if clock["step"] > total:  # an option was forgotten, perhaps: the run's own config stays as it is
        note = f"note: this config asks for {total} steps, and the run is at {clock['step']}"
        say(f"{note}; imgrec --workdir={folder} goes on with its own")
    elif parallel.is_lead():
        workdirs.write_record(folder, experiment.config, experiment.card)
    say(f"nothing left to train at step {clock['step']}")
    if parallel.is_lead():
        boards.finish(experiment.boards, boards.Place(folder, flatten(experiment.config)), say)
    return clock["results"]


def _check_selection(experiment: Experiment, eval_step: parallel.Step | None) -> None:
    """Raises ValueError now, not after the first epoch, when the metric to select by does not exist."""
    metric = experiment.selection.metric
    if not metric:
        return
    assert eval_step is not None  # a metric to select by has a split to be computed on
    states = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), eval_step.out)
    values = experiment.data.summarise["validation"](states)
    names = sorted(name for name, value in values.items() if isinstance(value, int | float | None))
    if metric not in names:
        raise ValueError(f"select.metric={metric!r} is no metric of this task; choose one of {names}")


def _say_what_changed(
    experiment: Experiment, folder: Path, clock: dict[str, Any], environment: dict[str, Any], say: Callable[[str], None]
) -> None:
    """One line where the rest of a resumed run is not, to the last bit, what it would have been."""
    before, step, total = workdirs.starts(folder), clock["step"], experiment.optimisation.total_steps
    if step < total and not clock["stopped"] and before:
        changed = workdirs.machine_changes(before[-1], environment)
        if changed:
            say(f"note: {'; '.join(changed)}: from here on equal to rounding, no longer bit for bit")
    planned = clock["total_steps"] or _planned_total(experiment, folder)
    if planned and planned != total and step < total:
        make = experiment.optimisation.make_schedule
        old, new = float(make(planned)(max(step - 1, 0))), float(make(total)(step))
        if any(float(make(planned)(at)) != float(make(total)(at)) for at in (max(step - 1, 0), min(planned, total) - 1)):
            say(
                f"note: the schedule now ends at step {total} instead of {planned}; the learning rate goes from {old:.4g} to "
                f"{new:.4g}"
            )


def _planned_total(experiment: Experiment, folder: Path) -> int | None:
    """The steps that a run of an early version was planned for, from its config."""
    config = workdirs.read_config(folder)
    epoch = experiment.data.train.steps_per_epoch
    for unit, factor in (("steps", 1.0), ("epochs", epoch), ("examples", 1 / experiment.data.batch_size)):
        if (value := config.train[f"total_{unit}"]) is not None:
            return max(round(value * factor), 1)
    return None


def _evaluate(
    run: Run, split: str, eval_step: parallel.Step | None, state: TrainState, step: int, stop: Stop, name: str = ""
) -> dict[str, Any]:
    """Evaluates a split, records it under `name` or the split's own, and shows its headline."""
    began = time.perf_counter()
    assert eval_step is not None  # there is a split
    experiment, name = run.experiment, name or split
    values = evaluate(
        eval_step, eval_variables(state), experiment.data.evals[split], experiment.compute.layout,
        summarise=experiment.data.summarise[split], on_device=experiment.data.on_device, stop=stop,
    )  # fmt: skip
    if bad := not_finite(values):
        terms = ", ".join(f"{key} {value}" for key, value in bad.items())
        raise NonFiniteError(
            f"the evaluation of {name!r} at step {step} is not finite: {terms}. This state is not saved; checkpoints from "
            "before are intact. Lower optim.learning_rate, or set optim.clip_norm"
        )
    run.record(step, name, values)
    seconds = time.perf_counter() - began
    run.console.say(f"epoch {step / run.epoch:.4g}  {name}: {headline(values, experiment.show)}  ({seconds:.1f} s)")
    run.console.restart_clock(step)
    return values


def _evaluate_best(run: Run, eval_step: parallel.Step | None, state: TrainState, step: int, stop: Stop) -> None:
    """What the checkpoint that validation chose does on the test splits; `state` at `step` was just evaluated."""
    best_step = run.early_stop.memory["best_step"]
    tests = [split for split in run.experiment.data.evals if split != "validation"]
    if not tests or best_step is None:
        return
    if best_step == step:
        for split in run.experiment.data.first:
            run.record(step, f"best_{split}", run.results[split])
        for split in tests:
            run.results = {**run.results, f"best_{split}": run.results[split]}
            run.record(step, f"best_{split}", run.results[split])
            run.console.say(f"best_{split}: that of the last state, which is the best")
        return
    assert run.checkpointer is not None  # or there would be no best one
    layout, folder = run.experiment.compute.layout, run.checkpointer.workdir
    run.checkpointer.wait()
    found = next((found for found in checkpoint.saved(folder, checkpoint.BEST) if found.step == best_step), None)
    try:
        if found is None:
            raise DamagedError("it is gone")
        checkpoint.verify(found)
    except DamagedError as error:
        if found is not None:
            checkpoint.set_aside(folder, found)
        run.console.say(f"the best checkpoint, of step {best_step}, is damaged ({error}); there is no best_test")
        return
    best = layout.put_state(checkpoint.read_state(found, layout.whole(state)))
    for split in run.experiment.data.first:
        _evaluate(run, split, eval_step, best, best_step, stop, f"best_{split}")
    for split in tests:
        name = f"best_{split}"
        run.results = {**run.results, name: _evaluate(run, split, eval_step, best, best_step, stop, name)}


__all__ = [
    "CheckpointError",
    "NonFiniteError",
    "compile_eval_step",
    "compile_train_step",
    "create_state",
    "train",
    "train_together",
]

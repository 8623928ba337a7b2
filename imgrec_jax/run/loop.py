"""The training loop, for every task.

A run starts in one of these ways, told apart in `_begin`:
  fresh    a workdir without checkpoints: new parameters (or pretrained ones, merged before the optimiser's state is made);
  resume   a workdir with checkpoints: the newest whole one; steps, metrics file and early stop go on as if never interrupted;
  done     a workdir whose last checkpoint is at the end: nothing is trained.

What comes before the first step is in `beginning.py`, what follows each step in `after_step.py`.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax

from imgrec_jax import distributed, parallel
from imgrec_jax.experiment import Experiment
from imgrec_jax.run import beginning, boards, checkpoint
from imgrec_jax.run import workdir as workdirs
from imgrec_jax.run.after_step import finish_step
from imgrec_jax.run.checkpoint import CheckpointError
from imgrec_jax.run.evaluate import Results
from imgrec_jax.run.record import Callback, NonFiniteError, Run, Watch
from imgrec_jax.run.start import FRESH, STEP, WHOLE, Start
from imgrec_jax.run.stop import Interrupted, Stop, caught
from imgrec_jax.run.together import Alone, Together, compile_eval_step, compile_train_step, create_state, initialiser
from imgrec_jax.run.writers import Console, duration, emit
from imgrec_jax.step import TrainState


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
            stop = stack.enter_context(caught())
            stop.together()
        if parallel.is_lead():
            for member, folder in zip(members, folders, strict=True):
                stack.enter_context(workdirs.held(folder))
                if not restart:
                    workdirs.check_config(folder, member.experiment.config, member.experiment.settle)
                    workdirs.check_card(folder, member.experiment.card)
        distributed.wait("workdir")
        starts = [
            None if restart else beginning.find_start(member.experiment, folder)
            for member, folder in zip(members, folders, strict=True)
        ]
        done = [beginning.already_done(m.experiment, f, s, m.say) for m, f, s in zip(members, folders, starts, strict=True)]
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
    beginning.check_selection(experiment, compile_eval_step(experiment, state))


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
        beginning.check_selection(experiment, eval_step)
    if any(starts):
        joined.put(
            [beginning.restored(*of) for of in zip(experiments, starts, (state for state, _ in fresh), says, strict=True)]
        )
    elif any(e.cadence.checkpoint_every for e in experiments) and not joined.step.wait(0.5):
        checkpoint.load_orbax()  # meanwhile
    environments = [workdirs.environment(clock["step"]) for clock in clocks]
    beginning.wait_for(joined.step, says[0])
    for folder, experiment, say in zip(folders, experiments, says, strict=True):
        if restart and parallel.is_lead() and (kept := workdirs.restart(folder, experiment.config)):
            say(f"what was in {folder} is kept in {kept}")
    distributed.wait("restarted")
    sums = jax.tree.structure(joined.step.out[1])
    lanes = []
    for number, (member, folder, start, clock) in enumerate(zip(members, folders, starts, clocks, strict=True)):
        checkpointer = beginning.claim(member.experiment, folder, start, environments[number], member.say)
        run = Run(
            member.experiment, folder, checkpointer, clock, sums, joined.to_host(number), member.console, member.say,
            member.callbacks, member.watch,
        )  # fmt: skip
        lanes.append(Lane(number, run, joined, eval_steps[number], clock["phase"], member.say))
    return lanes, joined


class Lane:
    """One run in the loop: what comes before and after each of its steps.

    done: steps that were made; failed: whether an error ended it while others went on.
    """

    def __init__(self, number: int, run: Run, together: Together, eval_step: parallel.Step | None, phase: str,
                 say: Callable[[str], None]):  # fmt: skip
        self.number, self.run, self._together, self._eval_step, self._phase = number, run, together, eval_step, phase
        self._say, self._start, self.done = say, run.saved_step, run.saved_step
        self.failed = self._complete = self._over = False
        self._batches: Iterator[tuple[int, Any]] = iter(())

    def begin(self, stop: Stop) -> None:
        """Finishes the work of the step before, and opens the data."""
        self._began, self._stop = time.perf_counter(), stop
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
        return finish_step(self.run, state, self._eval_step, self.done, phase, self._stop)

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
            together.prepare(batches, stop)
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


__all__ = [
    "CheckpointError",
    "NonFiniteError",
    "compile_eval_step",
    "compile_train_step",
    "create_state",
    "train",
    "train_together",
]

"""What follows a step: its evaluations, the pictures of the boards, its checkpoint and, at the end of the run, the best one's
evaluation.

A signal may come in the midst of that; the checkpoint then says how far it was (`start.STEP`, `EVALUATED`, `WHOLE`), and the
next start finishes the work of that step before it makes another.
"""

import time
from collections.abc import Callable
from typing import Any

from imgrec_jax import parallel
from imgrec_jax.run import checkpoint
from imgrec_jax.run.checkpoint import DamagedError
from imgrec_jax.run.evaluate import evaluate, headline, not_finite
from imgrec_jax.run.record import NonFiniteError, Run
from imgrec_jax.run.start import EVALUATED, STEP, WHOLE
from imgrec_jax.run.stop import Interrupted, Stop
from imgrec_jax.step import TrainState, eval_variables


def finish_step(
    run: Run,
    state: Callable[[], TrainState],
    eval_step: parallel.Step | None,
    done: int,
    phase: str,
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
    terminated = not ending and stop.asked
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
        step.prepare(variables, layout.put_batch(watch.batch), stop)
        with stop.raising():
            pictures = {**watch.answers(predict), **(watch.plots(predict) if ending else {})}
            if done <= run.experiment.cadence.eval_every:  # the first time in a run
                pictures |= watch.training()
            run.boards.show(done, pictures)
    except Exception as error:
        run.watch = None
        run.console.say(f"note: no more pictures ({type(error).__name__}: {' '.join(str(error).split())[:300]})")
    run.console.restart_clock(done)


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

"""How a run begins: what is found in its workdir, and whether it fits, before anything is written there."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imgrec_jax import compiled, parallel
from imgrec_jax.config import flatten
from imgrec_jax.data import pieces
from imgrec_jax.experiment import Experiment
from imgrec_jax.run import boards, checkpoint, samples
from imgrec_jax.run import workdir as workdirs
from imgrec_jax.run.checkpoint import Checkpointer
from imgrec_jax.run.evaluate import Results, headline
from imgrec_jax.run.start import EVALUATED, FRESH, STEP, Start, at_end, find, is_cut_here, set_damaged_aside
from imgrec_jax.run.writers import aside
from imgrec_jax.step import TrainState


def find_start(experiment: Experiment, folder: Path) -> Start | None:
    """What a run can go on from; None where it begins."""
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


def already_done(experiment: Experiment, folder: Path, start: Start | None, say: Callable[[str], None]) -> Results | None:
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


def restored(experiment: Experiment, start: Start | None, state: TrainState, say: Callable[[str], None]) -> TrainState:
    """The state that a run goes on with; a fresh one where it begins."""
    if start is None:
        return state
    layout, step = experiment.compute.layout, start.clock["step"]
    state = layout.put_state(checkpoint.read_state(start.found, layout.whole(state)))
    if step:
        say(f"resumed at step {step}" + (" (the best checkpoint)" if start.found.kind == checkpoint.BEST else ""))
    return state


def claim(
    experiment: Experiment, folder: Path, start: Start | None, environment: dict[str, Any], say: Callable[[str], None]
) -> Checkpointer | None:
    """Makes the folder the run's, and returns what writes its checkpoints, where it keeps any."""
    clock, keeps = start.clock if start else FRESH, bool(experiment.cadence.checkpoint_every)
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


def wait_for(step: parallel.Step, say: Callable[[str], None]) -> None:
    """Until the step is compiled; says so where that takes long."""
    began = time.perf_counter()
    if not step.wait(2.0):
        say("compiling the train step (once) ...")
        step.wait()
        say(f"compiled in {time.perf_counter() - began:.0f} s")
    compiled.confirm()


def check_selection(experiment: Experiment, eval_step: parallel.Step | None) -> None:
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

"""Evaluating what is saved: a checkpoint of a workdir, or pretrained weights as they are."""

import json
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

from imgrec_jax import parallel
from imgrec_jax.data.files import write_whole
from imgrec_jax.experiment import Experiment
from imgrec_jax.run import checkpoint
from imgrec_jax.run import workdir as workdirs
from imgrec_jax.run.evaluate import Results, evaluate, headline
from imgrec_jax.run.start import choose
from imgrec_jax.run.stop import Stop
from imgrec_jax.run.together import compile_eval_step, create_state, initialiser
from imgrec_jax.run.writers import emit, to_json
from imgrec_jax.step import TrainState, eval_variables


def evaluate_workdir(
    experiment: Experiment,
    workdir: str | PathLike,
    say: Callable[[str], None] = emit,
    *,
    which: str | int = "last",
    allow_changes: bool = False,
    stop: Stop | None = None,
) -> Results:
    """Evaluates a checkpoint of a workdir on every split and writes the result file, and nothing else.

    Args:
      which: "last", "best" or a step.
      allow_changes: evaluate although config or data are not the run's; the result lists what differs, and goes to
        `eval_changed.json` instead of `eval.json`.

    Raises:
      WorkdirError: when config or data are not the run's and `allow_changes` was not asked for.
      CheckpointError: when there is no such checkpoint, or it cannot be read.
    """
    folder = workdirs.resolve(workdir)
    changed = workdirs.config_changes(folder, experiment.config, experiment.settle)
    changed += workdirs.data_changes(folder, experiment.card) + workdirs.code_changes(folder, experiment.card)
    if changed and not allow_changes:
        raise workdirs.WorkdirError(
            f"the run in {folder} was trained with another config or other data:\n  " + "\n  ".join(changed)
            + "\nGive its own, or --allow_changes to evaluate with these; the result then says so"
        )  # fmt: skip
    found, clock = choose(folder, which, say)
    state, _ = create_state(experiment)
    eval_step, layout = compile_eval_step(experiment, state), experiment.compute.layout
    state = layout.put_state(checkpoint.read_state(found, layout.whole(state)))
    label = f"{found.kind == checkpoint.BEST and 'best, ' or ''}step {clock['step']}"
    results = _evaluate_splits(experiment, state, eval_step, label, say, stop)
    for line in changed:
        say(f"  not the run's own: {line}")
    if parallel.is_lead():
        record = {
            "step": clock["step"],
            "checkpoint": found.kind,
            **({"not_the_runs_own": changed} if changed else {}),
            **results,
        }
        _write_result(folder / ("eval_changed.json" if changed else "eval.json"), record, say)
    if which == "last" and (best := checkpoint.saved(folder, checkpoint.BEST)) and best[-1].step != clock["step"]:
        say(f"this is the last checkpoint; --checkpoint=best evaluates the best one, of step {best[-1].step}")
    return results


def evaluate_pretrained(
    experiment: Experiment, folder: Path, say: Callable[[str], None] = emit, *, stop: Stop | None = None
) -> Results:
    """Evaluates pretrained weights as they are on every split, and writes `eval.json` into the folder, which is no run's."""
    state, _ = create_state(experiment, initialiser(experiment, say))
    results = _evaluate_splits(experiment, state, compile_eval_step(experiment, state), "pretrained", say, stop)
    if parallel.is_lead():
        folder.mkdir(parents=True, exist_ok=True)
        record = {"step": 0, "checkpoint": "pretrained", "pretrained": experiment.card.get("pretrained"), **results}
        _write_result(folder / "eval.json", record, say)
    return results


def _evaluate_splits(
    experiment: Experiment,
    state: TrainState,
    eval_step: parallel.Step | None,
    label: str,
    say: Callable[[str], None],
    stop: Stop | None,
) -> Results:
    results = {}
    for split, pipeline in experiment.data.evals.items():
        assert eval_step is not None
        results[split] = evaluate(
            eval_step, eval_variables(state), pipeline, experiment.compute.layout,
            summarise=experiment.data.summarise[split], on_device=experiment.data.on_device, stop=stop,
        )  # fmt: skip
        say(f"{label}  {split}: {headline(results[split], experiment.show)}")
    return results


def _write_result(path: Path, record: dict[str, Any], say: Callable[[str], None]) -> None:
    try:
        write_whole(path, lambda partial: partial.write_text(json.dumps(to_json(record), allow_nan=False) + "\n"))
    except OSError as error:
        say(f"note: {path} could not be written: {error}")

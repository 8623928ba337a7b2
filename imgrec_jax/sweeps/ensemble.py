"""The ensemble of several runs of one task: the mean of their probabilities, evaluated as each of them is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from imgrec_jax import metrics, parallel
from imgrec_jax.experiment import Experiment
from imgrec_jax.run import checkpoint, start
from imgrec_jax.run.evaluate import evaluate
from imgrec_jax.run.stop import Stop
from imgrec_jax.tasks.task import Task


class EnsembleStep:
    """(variables of each network, batch) -> metric states of the mean of their probabilities, for `evaluate`.

    Each network is asked by itself, so that one program serves all of them.
    """

    def __init__(self, experiment: Experiment, variables: dict[str, Any]):
        task, layout = experiment.task, experiment.compute.layout
        first = next(iter(experiment.data.evals.values())).batch(0)
        self._predict = layout.compile_eval_step(task.predict, variables, first)
        self._by_device = layout.axis_name is not None  # what it takes and gives has a leading axis of the devices
        self._combine = jax.jit(lambda predictions, batch: states_of(task, predictions, batch))

    def prepare(self, state: Sequence[dict[str, Any]], batch: dict[str, Any], stop: parallel.Asked | None = None) -> None:
        self._predict.prepare(state[0], batch, stop)

    def __call__(self, state: Sequence[dict[str, Any]], batch: dict[str, Any]) -> dict[str, Any]:
        predictions = [self._predict(variables, batch) for variables in state]
        if not self._by_device:
            return self._combine(predictions, batch)
        whole = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.device_get((predictions, batch)))
        return jax.tree.map(lambda x: x[None], self._combine(*whole))


def states_of(task: Task, predictions: Sequence[dict[str, Any]], batch: dict[str, Any]) -> dict[str, Any]:
    """The task's metric states of the mean prediction, and how many examples were counted."""
    assert task.averaged is not None
    found = task.metrics(task.averaged(predictions), batch)
    valid = jnp.sum(batch["example_valid"], dtype=jnp.int32)
    return {**found, "examples": metrics.Accuracy(jnp.zeros((), jnp.int32), valid)}


def evaluate_ensemble(
    experiments: Sequence[Experiment],
    folders: Sequence[Path],
    which: str | int,
    splits: Sequence[str],
    stop: Stop | None = None,
) -> dict[str, dict[str, Any]]:
    """{split: values} of the ensemble of the checkpoints that `which` ("last", "best" or a step) names in the folders.

    {} for a task without probabilities to average (detection), or without splits to evaluate.
    """
    first = experiments[0]
    if first.task.averaged is None or not splits:
        return {}
    layout = first.compute.layout
    found = [start.choose(folder, which, lambda line: None)[0] for folder in folders]
    variables = [layout.put_state(checkpoint.read_variables(one)) for one in found]
    step = EnsembleStep(first, variables[0])
    options: dict[str, Any] = {"on_device": first.data.on_device, "stop": stop}
    # What these networks' answers choose (a threshold) is not that of the networks that were evaluated before.
    before = [split for split in first.data.first if split not in splits]
    values = {
        split: evaluate(step, variables, first.data.evals[split], layout, summarise=first.data.summarise[split], **options)
        for split in (*before, *splits)
    }
    return {split: values[split] for split in splits}

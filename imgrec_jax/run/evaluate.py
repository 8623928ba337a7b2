"""Evaluation: every example exactly once, merged as sums on the host."""

import math
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from imgrec_jax import metrics, parallel
from imgrec_jax.data.pieces import whole
from imgrec_jax.data.pipeline import Pipeline
from imgrec_jax.run.stop import Stop, until_ready

# Batches in flight: enough to keep a device busy while the host merges, few enough not to pile up in its memory.
IN_FLIGHT = 4

Results = dict[str, dict[str, Any]]  # {split: {metric: value}}


class EvalStep(Protocol):
    """(variables, batch) -> {name: metric state}, such as `parallel.Step`."""

    def prepare(self, state: Any, batch: dict[str, Any], stop: parallel.Asked | None = ...) -> None:
        """Until the program for this batch is compiled."""

    def __call__(self, state: Any, batch: dict[str, Any]) -> Any: ...


def evaluate(
    eval_step: EvalStep,
    variables: Any,
    pipeline: Pipeline,
    layout: parallel.Layout,
    *,
    summarise: Callable[[dict[str, Any]], dict[str, Any]] = metrics.compute,
    on_device: bool | None = None,
    stop: Stop | None = None,
) -> dict[str, Any]:
    """Runs `eval_step` over one pass of `pipeline`.

    Args:
      variables: what `eval_step` takes.
      summarise: merged states -> {name: number or list}.
      stop: a signal ends the evaluation with `Interrupted`.

    Returns:
      The metrics; "examples" is how many were counted, of pictures in windows the pictures.

    Raises:
      RuntimeError: when not every example was counted exactly once.
    """
    pending: deque = deque()
    merged: dict[str, Any] | None = None
    stop = stop or Stop()

    def take() -> None:
        nonlocal merged
        states = pending.popleft()
        until_ready(states, stop)
        merged = metrics.merge(merged, layout.to_host(states))

    batches = parallel.feed(pipeline, 0, pipeline.steps_per_epoch, layout, on_device=on_device)
    for _ in range(pipeline.steps_per_epoch):
        with stop.raising():
            _, batch = next(batches)
        eval_step.prepare(variables, batch, stop)
        pending.append(eval_step(variables, batch))
        if len(pending) > IN_FLIGHT:
            take()
    while pending:
        take()
    assert merged is not None  # no split is empty
    counted = int(merged.pop("examples").count)
    if counted != len(pipeline.source):
        raise RuntimeError(
            f"evaluation counted {counted} of the {len(pipeline.source)} examples of {pipeline.source.info.name}"
        )
    with stop.raising():
        values = {**summarise(merged), "examples": len(whole(pipeline.source))}
    stop.passing()  # with it this evaluation is made, in every process or in none
    return values


def not_finite(values: dict[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation that are NaN or infinite; what is undefined is None and no such number."""
    return {name: value for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)}


def headline(values: dict[str, Any], show: tuple[str, ...]) -> str:
    """`average loss 0.0423, accuracy 9871/10000 (98.71 %)`, and after a value its intervals, where it has any."""
    parts = []
    for name in show:
        if f"{name}_correct" in values:
            parts.append(f"{name} {values[f'{name}_correct']}/{values[f'{name}_count']} ({100 * values[name]:.2f} %)")
        elif name in values and values[name] is None:
            parts.append(f"{name} undefined")
        elif name in values:
            parts.append(f"{'average ' if name == 'loss' else ''}{name} {values[name]:.4f}")
        else:
            continue
        parts[-1] += "".join(
            f" {by}[{values[f'{key}_low']:.4f}, {values[f'{key}_high']:.4f}]"
            for key, by in ((name, ""), (f"{name}_groups", "by groups "))
            if values.get(f"{key}_low") is not None
        )
    return ", ".join(parts)

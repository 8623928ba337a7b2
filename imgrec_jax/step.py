"""The train state and the two steps: pure functions, compiled by the caller.

There is one seed. A key is `fold_in(seed, name)`, then `fold_in(step)`; keys are never stored, threaded or used twice.
"""

import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from imgrec_jax import metrics
from imgrec_jax.tasks.task import Task

# What is kept of the forward pass: everything, the results of convolutions and matrix products, or nothing.
REMAT = {
    "none": None,
    "convolutions": jax.checkpoint_policies.dots_saveable,
    "everything": jax.checkpoint_policies.nothing_saveable,
}


@struct.dataclass
class TrainState:
    """All that training changes, as one tree of arrays.

    Attributes:
      step: int32, how many updates were made.
      params: trained parameters, float32.
      model_state: other collections, e.g. {"batch_stats": ...}.
      opt_state: of the optimiser.
      ema: {"params", "model_state"} averaged over the steps, or None.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    ema: Any


def named_key(seed: int, name: str) -> jax.Array:
    return jax.random.fold_in(jax.random.PRNGKey(seed), zlib.crc32(name.encode()))


def init_state(variables: dict[str, Any], tx: optax.GradientTransformation, with_ema: bool) -> TrainState:
    """A fresh state; pretrained weights are merged into `variables` beforehand."""
    params = variables["params"]
    model_state = {name: value for name, value in variables.items() if name != "params"}
    ema = jax.tree.map(jnp.copy, {"params": params, "model_state": model_state}) if with_ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, model_state, tx.init(params), ema)


def eval_variables(state: TrainState) -> dict[str, Any]:
    """The variables that evaluation uses: the averaged ones where there are any."""
    if state.ema is not None:
        return {"params": state.ema["params"], **state.ema["model_state"]}
    return {"params": state.params, **state.model_state}


def train_key(seed: int) -> jax.Array:
    """Of dropout and whatever else the loss draws in training; the step is folded into it."""
    return named_key(seed, "train")


def eval_key(seed: int) -> jax.Array:
    """Of what a loss draws in evaluation (sampled RoIs): the same at every step, so that it depends on the example alone."""
    return named_key(seed, "eval")


def make_train_step(
    task: Task,
    tx: optax.GradientTransformation,
    *,
    schedule: Callable[[jax.Array], jax.Array],
    ema_decay: float = 0.0,
    accumulate: int = 1,
    remat: str = "none",
    axis_name: str | None = None,
    gather: Callable[[Any], Any] = lambda params: params,
) -> Callable[[jax.Array, TrainState, dict], tuple[TrainState, dict]]:
    """Makes (key, state, batch) -> (state, {name: metric state}): one program for all seeds, whose keys are `train_key(seed)`.

    Args:
      task: the contract.
      tx: the optimiser.
      schedule: step -> learning rate, reported.
      ema_decay: 0 for none; ramped up as min(decay, (1 + t) / (10 + t)) so that the average forgets the initialisation.
      accumulate: the batch is split into so many parts, one after the other, to save memory; gradients are averaged by how much
        each part's loss is a mean of on all devices (`Aux.count`), so that of a mean is the whole batch's. What is no such mean
        (Dice, a detector's means over its sampled boxes) is computed of each part, and averaged alike.
      remat: which activations the backward pass computes again, a name of REMAT.
      axis_name: mapped axis under `pmap`; gradients are summed over it.
      gather: parameters as the state holds them -> as the model takes them (`parallel.Sharded.gather`).
    """

    def value_and_grad(state: TrainState, batch: dict, rng: jax.Array):
        def loss(params):
            return task.loss({"params": gather(params), **state.model_state}, batch, rng, True)

        if remat != "none":
            loss = jax.checkpoint(loss, policy=REMAT[remat])
        return jax.value_and_grad(loss, has_aux=True)(state.params)

    def accumulated(state: TrainState, batch: dict, rng: jax.Array):
        # Row i goes to part i % accumulate: then a batch sharded over devices stays evenly sharded in every part.
        rows = len(batch["example_valid"])
        if rows % accumulate:
            where = "a batch" if axis_name is None else "one device's share of a batch"
            raise ValueError(f"optim.accumulate={accumulate} does not divide the {rows} rows of {where}; choose a divisor")
        parts = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1), batch)

        def one(carry, inputs):
            model_state, total, weights, sums = carry
            part, index = inputs
            # Weights are not negative, so these are the parameters; but what XLA runs in no loop waits for the part before.
            params = jax.tree.map(lambda p, g: jnp.where(weights >= 0, p, g.astype(p.dtype)), state.params, total[1])
            now = replace(state, params=params, model_state=model_state)
            (value, aux), grads = value_and_grad(now, part, jax.random.fold_in(rng, index))
            weight = jnp.sum(part["example_valid"] if aux.count is None else aux.count, dtype=jnp.float32)
            if axis_name is not None:
                # A part's value is this device's share of the mean over the part on all devices, so all of them weigh it alike.
                weight = jax.lax.psum(weight, axis_name)
            total = jax.tree.map(lambda t, g: t + weight * g, total, (value, grads))
            return (aux.model_state, total, weights + weight, jax.tree.map(jnp.add, sums, aux.metrics)), None

        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(value_and_grad, state, first, rng)
        (value, aux), grads = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        # XLA's CPU backend runs a convolution inside a loop on one thread, up to sixteen times slower.
        unroll = accumulate if jax.default_backend() == "cpu" else 1
        carry = (state.model_state, (value, grads), jnp.zeros((), jnp.float32), aux.metrics)
        (model_state, total, weights, sums), _ = jax.lax.scan(one, carry, (parts, jnp.arange(accumulate)), unroll=unroll)
        value, grads = jax.tree.map(lambda t: t / jnp.maximum(weights, 1e-12), total)
        return (value, aux._replace(model_state=model_state, metrics=sums)), grads

    def step(key: jax.Array, state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        rng = jax.random.fold_in(key, state.step)
        compute = accumulated if accumulate > 1 else value_and_grad
        (value, aux), grads = compute(state, batch, rng)
        sums = aux.metrics
        if axis_name is not None:
            value, grads = jax.lax.psum((value, grads), axis_name)
            sums = metrics.across(sums, axis_name)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            t = state.step.astype(jnp.float32)
            decay = jnp.minimum(ema_decay, (1 + t) / (10 + t))
            new = {"params": params, "model_state": aux.model_state}
            ema = jax.tree.map(lambda e, n: decay * e + (1 - decay) * n, ema, new)
        one = jnp.ones((), jnp.float32)
        report = {
            **sums,
            "objective": metrics.Sum(value, one),
            "grad_norm": metrics.Sum(optax.global_norm(grads), one),
            "learning_rate": metrics.Sum(jnp.asarray(schedule(state.step), jnp.float32), one),
        }
        return TrainState(state.step + 1, params, aux.model_state, opt_state, ema), report

    return step


def make_eval_step(task: Task, *, axis_name: str | None = None) -> Callable[[jax.Array, dict, dict], dict]:
    """Makes (key, variables, batch) -> {name: metric state}: the loss terms and the task's metrics of one batch.

    The key is `eval_key(seed)`.
    """

    def step(key: jax.Array, variables: dict, batch: dict) -> dict:
        _, aux = task.loss(variables, batch, key, False)
        states = {**aux.metrics, **task.metrics(task.predict(variables, batch), batch)}
        states["examples"] = metrics.Accuracy(jnp.zeros((), jnp.int32), jnp.sum(batch["example_valid"], dtype=jnp.int32))
        if axis_name is not None:
            states = metrics.across(states, axis_name)
        return states

    return step

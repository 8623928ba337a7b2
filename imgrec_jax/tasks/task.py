"""The contract between a kind of recognition and the training loop: a tuple of pure functions.

The loop knows nothing of labels, boxes or masks. Whatever a task needs from a batch it finds there by name
(`imgrec_jax/data/batch.py`), and whatever it wants reported it returns as mergeable sums (`imgrec_jax/metrics.py`).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from imgrec_jax import metrics

TINY = float(jnp.finfo(jnp.float32).tiny)  # the smallest probability whose logarithm is taken


class Aux(NamedTuple):
    """What a loss returns beside its value.

    Attributes:
      model_state: the new non-parameter collections, e.g. {"batch_stats": ...}; {} when there are none.
      metrics: named sums of this batch, at least "loss" and every term of it.
      count: float32 scalar, how many elements the loss is a mean of on this device (or the sum of their weights), which weighs
        the parts of an accumulated gradient; None for valid examples.
    """

    model_state: dict[str, Any]
    metrics: dict[str, metrics.SumState]
    count: jax.Array | None = None  # type: ignore[assignment]  # hides `tuple.count`


class Task(NamedTuple):
    """One kind of recognition: four functions that the loop calls, and optional ones that it does not know.

    Attributes:
      init: (rng, batch_spec) -> variables {"params": ..., other collections}; batch_spec maps names to
        `jax.ShapeDtypeStruct`.
      loss: (variables, batch, rng, train) -> (float32 scalar, Aux).
      predict: (variables, batch) -> predictions, a dict of static shapes with validity masks.
      metrics: (predictions, batch) -> {name: mergeable metric state}.
      logits: (variables, batch) -> what the classes are told apart by, [B, ..., K], differentiable in a float batch["image"];
        what explanations need. None where a task has no such thing.
      records: (predictions, batch), both on the host -> for each row a dict of plain numpy values in pixels of the original
        image; what predictors and reports need.
      averaged: predictions of several networks for one batch -> those of the mean of their probabilities, as `predict` makes
        them. None where a task has no such thing.
    """

    init: Callable
    loss: Callable
    predict: Callable
    metrics: Callable
    logits: Callable | None = None
    records: Callable | None = None
    averaged: Callable | None = None


def normalise(image: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """uint8 0..255 or float 0..1 [B, H, W, C] -> float32 (image - mean) / std; mean and std in 0..1, per channel or one.

    In JAX's 64-bit mode it is computed in float64 and rounded once: in float32 a program that joins the product and the
    difference into one instruction differs from one that does not by 1e-7, which twenty steps of a U-Net made 2e-2.

    Raises:
      ValueError: for any other type, e.g. uint16.
    """
    wide = jnp.result_type(float)
    if image.dtype == jnp.uint8:
        image = image.astype(wide) / 255.0
    elif not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(
            f"images of a batch are {image.dtype}; expected uint8 0..255 or float 0..1: divide uint16 by its white, e.g. 65535"
        )
    return ((image - jnp.asarray(mean, wide)) / jnp.asarray(std, wide)).astype(jnp.float32)


def mean_probabilities(predictions: Sequence[dict[str, jax.Array]]) -> jax.Array:
    """The mean of "probs" of several networks."""
    return jnp.mean(jnp.stack([found["probs"] for found in predictions]), axis=0)


def apply_model(
    model: nn.Module,
    variables: dict,
    *args: Any,
    rng: jax.Array | None,
    train: bool,
    axis_name: str | None = None,
    **kwargs: Any,
) -> tuple[Any, dict]:
    """Runs a linen module -> (outputs, new model state).

    In training every collection but the parameters may change (batch statistics), and `rng` feeds dropout, on each device
    along the mapped axis `axis_name` another one; otherwise the state comes back as it was.
    """
    if rng is not None and axis_name is not None:
        rng = jax.random.fold_in(rng, jax.lax.axis_index(axis_name))
    state = {name: value for name, value in variables.items() if name != "params"}
    rngs = {"dropout": rng} if rng is not None else {}
    if not train:
        return model.apply(variables, *args, train=False, rngs=rngs, **kwargs), state
    outputs, new_state = model.apply(variables, *args, train=True, rngs=rngs, mutable=list(state), **kwargs)
    return outputs, {**state, **new_state}

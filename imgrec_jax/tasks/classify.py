"""Classification: one label per image.

Shape letters: B batch, H W C image, K classes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from imgrec_jax import losses, metrics
from imgrec_jax.tasks.task import TINY, Aux, Task, apply_model, mean_probabilities, normalise


def one_against_all(logits: jax.Array) -> jax.Array:
    """The sigmoid of each logit, [B, K]: what `losses.binary_cross_entropy` trains it to be, the probability that the label is
    that class. The K of an image are estimates of their own and are not scaled to add up to 1: that would change each of them,
    and an image of no class may be told by all of them being small."""
    return jax.nn.sigmoid(logits)


def clipped(outputs: jax.Array) -> jax.Array:
    """Outputs of regression on class indicators, [B, K], as they are but within 0..1; they add up to 1 only about."""
    return jnp.clip(outputs, 0, 1)


def make_task(
    *,
    model: nn.Module,
    loss_fn: Callable[[jax.Array, jax.Array], jax.Array],
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    top_k: Sequence[int] = (),
    probabilities: Callable[[jax.Array], jax.Array] = jax.nn.softmax,
    axis_name: str | None = None,
    collect: bool = False,
    class_weights: Sequence[float] = (),
) -> Task:
    """A classification task.

    Args:
      model: images [B, H, W, C] -> logits [B, K].
      loss_fn: (logits [B, K], label int [B]) -> float32 [B].
      num_classes: K.
      mean, std: of the pixels in 0..1, per channel or one for all.
      top_k: further accuracies to report, e.g. (5,).
      probabilities: (float32 outputs [B, K]) -> predicted probabilities [B, K], those that belong to the loss: predictions and
        the calibration error are made of them.
      axis_name: mapped axis under `pmap`.
      collect: report the probabilities of every example, as the state "scores".
      class_weights: K of them, which weigh the examples in the loss by their label; () for none.
    """

    def losses_of(logits, batch):
        """(the loss of each example, what it counts), both [B]; of a mixed pair each label's loss counts by its own weight."""
        valid, values = batch["example_valid"], loss_fn(logits, batch["label"])
        if not len(class_weights):
            if "mix" in batch:
                values = batch["mix"] * values + (1 - batch["mix"]) * loss_fn(logits, batch["label_b"])
            return values, valid
        table = jnp.asarray(class_weights, jnp.float32)
        weight = table[batch["label"]]
        if "mix" in batch:
            parts = batch["mix"] * weight, (1 - batch["mix"]) * table[batch["label_b"]]
            weight = parts[0] + parts[1]
            total = parts[0] * values + parts[1] * loss_fn(logits, batch["label_b"])
            values = total / jnp.maximum(weight, jnp.finfo(jnp.float32).tiny)
        return values, jnp.where(valid, weight, 0.0)

    def init(rng, batch_spec):
        image = jnp.zeros((1, *batch_spec["image"].shape[1:]), jnp.float32)
        return model.init(rng, image)

    def forward(variables, batch, rng, train):
        image = normalise(batch["image"], mean, std)
        return apply_model(model, variables, image, rng=rng, train=train, axis_name=axis_name)

    def loss(variables, batch, rng, train):
        logits, model_state = forward(variables, batch, rng, train)
        values, weight = losses_of(logits, batch)
        accuracy = metrics.Accuracy.top_k(logits, batch["label"], batch["example_valid"])
        sums = {"loss": metrics.Sum.of(values, weight), "accuracy": accuracy}
        count = jnp.sum(weight) if len(class_weights) else None
        return losses.masked_mean(values, weight, axis_name), Aux(model_state, sums, count)

    def predict(variables, batch):
        logits, _ = forward(variables, batch, None, False)
        logits = logits.astype(jnp.float32)
        return {"logits": logits, "probs": probabilities(logits), "label": jnp.argmax(logits, axis=1)}

    def task_metrics(predictions, batch):
        label, valid = batch["label"], batch["example_valid"]
        states: dict[str, Any] = {
            "accuracy": metrics.Accuracy.top_k(predictions["logits"], label, valid),
            "confusion": metrics.Confusion.of(predictions["label"], label, valid, num_classes),
            "calibration_error": metrics.Calibration.of(predictions["probs"], label, valid),
        }
        if collect:
            rows = {"index": batch["index"], "valid": valid, "label": label, "probs": predictions["probs"]}
            states["scores"] = metrics.Collected(rows)
        for k in top_k:
            states[f"top{k}_accuracy"] = metrics.Accuracy.top_k(predictions["logits"], label, valid, k)
        return states

    def logits(variables, batch):
        return forward(variables, batch, None, False)[0].astype(jnp.float32)

    return Task(init, loss, predict, task_metrics, logits, records, averaged)


def averaged(predictions: Sequence[dict[str, jax.Array]]) -> dict[str, jax.Array]:
    """Predictions of several networks -> those of the mean of their probabilities; its logits are their logarithms."""
    probs = mean_probabilities(predictions)
    return {"logits": jnp.log(jnp.maximum(probs, TINY)), "probs": probs, "label": jnp.argmax(probs, axis=1)}


def records(predictions: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Of each row: label, and probs float32 [K]."""
    return [
        {"label": int(label), "probs": probs}
        for label, probs in zip(np.asarray(predictions["label"]), np.asarray(predictions["probs"]), strict=True)
    ]

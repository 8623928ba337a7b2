"""Several labels an image, each yes, no or unknown; what is unknown leaves loss and metrics.

Shape letters: B batch, H W C image, K labels.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from imgrec_jax import losses, metrics
from imgrec_jax.ops.precision import single
from imgrec_jax.tasks.task import Aux, Task, apply_model, mean_probabilities, normalise


def binary_cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Sigmoid cross-entropy of each label: float [..., K], 0 or 1 [..., K] -> float32 [..., K].

    With label smoothing s the targets are s/2 and 1 - s/2.
    """
    target = labels.astype(jnp.float32) * (1.0 - label_smoothing) + 0.5 * label_smoothing
    return optax.sigmoid_binary_cross_entropy(single(logits), target)


def make_task(
    *,
    model: nn.Module,
    loss_fn: Callable[[jax.Array, jax.Array], jax.Array],
    mean: Sequence[float],
    std: Sequence[float],
    axis_name: str | None = None,
    label_weights: Sequence[Sequence[float]] = (),
) -> Task:
    """A classification task with several labels an image.

    Args:
      model: images [B, H, W, C] -> logits [B, K].
      loss_fn: (logits [B, K], labels [B, K]) -> float32 [B, K].
      mean, std: of the pixels in 0..1, per channel or one for all.
      axis_name: mapped axis under `pmap`.
      label_weights: (weights of no [K], of yes [K]) in the loss; () for none.

    The loss is the mean over the labels that are known, weighted where there are weights.
    """

    def init(rng, batch_spec):
        return model.init(rng, jnp.zeros((1, *batch_spec["image"].shape[1:]), jnp.float32))

    def forward(variables, batch, rng, train):
        image = normalise(batch["image"], mean, std)
        return apply_model(model, variables, image, rng=rng, train=train, axis_name=axis_name)

    def known_of(batch):
        return batch["label_known"] & batch["example_valid"][:, None]

    def loss(variables, batch, rng, train):
        logits, model_state = forward(variables, batch, rng, train)
        values, known = loss_fn(logits, batch["labels"]), known_of(batch)
        weight = known.astype(jnp.float32)
        if len(label_weights):
            no, yes = (jnp.asarray(w, jnp.float32) for w in label_weights)
            weight = weight * jnp.where(batch["labels"] > 0, yes, no)
        correct = jnp.sum(((logits > 0) == (batch["labels"] > 0)) & known, dtype=jnp.int32)
        accuracy = metrics.Accuracy(correct, jnp.sum(known, dtype=jnp.int32))
        sums = {"loss": metrics.Sum.of(values, weight), "accuracy": accuracy}
        return losses.masked_mean(values, weight, axis_name), Aux(model_state, sums, jnp.sum(weight))

    def predict(variables, batch):
        logits = forward(variables, batch, None, False)[0].astype(jnp.float32)
        return {"logits": logits, "probs": jax.nn.sigmoid(logits), "labels": logits > 0}

    def task_metrics(predictions, batch):
        rows = {
            "index": batch["index"],
            "valid": batch["example_valid"],
            "probs": predictions["probs"],
            "labels": batch["labels"],
            "label_known": batch["label_known"],
        }
        return {"scores": metrics.Collected(rows)}

    def logits(variables, batch):
        return forward(variables, batch, None, False)[0].astype(jnp.float32)

    return Task(init, loss, predict, task_metrics, logits, records, averaged)


def averaged(predictions: Sequence[dict[str, jax.Array]]) -> dict[str, jax.Array]:
    """Predictions of several networks -> those of the mean of their probabilities; its logits are their log odds."""
    probs = mean_probabilities(predictions)
    return {"logits": jax.scipy.special.logit(jnp.clip(probs, 1e-7, 1 - 1e-7)), "probs": probs, "labels": probs > 0.5}


def records(predictions: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Of each row: probs float32 [K], and present bool [K], where the probability is above one half."""
    pairs = zip(np.asarray(predictions["probs"]), np.asarray(predictions["labels"]), strict=True)
    return [{"probs": probs, "present": present} for probs, present in pairs]

"""Losses: one value per element, float32 (float64 of float64); masking and reduction happen once, in `masked_mean`.

Shape letters: B batch (any leading shape is accepted), C classes.
"""

import jax
import jax.numpy as jnp
import optax

from imgrec_jax.ops.precision import single


def masked_mean(values: jax.Array, valid: jax.Array | None = None, axis_name: str | None = None) -> jax.Array:
    """Mean of `values` where `valid`, over all devices.

    Args:
      values: any shape; entries where `valid` is False may hold anything finite or not.
      valid: boolean (or float weights), broadcastable from the left to `values`; None means all.
      axis_name: the mapped axis to sum over under `pmap`; None when arrays are global (`jit`).

    Returns:
      A scalar; 0 when nothing is valid.
    """
    total, count = masked_sum(values, valid)
    if axis_name is not None:
        # Only the count is summed over devices: the sum of the devices' losses, hence of their gradients, is the mean.
        count = jax.lax.psum(count, axis_name)
    return total / jnp.maximum(count, 1e-12)


def masked_sum(values: jax.Array, valid: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Sum of `values` where `valid`, and the number of valid entries (or the sum of the weights)."""
    values = single(values)
    if valid is None:
        return jnp.sum(values), jnp.asarray(values.size, values.dtype)
    valid = jnp.reshape(valid, valid.shape + (1,) * (values.ndim - valid.ndim))
    weights = jnp.broadcast_to(valid, values.shape).astype(values.dtype)
    # `where` before the product: an invalid entry may be inf or NaN, and 0 * inf is NaN.
    return jnp.sum(jnp.where(weights > 0, values, 0.0) * weights), jnp.sum(weights)


def softmax_cross_entropy(logits: jax.Array, label: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy of integer labels.

    Args:
      logits: float [..., C].
      label: int [...], 0 <= label < C.
      label_smoothing: mass spread evenly over all C classes (Szegedy et al. 2016, arXiv 1512.00567).

    Returns:
      float32 [...].
    """
    log_probs = jax.nn.log_softmax(single(logits))
    return of_log_probabilities(log_probs, label, label_smoothing)


def negative_log_likelihood(outputs: jax.Array, label: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy of the outputs' log-softmax, whether a model ends in one or in logits. As `softmax_cross_entropy`.

    A log-softmax of log-probabilities is themselves, up to rounding; without it this loss would have no lower bound on logits,
    all of which can grow together.
    """
    return softmax_cross_entropy(outputs, label, label_smoothing)


def of_log_probabilities(log_probs: jax.Array, label: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """`-log_probs[label]` of what is a log-softmax already. float32 [..., C], int [...] -> float32 [...]."""
    picked = jnp.take_along_axis(log_probs, label[..., None].astype(jnp.int32), axis=-1)[..., 0]
    if not label_smoothing:
        return -picked
    return -(1.0 - label_smoothing) * picked - label_smoothing * jnp.mean(log_probs, axis=-1)


def binary_cross_entropy(logits: jax.Array, label: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """One-against-all sigmoid cross-entropy on one-hot targets, summed over the C classes.

    float [..., C], int [...] -> float32 [...]. With label smoothing s the targets are s/2 and 1 - s/2.
    """
    target = jax.nn.one_hot(label, logits.shape[-1])
    target = target * (1.0 - label_smoothing) + 0.5 * label_smoothing
    return jnp.sum(optax.sigmoid_binary_cross_entropy(single(logits), target), axis=-1)


def focal_weight(wrong: jax.Array, gamma: float) -> jax.Array:
    """wrong^gamma, [...], of 1 - the probability of the truth; its gradient is finite at 0 where gamma < 1, too."""
    return jnp.maximum(wrong, jnp.finfo(wrong.dtype).tiny) ** gamma if gamma else jnp.ones_like(wrong)


def sigmoid_focal(logits: jax.Array, target: jax.Array, alpha: float = 0.25, gamma: float = 2.0) -> jax.Array:
    """Focal loss of independent yes-no questions (Lin et al. 2017, arXiv 1708.02002, eq. 5), elementwise.

    float [...], 0 or 1 [...] -> float32 [...]. alpha: weight of the positives, 1 - alpha of the negatives.
    """
    logits = single(logits)
    target = target.astype(logits.dtype)
    wrong = jax.nn.sigmoid(jnp.where(target > 0, -logits, logits))  # 1 - the probability of the truth
    weight = jnp.where(target > 0, alpha, 1.0 - alpha)
    return weight * focal_weight(wrong, gamma) * optax.sigmoid_binary_cross_entropy(logits, target)


def mean_squared_error(outputs: jax.Array, label: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Squared distance to the (smoothed) one-hot target, averaged over the C outputs.

    float [..., C], int [...] -> float32 [...]. Linear regression on class indicators (Hastie et al., ESL §4.2).
    """
    classes = outputs.shape[-1]
    target = jax.nn.one_hot(label, classes) * (1.0 - label_smoothing) + label_smoothing / classes
    return jnp.mean(jnp.square(single(outputs) - target), axis=-1)


def smooth_l1(error: jax.Array, beta: float) -> jax.Array:
    """Huber-like loss of Fast R-CNN (arXiv 1504.08083, eq. 3), elementwise: quadratic within `beta`, L1 beyond it.

    `beta=0` is plain L1. float [...] -> float32 [...].
    """
    magnitude = jnp.abs(single(error))
    if not beta:
        return magnitude
    return jnp.where(magnitude < beta, 0.5 * jnp.square(magnitude) / beta, magnitude - 0.5 * beta)

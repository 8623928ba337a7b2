"""Metrics as mergeable sums.

A metric state is a dataclass of sums. Inside `jit` a batch becomes a state; on the host states are merged (in float64 and
int64, so that sums over a whole set stay exact) and `compute()` turns the sums into numbers. Never a mean of means.

Shape letters: B batch, C classes, M bins.
"""

from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from imgrec_jax.losses import masked_sum


class SumState:
    """Base of states whose fields are plain sums: merging adds field by field."""

    def merge(self, other: Self) -> Self:
        return jax.tree.map(lambda a, b: _wide(a) + _wide(b), self, other)

    def across(self, axis_name: str) -> Self:
        """Inside `pmap`: this state of all devices together."""
        return jax.lax.psum(self, axis_name)

    def compute(self) -> dict[str, Any]:
        """{suffix: number or list}; the empty suffix is the metric's own name."""
        raise NotImplementedError


def _wide(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return x.astype(np.int64 if np.issubdtype(x.dtype, np.integer) else np.float64)


def merge(a: dict[str, Any] | None, b: dict[str, Any]) -> dict[str, Any]:
    """Merges two {name: state} dictionaries of host arrays; None is the empty one."""
    return b if a is None else {name: state.merge(b[name]) for name, state in a.items()}


def across(states: dict[str, Any], axis_name: str) -> dict[str, Any]:
    """Inside `pmap`: {name: state} of all devices together."""
    return {name: state.across(axis_name) for name, state in states.items()}


def compute(states: dict[str, Any]) -> dict[str, Any]:
    """{name: state} -> flat {name or name_suffix: value}."""
    return {f"{name}_{key}" if key else name: value for name, s in states.items() for key, value in s.compute().items()}


@struct.dataclass
class Sum(SumState):
    """A mean in the making: the total and how many entries it is of (both scalars)."""

    total: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, values: jax.Array, valid: jax.Array | None = None) -> Self:
        """values [...], valid: boolean or weights, broadcastable from the left."""
        return cls(*masked_sum(values, valid))

    def compute(self) -> dict[str, Any]:
        return {"": float(self.total) / max(float(self.count), 1e-12)}


@struct.dataclass
class Accuracy(SumState):
    """Share of correct answers, and the two integers behind it."""

    correct: jax.Array
    count: jax.Array

    @classmethod
    def top_k(cls, logits: jax.Array, label: jax.Array, valid: jax.Array, k: int = 1) -> "Accuracy":
        """logits [B, C], label [B] int, valid [B] bool; a label is found if fewer than k classes score higher.

        Classes that tie with the label and stand before it count as higher, as in `argmax`.
        """
        score = jnp.take_along_axis(logits, label[:, None], axis=1)
        before = jnp.arange(logits.shape[1]) < label[:, None]
        rank = jnp.sum((logits > score) | ((logits == score) & before), axis=1)
        found = (rank < k) & ~jnp.isnan(score[:, 0])
        return cls(jnp.sum(found & valid, dtype=jnp.int32), jnp.sum(valid, dtype=jnp.int32))

    def compute(self) -> dict[str, Any]:
        correct, count = int(self.correct), int(self.count)
        return {"": correct / max(count, 1), "correct": correct, "count": count}


@struct.dataclass
class Confusion(SumState):
    """Confusion matrix [C, C] int: row is the true class, column the predicted one."""

    matrix: jax.Array

    @classmethod
    def of(cls, predicted: jax.Array, label: jax.Array, valid: jax.Array, classes: int) -> "Confusion":
        """predicted, label int [...], valid bool [...]; all below `classes`."""
        cell = jnp.where(valid, label * classes + predicted, classes * classes).ravel()
        counts = jnp.zeros(classes * classes + 1, jnp.int32).at[cell].add(1)
        return cls(counts[:-1].reshape(classes, classes))

    def compute(self) -> dict[str, Any]:
        """Per-class and averaged precision, recall and F1; a class without any prediction or example scores 0.

        Micro averages over single-label examples all equal the accuracy; macro is over the C classes.
        """
        matrix = np.asarray(self.matrix, np.float64)
        hits = np.diag(matrix)
        precision = hits / np.maximum(matrix.sum(0), 1)
        recall = hits / np.maximum(matrix.sum(1), 1)
        f1 = 2 * hits / np.maximum(matrix.sum(0) + matrix.sum(1), 1)
        scores = {"precision": precision, "recall": recall, "f1": f1}
        micro = float(hits.sum() / max(matrix.sum(), 1))
        return (
            {f"{name}_macro": float(value.mean()) for name, value in scores.items()}
            | {f"{name}_micro": micro for name in scores}
            | {f"{name}_per_class": value.tolist() for name, value in scores.items()}
            | {"matrix": np.asarray(self.matrix).tolist()}
        )


@struct.dataclass
class Collected:
    """Values of every example seen, as a metric state, for what is no mean of anything smaller: rankings, intervals.

    Attributes:
      rows: {name: [B, ...]}, among them "index" int32, the position in the split, and "valid" bool.
    """

    rows: dict[str, jax.Array]

    def merge(self, other: "Collected") -> "Collected":
        return jax.tree.map(lambda a, b: np.concatenate([a, b]), self, other)

    def across(self, axis_name: str) -> "Collected":
        return jax.lax.all_gather(self, axis_name, tiled=True)

    def taken(self) -> dict[str, np.ndarray]:
        """The valid rows."""
        valid = np.asarray(self.rows["valid"])
        return {name: np.asarray(value)[valid] for name, value in self.rows.items() if name != "valid"}

    def compute(self) -> dict[str, Any]:
        """How many there are."""
        return {"count": int(np.sum(self.rows["valid"]))}


@struct.dataclass
class Calibration(SumState):
    """Expected calibration error over M equal confidence bins (Guo et al. 2017, arXiv 1706.04599)."""

    confidence: jax.Array
    correct: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, probs: jax.Array, label: jax.Array, valid: jax.Array, bins: int = 15) -> "Calibration":
        """probs [B, C], label int [B], valid bool [B]. Bin m holds confidences in (m / M, (m + 1) / M]."""
        confidence = jnp.max(probs, axis=1)
        hit = jnp.argmax(probs, axis=1) == label
        index = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
        one_hot = jax.nn.one_hot(index, bins) * valid[:, None]
        # Accelerators would round the factors of a product, and confidences near 1 all to the same side.
        total = jnp.matmul(confidence, one_hot, precision="highest")
        return cls(total, hit.astype(jnp.float32) @ one_hot, jnp.sum(one_hot, axis=0))

    def compute(self) -> dict[str, Any]:
        gap = np.abs(np.asarray(self.confidence, np.float64) - np.asarray(self.correct, np.float64))
        return {"": float(gap.sum() / max(float(np.sum(self.count)), 1.0))}

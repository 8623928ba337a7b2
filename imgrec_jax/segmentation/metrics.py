"""Metrics of semantic segmentation over a whole set: scores of one confusion matrix, and F1 of separate objects.

Shape letters: B batch, H W image, C classes (with background).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from imgrec_jax import metrics
from imgrec_jax.segmentation import objects

COMPONENTS = objects.components()


def scores(matrix: np.ndarray) -> dict[str, Any]:
    """All scores of a confusion matrix [C, C] of pixels (row: truth, column: prediction).

    A class that neither truth nor prediction contains has no IoU and no Dice (None in the lists) and is left out of their
    means; a class that the truth lacks is left out of the mean accuracy. With C = 2, class 1 is the foreground and has
    precision, recall, F1 (equal to its Dice) and IoU of its own, 0 where undefined.

    pixel_accuracy, mean_accuracy, mean_iou and frequency_weighted_iou: Long et al. 2015 (arXiv 1411.4038), section 5.
    """
    matrix = np.asarray(matrix, np.float64)
    hits, truth, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    union = truth + predicted - hits
    recall = hits / np.maximum(truth, 1)
    iou = hits / np.maximum(union, 1)
    dice = 2 * hits / np.maximum(truth + predicted, 1)
    total = max(matrix.sum(), 1.0)
    values = {
        "pixel_accuracy": float(hits.sum() / total),
        "mean_accuracy": _mean(recall, truth > 0),
        "mean_iou": _mean(iou, union > 0),
        "mean_dice": _mean(dice, union > 0),
        "frequency_weighted_iou": float((truth * iou).sum() / total),
        "iou_per_class": _listed(iou, union > 0),
        "dice_per_class": _listed(dice, union > 0),
        "confusion": matrix.astype(np.int64).tolist(),
    }
    if len(matrix) == 2:
        foreground = {"precision": hits / np.maximum(predicted, 1), "recall": recall, "f1": dice, "iou": iou}
        values |= {name: float(value[1]) for name, value in foreground.items()}
    return values


def _mean(values: np.ndarray, counted: np.ndarray) -> float:
    return float(values[counted].mean()) if counted.any() else 0.0


def _listed(values: np.ndarray, counted: np.ndarray) -> list[float | None]:
    return [float(value) if known else None for value, known in zip(values, counted, strict=True)]


@struct.dataclass
class PixelScore(metrics.Confusion):
    """One of `scores`, as a metric of its own name."""

    score: str = struct.field(pytree_node=False, default="mean_iou")

    def compute(self) -> dict[str, Any]:
        return {"": scores(np.asarray(self.matrix))[self.score]}


def pixel_scores(predicted: jax.Array, label: jax.Array, valid: jax.Array, classes: int) -> dict[str, PixelScore]:
    """{name: state} for every name of `scores`; predicted, label int and valid bool [B, H, W]."""
    label = jnp.where(valid, label, 0)  # a void label may lie outside the classes
    matrix = metrics.Confusion.of(predicted, label, valid, classes).matrix
    return {name: PixelScore(matrix, name) for name in scores(np.zeros((classes, classes)))}


class Matches(NamedTuple):
    """Objects of one image: how many of the truth were found, and how many there are on either side."""

    matched: int
    predicted: int
    truth: int


def match_objects(
    foreground: np.ndarray,
    instances: np.ndarray,
    valid: np.ndarray,
    threshold: float = 0.5,
    separate: objects.Separate = COMPONENTS,
) -> Matches:
    """Matches the objects of a predicted foreground with the instances of the truth, on valid pixels.

    A pair matches where its IoU is above `threshold`; from 0.5 on an object has at most one match, so the order plays no part.

    Args:
      foreground: bool [H, W].
      instances: int [H, W], 0 where there is none.
      valid: bool [H, W].
      threshold: at least 0.5.
      separate: see `segmentation.objects`.

    Raises:
      ValueError: for a lower threshold.
    """
    if threshold < 0.5:
        raise ValueError(f"threshold {threshold} is below 0.5, where an object may have several matches; give 0.5 or more")
    found = separate(foreground & valid)
    instances = np.where(valid, instances, 0)
    truth = np.searchsorted(np.unique(np.append(0, instances)), instances)  # ids without holes
    rows, columns = int(truth.max(initial=0)) + 1, int(found.max(initial=0)) + 1
    shared = np.bincount((truth * columns + found)[valid], minlength=rows * columns).reshape(rows, columns)
    union = shared.sum(1, keepdims=True) + shared.sum(0, keepdims=True) - shared
    matched = shared[1:, 1:] > threshold * union[1:, 1:]
    return Matches(int(matched.sum()), columns - 1, rows - 1)


@struct.dataclass
class ObjectCounts(metrics.SumState):
    """Sums of `Matches` over images."""

    matched: Any
    predicted: Any
    truth: Any

    def merge(self, other: "ObjectCounts | ObjectMaps") -> "ObjectCounts":
        return super().merge(other.counted())

    def counted(self) -> "ObjectCounts":
        return self

    def compute(self) -> dict[str, Any]:
        matched, predicted, truth = int(self.matched), int(self.predicted), int(self.truth)
        return {
            "f1": 2 * matched / max(predicted + truth, 1),
            "precision": matched / max(predicted, 1),
            "recall": matched / max(truth, 1),
            "matched": matched,
            "predicted": predicted,
            "truth": truth,
        }


@struct.dataclass
class ObjectMaps:
    """What object scores of one batch are made of. Merging counts objects on the host, so no maps are kept.

    Attributes:
      foreground: bool [B, H, W], predicted.
      instances: int32 [B, H, W], the truth; 0 where there is none.
      valid: bool [B, H, W].
      threshold: of the IoU.
      separate: a predicted foreground -> objects.
    """

    foreground: jax.Array
    instances: jax.Array
    valid: jax.Array
    threshold: float = struct.field(pytree_node=False, default=0.5)
    separate: objects.Separate = struct.field(pytree_node=False, default=COMPONENTS)

    def across(self, axis_name: str) -> "ObjectMaps":
        return jax.lax.all_gather(self, axis_name, tiled=True)

    def counted(self) -> ObjectCounts:
        maps = (np.asarray(self.foreground), np.asarray(self.instances), np.asarray(self.valid))
        matches = [match_objects(*image, self.threshold, self.separate) for image in zip(*maps, strict=True)]
        return ObjectCounts(*np.array(matches, np.int64).sum(0))

    def merge(self, other: "ObjectCounts | ObjectMaps") -> ObjectCounts:
        return self.counted().merge(other)

    def compute(self) -> dict[str, Any]:
        return self.counted().compute()

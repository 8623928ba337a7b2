"""What kind of error each detection is, and precision over all thresholds.

Categories of Bolya et al., "TIDE", 2020 (arXiv 2008.08115), section 3, at one foreground and one background threshold of IoU.
Shape letters: D detections, G objects of one image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from imgrec_jax.detection.coco_numbers import RECALLS, Matched, by_score

FOREGROUND, BACKGROUND = 0.5, 0.1
KINDS = ("correct", "class", "localisation", "both", "duplicate", "background", "ignored")


class ImageErrors(NamedTuple):
    """Attributes:
    kind: int [D], positions in KINDS. A detection mostly within a crowd region is ignored.
    found: bool [G], whether a correct detection has the object.
    missed: bool [G], objects that neither a correct one nor a class or localisation error explains; no crowds.
    """

    kind: np.ndarray
    found: np.ndarray
    missed: np.ndarray


def classify(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    true_boxes: np.ndarray,
    true_labels: np.ndarray,
    crowd: np.ndarray,
) -> ImageErrors:
    """The errors of one image.

    Args:
      boxes, scores, labels: [D, 4] xyxy, [D], [D]; matched by falling score, each to the free object of its class with the
        highest IoU of at least FOREGROUND, as COCO's evaluation does.
      true_boxes, true_labels, crowd: [G, 4], [G], bool [G].
    """
    from pycocotools import mask as coco_mask

    def xywh(b: np.ndarray) -> np.ndarray:
        b = np.asarray(b, np.float64).reshape(-1, 4)
        return np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], axis=1)

    kind = np.full(len(boxes), KINDS.index("background"))
    found, explained = np.zeros(len(true_boxes), bool), np.zeros(len(true_boxes), bool)
    if len(boxes) and len(true_boxes):
        iou = np.asarray(coco_mask.iou(xywh(boxes), xywh(true_boxes), crowd.astype(int).tolist()))
        for d in np.argsort(-np.asarray(scores), kind="stable"):
            kind[d] = KINDS.index(_kind(iou[d], labels[d] == true_labels, crowd, found, explained))
    return ImageErrors(kind, found, ~found & ~explained & ~crowd)


def _kind(iou: np.ndarray, same: np.ndarray, crowd: np.ndarray, found: np.ndarray, explained: np.ndarray) -> str:
    """The category of one detection; notes which object it finds or explains."""
    free = np.where(same & ~crowd & ~found, iou, -1.0)
    if free.max() >= FOREGROUND:
        found[free.argmax()] = True
        return "correct"
    if np.where(crowd & same, iou, -1.0).max() >= FOREGROUND:
        return "ignored"
    own, other = np.where(same & ~crowd, iou, -1.0), np.where(~same & ~crowd, iou, -1.0)
    # In the order of the paper's code: a detection gets the first category that fits.
    if BACKGROUND <= own.max() < FOREGROUND:
        explained[own.argmax()] = True
        return "localisation"
    if other.max() >= FOREGROUND:
        explained[other.argmax()] = True
        return "class"
    if own.max() >= FOREGROUND:
        return "duplicate"
    return "both" if other.max() >= BACKGROUND else "background"


def curves(scores: np.ndarray, correct: np.ndarray, objects: int) -> dict[str, np.ndarray]:
    """threshold, precision, recall and f1 [T] at every distinct score, falling; correct: bool [D]; objects: all there are."""
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    scores, correct = np.asarray(scores, np.float64)[order], np.asarray(correct, bool)[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1) if len(scores) else np.zeros(0, int)
    hits, said = np.cumsum(correct)[last], last + 1
    return {
        "threshold": scores[last],
        "precision": hits / np.maximum(said, 1),
        "recall": hits / max(objects, 1),
        "f1": 2 * hits / np.maximum(said + objects, 1),
    }


def ap_of_weighted_images(matched: Matched) -> Callable[[np.ndarray], float | None]:
    """COCO's AP as a function of how often each image counts, int [n]: what a bootstrap over images needs.

    matched: of all areas first. With every weight 1 it is COCO's AP.
    """
    tables = []
    for k in range(matched.objects.shape[2]):
        order, objects = by_score(matched, k), matched.objects[0, :, k]
        if len(order) or objects.any():
            hit, counts = matched.hit[0][:, order], ~matched.ignored[0][:, order]
            tables.append((hit & counts, ~hit & counts, matched.image[order], objects))

    def statistic(weights: np.ndarray) -> float | None:
        values = [_mean_precision(*table, weights, RECALLS) for table in tables]
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    return statistic


def _mean_precision(
    true: np.ndarray, false: np.ndarray, image: np.ndarray, objects: np.ndarray, weights: np.ndarray, recalls: np.ndarray
) -> float | None:
    """The mean over IoU thresholds of the interpolated precision at `recalls`; true, false: bool [T, D]."""
    count = int(weights @ objects)
    if count == 0:
        return None
    tp, fp = (np.cumsum(kind * weights[image], axis=1) for kind in (true, false))
    precision = tp / np.maximum(tp + fp, np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.concatenate([precision, np.zeros((len(precision), 1))], axis=1)
    at = [np.searchsorted(row / count, recalls, side="left") for row in tp]
    return float(np.mean([row[places] for row, places in zip(padded, at, strict=True)]))

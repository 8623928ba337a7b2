"""What a run says of every example of a split, beside the truth: what reports draw and test statistics are made of.

Shape letters: N examples, K classes, D detections of all images, T thresholds.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from imgrec_jax import assemble, at_hand
from imgrec_jax.assemble.data import open_sources
from imgrec_jax.data.annotations import to_run_lengths
from imgrec_jax.data.source import Source
from imgrec_jax.detection import coco_eval, errors
from imgrec_jax.inference.inputs import Picture
from imgrec_jax.inference.predictor import Predictor
from imgrec_jax.inference.results import InstancesResult, Result
from imgrec_jax.segmentation.metrics import scores as pixel_scores

# Examples of a split that are looked at, spread evenly over it; of maps, which are kept, fewer, of about so many pixels.
MOST, MOST_MAPS, MOST_PIXELS = 10_000, 1_000, 4 * 10**8

Statistic = Callable[[np.ndarray], float | None]  # how often each example counts, int [N] -> value


class Evidence(NamedTuple):
    """Attributes:
    split: its name; source: its examples.
    indices: int [N], of the examples that were looked at.
    results: of these; truths: {target: value} of each, without the image.
    seconds: that the predictions took, compilation included.
    """

    split: str
    source: Source
    indices: np.ndarray
    results: list[Result]
    truths: list[dict[str, Any]]
    seconds: float


def truth_of(example: dict[str, Any]) -> dict[str, Any]:
    """What is kept of an example's targets while a split is looked at: no pixels, and maps as small as they can be."""
    kept = {key: value for key, value in example.items() if key not in ("image", "box_mask", "instances", "pixel_weight")}
    if "segmentation" in kept and np.max(kept["segmentation"], initial=0) < 256:
        kept["segmentation"] = np.asarray(kept["segmentation"], np.uint8)
    return kept


def splits(run: Predictor) -> dict[str, Source]:
    """The evaluation splits of a run whose data are on this machine, the test split first.

    Raises:
      ValueError, OSError, ImportError: where they are not; nothing is fetched or prepared.
    """
    with run.carried(), at_hand.only():
        found = open_sources(assemble.complete(run.config))[1]
    return {name: found[name] for name in ("test", "validation") if name in found}


def gather(run: Predictor, split: str, source: Source) -> Evidence:
    first, most = source[0], MOST
    if "segmentation" in first:
        most = min(MOST_MAPS, max(MOST_PIXELS // np.size(first["segmentation"]), 1))
    indices = np.unique(np.linspace(0, len(source) - 1, min(len(source), most)).round().astype(np.int64))
    truths = list[dict[str, Any]]()

    def pictures() -> Iterator[Picture]:
        for index in indices.tolist():
            yield Picture(f"{split} {index}", functools.partial(_image, source, index))

    began = time.perf_counter()
    results = run.predict(pictures())
    seconds = time.perf_counter() - began
    for index in indices.tolist():
        truths.append(truth_of(source[index]))
    return Evidence(split, source, indices, results, truths, seconds)


def _image(source: Source, index: int) -> np.ndarray:
    return np.asarray(source[index]["image"])


def statistic(evidence: Evidence) -> tuple[str, Statistic]:
    """(name, function) of what decides between two runs: accuracy, AP or mean IoU."""
    first = evidence.truths[0]
    if "box_label" in first:
        return "AP", _average_precision(evidence)
    if "segmentation" in first:
        matrices = np.stack(confusions(evidence))
        there = (matrices.sum(1) + matrices.sum(2)) > 0
        iou = _of_all_classes(lambda weights: float(pixel_scores(np.tensordot(weights, matrices, 1))["mean_iou"]), there)
        return "mean_iou", iou
    right = correct(evidence)
    return "accuracy", lambda weights: float(weights @ right / weights.sum())


def _of_all_classes(mean: Statistic, there: np.ndarray) -> Statistic:
    """A mean over classes, None under weights that leave out every image of a class: it would be the mean of others.

    there: bool [N, K], which classes an image has.
    """
    there = there[:, there.any(0)]
    return lambda weights: mean(weights) if (weights @ there > 0).all() else None


def correct(evidence: Evidence) -> np.ndarray:
    """Whether each label is right, bool [N]."""
    return np.array([r.label == int(t["label"]) for r, t in zip(_any(evidence), evidence.truths, strict=True)])


def _any(evidence: Evidence) -> list[Any]:
    return list(evidence.results)


def confusions(evidence: Evidence) -> list[np.ndarray]:
    """The confusion matrix of each image, int [K, K]."""
    classes = len(evidence.source.info.class_names)
    found = []
    for result, truth in zip(_any(evidence), evidence.truths, strict=True):
        label = np.asarray(truth["segmentation"], np.int64)
        valid = np.asarray(truth.get("pixel_valid", np.ones(label.shape, bool)))
        cells = label[valid] * classes + result.segmentation[valid].astype(np.int64)
        found.append(np.bincount(cells, minlength=classes * classes).reshape(classes, classes))
    return found


def rows(evidence: Evidence) -> np.ndarray:
    """All detections as `coco_eval` takes them, float64 [D, 7]."""
    table = evidence.source.info.meta["annotations"]
    ids = np.asarray(table.category_ids)
    parts = [
        np.column_stack([np.full(len(r.boxes), table.image_ids[evidence.indices[n]]), r.boxes, r.scores, ids[r.labels - 1]])
        for n, r in enumerate(_any(evidence))
    ]
    return np.concatenate(parts).astype(np.float64) if parts else np.zeros((0, 7))


def _average_precision(evidence: Evidence) -> Statistic:
    table = evidence.source.info.meta["annotations"].subset(evidence.indices)
    by_sorted_id = coco_eval.by_images(table.to_coco(), rows(evidence))
    order = np.argsort(table.image_ids, kind="stable")
    there = np.zeros((len(table.image_ids), len(table.category_ids) + 1), bool)
    images = np.repeat(np.arange(len(table.image_ids)), np.diff(table.offsets))
    there[images[~table.crowd], table.labels[~table.crowd]] = True
    return _of_all_classes(lambda weights: by_sorted_id(weights[order]), there)


def detection_errors(evidence: Evidence, threshold: float) -> list[errors.ImageErrors]:
    """The errors of each image among the detections of at least `threshold`."""
    found = []
    for result, truth in zip(_any(evidence), evidence.truths, strict=True):
        kept = result.above(threshold)
        truths = (truth["boxes"], np.asarray(truth["box_label"]), np.asarray(truth["box_crowd"], bool))
        found.append(errors.classify(kept.boxes, kept.scores, kept.labels, *truths))
    return found


def mask_overlaps(evidence: Evidence, threshold: float) -> np.ndarray | None:
    """The IoU of each object's mask with the best one of its class among detections of at least `threshold`, 0 without one.

    float64 [objects, no crowds]; None where the run or the data have no masks.
    """
    table = evidence.source.info.meta["annotations"]
    if table.segmentations is None or not all(isinstance(result, InstancesResult) for result in evidence.results):
        return None
    best: list[float] = []
    for index, result in zip(evidence.indices.tolist(), _any(evidence), strict=True):
        rows = np.arange(table.offsets[index], table.offsets[index + 1])
        rows = rows[~table.crowd[rows]]
        size = table.sizes[index].tolist()
        masks = [to_run_lengths(table.segmentations[row], *size) for row in rows.tolist()]
        kept = result.above(threshold)
        for mask, label in zip(masks, table.labels[rows].tolist(), strict=True):
            mine = [m for m, found in zip(kept.masks, kept.labels.tolist(), strict=True) if found == label]
            best.append(float(coco_eval.overlaps(mine, [mask]).max(initial=0.0)) if mask else 0.0)
    return np.array(best)

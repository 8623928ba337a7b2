"""Detection: boxes with a class and a score, and a mask where the detector draws one, whatever detector finds them.

A detector brings its losses and its way from features to detections (`Detector`); the two-stage ones are in `two_stage.py`.

Shape letters: B batch, H W C image, G ground-truth boxes, D detections, M side of a mask, K foreground classes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from imgrec_jax import losses, metrics
from imgrec_jax.detection import masks as mask_ops
from imgrec_jax.detection.boxes import rescale
from imgrec_jax.detection.detections import Detections
from imgrec_jax.detection.targets import GroundTruth
from imgrec_jax.tasks.task import Aux, Task, apply_model, normalise

Terms = dict[str, tuple[jax.Array, jax.Array]]  # {name: (values, valid)}; the mean over valid ones is the loss term


class Detector(NamedTuple):
    """A network and how it is trained and read.

    Attributes:
      model: the network; `terms` and `detect` are called with it bound to its variables.
      init: (rng, images [1, H, W, C]) -> variables.
      terms: (bound model, images, batch, rng, *, train) -> Terms, the elements of every loss.
      detect: (bound model, images, batch, *, train) -> Detections [B, D, ...] in pixels of the resized images.
    """

    model: nn.Module
    init: Callable
    terms: Callable
    detect: Callable


def make_task(*, detector: Detector, mean: Sequence[float], std: Sequence[float], axis_name: str | None = None) -> Task:
    """A detection task; the batch is that of `imgrec_jax/data/batch.py`, with proposals where the network has no RPN.

    Args:
      detector: network, losses, detections.
      mean, std: of the pixels in 0..1, per channel or one for all.
      axis_name: mapped axis under `pmap`.
    """
    model = detector.model

    def init(rng, batch_spec):
        return detector.init(rng, jnp.zeros((1, *batch_spec["image"].shape[1:]), jnp.float32))

    def images_of(batch):
        return zero_padding(normalise(batch["image"], mean, std), batch["image_size"])

    def loss(variables, batch, rng, train):
        args = (images_of(batch), batch, rng)
        dropout = jax.random.fold_in(rng, 2)  # the detector's draws fold in 0 and 1
        terms, state = apply_model(
            model, variables, *args, rng=dropout, train=train, axis_name=axis_name, method=detector.terms
        )
        means = {name: losses.masked_mean(values, valid, axis_name) for name, (values, valid) in terms.items()}
        sums: dict[str, metrics.SumState] = {name: metrics.Sum.of(values, valid) for name, (values, valid) in terms.items()}
        total = sum(means.values())
        whole = total if axis_name is None else jax.lax.psum(total, axis_name)
        examples = jnp.sum(batch["example_valid"], dtype=jnp.float32)
        sums["loss"] = metrics.Sum(whole * examples, examples)
        return total, Aux(state, sums)

    def predict(variables, batch):
        found, _ = apply_model(model, variables, images_of(batch), batch, rng=None, train=False, method=detector.detect)
        original = jax.vmap(rescale)(found.boxes, batch["image_size"], batch["original_size"])
        return {**_present(found), "original_boxes": original}

    def task_metrics(predictions, batch):
        found = {name: predictions.get(name) for name in Detections._fields}
        where = {name: batch[name] for name in ("image_size", "original_size")}
        index = batch["image_index"] if "image_index" in batch else batch["index"]
        return {"detections": CollectedDetections(index, **where, **found, window=batch.get("window"))}

    return Task(init, loss, predict, task_metrics, records=records)


def _present(found: Detections) -> dict[str, jax.Array]:
    return {name: value for name, value in found._asdict().items() if value is not None}


def records(predictions: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Of each row: boxes float64 [n, 4] xyxy in pixels of the original image, scores [n] and labels int32 [n], best first; of a
    detector with masks, masks: n COCO run lengths on the original image.

    The boxes and masks are those that evaluation counts, to the last bit.
    """
    # as in `coco_eval.to_rows`
    ratio = np.asarray(batch["original_size"], np.float64) / np.maximum(batch["image_size"], 1)
    scaled = np.asarray(predictions["boxes"], np.float64) * ratio[:, None, [1, 0, 1, 0]]
    rows = []
    for boxes, scores, labels, valid in zip(
        scaled, *(np.asarray(predictions[name]) for name in ("scores", "labels", "valid")), strict=True
    ):
        rows.append({"boxes": boxes[valid], "scores": scores[valid], "labels": labels[valid]})
    if "masks" in predictions:
        found = [predictions[name] for name in ("masks", "boxes", "valid")]
        found += [batch[name] for name in ("image_size", "original_size")]
        for row, drawn in zip(rows, drawn_in_original(*found), strict=True):
            row["masks"] = drawn
    return rows


def drawn_in_original(masks: Any, boxes: Any, valid: Any, image_size: Any, original_size: Any) -> list[list[dict[str, Any]]]:
    """The valid detections' masks on the original images, as COCO run lengths, of each row.

    [B, D, M, M], [B, D, 4] on resized images, [B, D], [B, 2], [B, 2].
    """
    rows = []
    for drawn, found, there, resized, size in zip(
        *map(np.asarray, (masks, boxes, valid, image_size, original_size)), strict=True
    ):
        placed = mask_ops.in_original(found[there], resized, size)
        pasted = (mask_ops.pasted(mask, box, size) for mask, box in zip(drawn[there], placed, strict=True))
        rows.append([mask_ops.run_lengths(*part_and_start, size) for part_and_start in pasted])
    return rows


@struct.dataclass
class CollectedDetections:
    """The detections of all examples seen, as a metric state: average precision is no mean of anything smaller.

    Merging puts them side by side; `imgrec_jax/detection/coco_eval.py` turns them into numbers. An example that pads a
    batch has none. Masks become run lengths on the original image when they are merged: those of COCO's validation images take
    1.6 GB as they are predicted.
    """

    index: jax.Array  # int32 [B], position in the split
    image_size: jax.Array  # int32 [B, 2]
    original_size: jax.Array  # int32 [B, 2], of the picture or the window
    boxes: jax.Array  # float32 [B, D, 4], pixels of the resized images
    scores: jax.Array  # float32 [B, D]
    labels: jax.Array  # int32 [B, D]
    valid: jax.Array  # bool [B, D]
    masks: Any = None  # float32 [B, D, M, M], or merged: the run lengths of the valid ones, row after row
    window: jax.Array | None = None  # int32 [B, 4], (top, left, height, width) in the picture, where examples are windows

    def merge(self, other: "CollectedDetections") -> "CollectedDetections":
        masks = None if self.masks is None else [*self.run_lengths(), *other.run_lengths()]
        arrays = jax.tree.map(
            lambda a, b: np.concatenate([a, b]), dataclasses.replace(self, masks=None), dataclasses.replace(other, masks=None)
        )
        return dataclasses.replace(arrays, masks=masks)

    def run_lengths(self) -> list[dict[str, Any]]:
        """Of the valid detections, row after row; only where there are masks."""
        if isinstance(self.masks, list):
            return self.masks
        rows = drawn_in_original(self.masks, self.boxes, self.valid, self.image_size, self.original_size)
        return [mask for row in rows for mask in row]

    def across(self, axis_name: str) -> "CollectedDetections":
        return jax.lax.all_gather(self, axis_name, tiled=True)

    def compute(self) -> dict[str, Any]:
        """How many there are."""
        return {"count": int(np.sum(self.valid))}


def zero_padding(images: jax.Array, image_size: jax.Array) -> jax.Array:
    """images [B, H, W, C] with zeros at and beyond each `image_size` [B, 2] = (height, width)."""
    rows = jnp.arange(images.shape[1]) < image_size[:, :1]
    columns = jnp.arange(images.shape[2]) < image_size[:, 1:]
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], images, 0.0)


def ground_truth(batch: dict[str, jax.Array]) -> GroundTruth:
    """The batch's boxes, [B, G, ...]; a padded example has none."""
    valid = batch["box_valid"] & batch["example_valid"][:, None]
    crowd = batch["box_crowd"]
    return GroundTruth(batch["boxes"], batch["box_label"], valid & ~crowd, valid & crowd)

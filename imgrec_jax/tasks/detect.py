"""Detection with two-stage detectors: R-CNN, Fast R-CNN, Faster R-CNN (`imgrec_jax/models/rcnn.py`).

Losses and predictions as torchvision computes them (torchvision/models/detection/{rpn,roi_heads}.py), with static
shapes: proposals, samples and detections have a fixed number of rows and say which of them are valid.

Shape letters: B batch, H W C image, G ground-truth boxes, P proposals, S samples, D detections, K foreground classes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from imgrec_jax import losses, metrics
from imgrec_jax.detection.boxes import rescale
from imgrec_jax.detection.detections import Detections, select_detections
from imgrec_jax.detection.proposals import select_proposals
from imgrec_jax.detection.sampling import sample_balanced
from imgrec_jax.detection.targets import GroundTruth, Sampler, anchor_targets, proposal_targets
from imgrec_jax.models.rcnn import RCNN
from imgrec_jax.models.rpn import RPNOutput
from imgrec_jax.tasks.task import Aux, Task, apply_model, normalise


class Hyper(NamedTuple):
    """Names and defaults of torchvision/models/detection/faster_rcnn.py:183-206; the last three are not in it."""

    rpn_pre_nms_top_n_train: int = 2000
    rpn_pre_nms_top_n_test: int = 1000
    rpn_post_nms_top_n_train: int = 2000
    rpn_post_nms_top_n_test: int = 1000
    rpn_nms_thresh: float = 0.7
    rpn_fg_iou_thresh: float = 0.7
    rpn_bg_iou_thresh: float = 0.3
    rpn_batch_size_per_image: int = 256
    rpn_positive_fraction: float = 0.5
    rpn_score_thresh: float = 0.0
    box_score_thresh: float = 0.05
    box_nms_thresh: float = 0.5
    box_detections_per_img: int = 100
    box_fg_iou_thresh: float = 0.5
    box_bg_iou_thresh: float = 0.5
    box_batch_size_per_image: int = 512
    box_positive_fraction: float = 0.25
    bbox_reg_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    smooth_l1_beta: float = 1 / 9  # rpn.py:320, roi_heads.py:49; detectron2 uses 0
    box_pre_nms_top_n: int = 2000  # candidates that enter the last suppression, see select_detections
    crowd_thresh: float | None = None  # see anchor_targets; torchvision drops crowds from its training set


TORCHVISION = Hyper()


def make_task(
    *,
    model: RCNN,
    mean: Sequence[float],
    std: Sequence[float],
    hyper: Hyper = TORCHVISION,
    sampler: Sampler = sample_balanced,
    axis_name: str | None = None,
) -> Task:
    """A detection task; the batch is that of `imgrec_jax/data/batch.py`, with proposals where `model` has no RPN.

    Args:
      model: the detector.
      mean, std: of the pixels in 0..1, per channel or one for all.
      hyper: thresholds and counts.
      sampler: draws the anchors and proposals of the loss; give a deterministic one to fix the draw.
      axis_name: mapped axis under `pmap`.
    """

    def init(rng, batch_spec):
        images = jnp.zeros((1, *batch_spec["image"].shape[1:]), jnp.float32)
        return model.init(rng, images, jnp.zeros((1, 1, 4)), jnp.ones((1, 1), bool))

    def images_of(batch):
        return zero_padding(normalise(batch["image"], mean, std), batch["image_size"])

    def loss(variables, batch, rng, train):
        rngs = [jax.random.fold_in(rng, i) for i in range(3)]
        args = (images_of(batch), batch, rngs[0], rngs[1], hyper, sampler)
        terms, state = apply_model(model, variables, *args, rng=rngs[2], train=train, axis_name=axis_name, method=loss_terms)
        means = {name: losses.masked_mean(values, valid, axis_name) for name, (values, valid) in terms.items()}
        sums = {name: metrics.Sum.of(values, valid) for name, (values, valid) in terms.items()}
        total = sum(means.values())
        whole = total if axis_name is None else jax.lax.psum(total, axis_name)
        examples = jnp.sum(batch["example_valid"], dtype=jnp.float32)
        sums["loss"] = metrics.Sum(whole * examples, examples)
        return total, Aux(state, sums)

    def predict(variables, batch):
        args = (images_of(batch), batch, hyper)
        found, _ = apply_model(model, variables, *args, rng=None, train=False, method=detect)
        original = jax.vmap(rescale)(found.boxes, batch["image_size"], batch["original_size"])
        return {**found._asdict(), "original_boxes": original}

    def task_metrics(predictions, batch):
        found = {name: predictions[name] for name in Detections._fields}
        where = {name: batch[name] for name in ("index", "image_size", "original_size")}
        return {"detections": CollectedDetections(**where, **found)}

    return Task(init, loss, predict, task_metrics)


@struct.dataclass
class CollectedDetections:
    """The detections of all examples seen, as a metric state: average precision is no mean of anything smaller.

    Merging puts them side by side; `imgrec_jax/detection/coco_eval.py` turns them into numbers. An example that pads a
    batch has none.
    """

    index: jax.Array  # int32 [B], position in the split
    image_size: jax.Array  # int32 [B, 2]
    original_size: jax.Array  # int32 [B, 2]
    boxes: jax.Array  # float32 [B, D, 4], pixels of the resized images
    scores: jax.Array  # float32 [B, D]
    labels: jax.Array  # int32 [B, D]
    valid: jax.Array  # bool [B, D]

    def merge(self, other: "CollectedDetections") -> "CollectedDetections":
        return jax.tree.map(lambda a, b: np.concatenate([a, b]), self, other)

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


Terms = dict[str, tuple[jax.Array, jax.Array]]  # {name: (values, valid)}; the mean over valid ones is the loss term


def loss_terms(
    model: RCNN,
    images: jax.Array,
    batch: dict[str, jax.Array],
    rpn_key: jax.Array,
    box_key: jax.Array,
    hyper: Hyper,
    sampler: Sampler,
    *,
    train: bool,
) -> Terms:
    """The elements of every loss of a bound model; the total is the sum of their means."""
    features = model.features(images, train=train)
    truth = ground_truth(batch)
    terms: Terms = {}
    if model.rpn is None:
        proposals, proposal_valid = batch["proposals"], batch["proposal_valid"]
    else:
        output = model.propose(features, images.shape[1:3])
        terms |= _rpn_terms(output, truth, batch, rpn_key, hyper, sampler)
        top_n = (hyper.rpn_pre_nms_top_n_train, hyper.rpn_post_nms_top_n_train)
        proposals, _, proposal_valid = _select(output, batch["image_size"], top_n, hyper)
    terms |= _box_terms(model, images, features, proposals, proposal_valid, truth, batch, box_key, hyper, sampler, train)
    return terms


def _rpn_terms(
    output: RPNOutput, truth: GroundTruth, batch: dict[str, jax.Array], key: jax.Array, hyper: Hyper, sampler: Sampler
) -> Terms:
    logits, deltas = jnp.concatenate(output.logits, axis=1), jnp.concatenate(output.deltas, axis=1)
    anchors = jnp.concatenate([jnp.asarray(level) for level in output.anchors])

    def targets_of(key, truth):
        return anchor_targets(
            key,
            anchors,
            truth,
            fg_iou_thresh=hyper.rpn_fg_iou_thresh,
            bg_iou_thresh=hyper.rpn_bg_iou_thresh,
            batch_size=hyper.rpn_batch_size_per_image,
            positive_fraction=hyper.rpn_positive_fraction,
            crowd_thresh=hyper.crowd_thresh,
            sampler=sampler,
        )

    targets = jax.vmap(targets_of)(_image_keys(key, batch), truth)
    valid = targets.valid & batch["example_valid"][:, None]
    logits = jnp.take_along_axis(logits, targets.index, axis=1)
    deltas = jnp.take_along_axis(deltas, targets.index[..., None], axis=1)
    objectness = optax.sigmoid_binary_cross_entropy(logits, targets.positive.astype(jnp.float32))
    box = _box_loss(deltas - targets.deltas, targets.positive, hyper.smooth_l1_beta)
    return {"loss_objectness": (objectness, valid), "loss_rpn_box_reg": (box, valid)}


def _box_terms(
    model, images, features, proposals, proposal_valid, truth, batch, key, hyper: Hyper, sampler: Sampler, train: bool
) -> Terms:
    def targets_of(key, proposals, valid, truth):
        return proposal_targets(
            key,
            proposals,
            valid,
            truth,
            fg_iou_thresh=hyper.box_fg_iou_thresh,
            bg_iou_thresh=hyper.box_bg_iou_thresh,
            batch_size=hyper.box_batch_size_per_image,
            positive_fraction=hyper.box_positive_fraction,
            reg_weights=hyper.bbox_reg_weights,
            crowd_thresh=hyper.crowd_thresh,
            sampler=sampler,
        )

    targets = jax.vmap(targets_of)(_image_keys(key, batch), proposals, proposal_valid, truth)
    valid = targets.valid & batch["example_valid"][:, None]
    logits, deltas = model.classify(images, features, targets.rois, valid, train=train)
    deltas = jnp.take_along_axis(deltas, targets.label[..., None, None], axis=2)[:, :, 0]
    box = _box_loss(deltas - targets.deltas, targets.positive, hyper.smooth_l1_beta)
    return {
        "loss_classifier": (losses.softmax_cross_entropy(logits, targets.label), valid),
        "loss_box_reg": (box, valid),
    }


def _image_keys(key: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """A key for each image, whatever its row and its device."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch["index"])


def _box_loss(error: jax.Array, positive: jax.Array, beta: float) -> jax.Array:
    """[B, S, 4] -> [B, S], 0 for negatives: its mean over all samples divides by positives and negatives alike."""
    error = jnp.where(positive[..., None], error, 0.0)
    return jnp.sum(losses.smooth_l1(error, beta), axis=-1)


def _select(output: RPNOutput, image_size: jax.Array, top_n: tuple[int, int], hyper: Hyper) -> Any:
    def one(logits, deltas, image_size):
        return select_proposals(
            logits,
            deltas,
            output.anchors,
            image_size,
            pre_nms_top_n=top_n[0],
            post_nms_top_n=top_n[1],
            nms_thresh=hyper.rpn_nms_thresh,
            score_thresh=hyper.rpn_score_thresh,
        )

    return jax.vmap(one)(output.logits, output.deltas, image_size)


def detect(model: RCNN, images: jax.Array, batch: dict[str, jax.Array], hyper: Hyper, *, train: bool) -> Detections:
    """Detections of a bound model, [B, D, ...] in pixels of the resized images."""
    features = model.features(images, train=train)
    if model.rpn is None:
        proposals, valid = batch["proposals"], batch["proposal_valid"]
    else:
        top_n = (hyper.rpn_pre_nms_top_n_test, hyper.rpn_post_nms_top_n_test)
        proposals, _, valid = _select(model.propose(features, images.shape[1:3]), batch["image_size"], top_n, hyper)
    valid = valid & batch["example_valid"][:, None]
    logits, deltas = model.classify(images, features, proposals, valid, train=train)

    def one(logits, deltas, proposals, valid, image_size):
        return select_detections(
            logits,
            deltas,
            proposals,
            valid,
            image_size,
            reg_weights=hyper.bbox_reg_weights,
            score_thresh=hyper.box_score_thresh,
            nms_thresh=hyper.box_nms_thresh,
            detections_per_img=hyper.box_detections_per_img,
            pre_nms_top_n=hyper.box_pre_nms_top_n,
        )

    return jax.vmap(one)(logits, deltas, proposals, valid, batch["image_size"])

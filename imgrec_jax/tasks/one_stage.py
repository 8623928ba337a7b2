"""Losses and detections of a one-stage detector: RetinaNet (`imgrec_jax/models/retinanet.py`).

As torchvision computes them (torchvision/models/detection/retinanet.py), with static shapes.

Shape letters: B batch, H W C image, N anchors of all levels, D detections, K foreground classes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from imgrec_jax import losses
from imgrec_jax.detection import boxes as box_ops
from imgrec_jax.detection.detections import Detections, select_from_anchors
from imgrec_jax.detection.targets import dense_targets
from imgrec_jax.models.retinanet import RetinaNet
from imgrec_jax.tasks.detect import Detector, Terms, ground_truth


class Settings(NamedTuple):
    """Thresholds and counts; the defaults are those of torchvision/models/detection/retinanet.py and ops/focal_loss.py."""

    fg_iou_thresh: float = 0.5
    bg_iou_thresh: float = 0.4
    score_thresh: float = 0.05
    nms_thresh: float = 0.5
    detections_per_img: int = 300
    topk_candidates: int = 1000
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    crowd_thresh: float | None = None  # see targets.anchor_targets


DEFAULTS = Settings()
OPTIONS: dict[str, Any] = DEFAULTS._asdict()


def settings(**named: Any) -> Settings:
    """Settings by torchvision's names; ValueError for a name that is none."""
    unknown = sorted(set(named) - set(OPTIONS))
    if unknown:
        raise ValueError(f"a one-stage detector takes no {unknown}; it takes {sorted(OPTIONS)}")
    return DEFAULTS._replace(**named)


def make_detector(model: RetinaNet, settings: Settings = DEFAULTS) -> Detector:
    """What `detect.make_task` trains.

    Args:
      model: the network.
      settings: thresholds and counts.
    """

    def init(rng: jax.Array, images: jax.Array) -> dict[str, Any]:
        return dict(model.init(rng, images))

    def terms(model: RetinaNet, images: jax.Array, batch: dict, key: jax.Array, *, train: bool) -> Terms:
        return loss_terms(model, images, batch, settings, train=train)

    def found(model: RetinaNet, images: jax.Array, batch: dict, *, train: bool) -> Detections:
        return detect(model, images, batch, settings, train=train)

    return Detector(model, init, terms, found)


def loss_terms(model: RetinaNet, images: jax.Array, batch: dict[str, jax.Array], settings: Settings, *, train: bool) -> Terms:
    """One value an image of both losses of a bound model: the sum over its anchors, divided by how many are positive."""
    output = model(images, train=train)
    logits, deltas = jnp.concatenate(output.logits, axis=1), jnp.concatenate(output.deltas, axis=1)
    anchors = jnp.concatenate([jnp.asarray(level) for level in output.anchors])

    def one(logits, deltas, truth):
        targets = dense_targets(
            anchors,
            truth,
            fg_iou_thresh=settings.fg_iou_thresh,
            bg_iou_thresh=settings.bg_iou_thresh,
            crowd_thresh=settings.crowd_thresh,
        )
        classes = (targets.label[:, None] == jnp.arange(logits.shape[1])) & targets.positive[:, None]
        focal = losses.sigmoid_focal(logits, classes, settings.focal_alpha, settings.focal_gamma)
        classification = jnp.sum(jnp.where(targets.counts[:, None], focal, 0.0))
        box = _box_loss(model.box_loss, deltas, anchors, targets.boxes, targets.positive)
        positives = jnp.maximum(jnp.sum(targets.positive), 1)
        return classification / positives, jnp.sum(box) / positives

    classification, box = jax.vmap(one)(logits, deltas, ground_truth(batch))
    valid = batch["example_valid"]
    return {"loss_classification": (classification, valid), "loss_bbox_regression": (box, valid)}


def _box_loss(kind: str, deltas: jax.Array, anchors: jax.Array, boxes: jax.Array, positive: jax.Array) -> jax.Array:
    """[N, 4], [N, 4], [N, 4], bool [N] -> float32 [N], 0 where not positive."""
    if kind == "l1":
        error = jnp.where(positive[:, None], deltas - box_ops.encode(boxes, anchors), 0.0)
        return jnp.sum(losses.smooth_l1(error, 0.0), axis=-1)
    # Nothing infinite may enter the gradient: what is not positive is compared with itself.
    deltas = jnp.where(positive[:, None], deltas, 0.0)
    boxes = jnp.where(positive[:, None], boxes, anchors)
    return jnp.where(positive, 1.0 - box_ops.generalized_iou(box_ops.decode(deltas, anchors), boxes), 0.0)


def detect(model: RetinaNet, images: jax.Array, batch: dict[str, jax.Array], settings: Settings, *, train: bool) -> Detections:
    """Detections of a bound model, [B, D, ...] in pixels of the resized images."""
    output = model(images, train=train)

    def one(logits, deltas, image_size, valid):
        found = select_from_anchors(
            logits,
            deltas,
            output.anchors,
            image_size,
            score_thresh=settings.score_thresh,
            nms_thresh=settings.nms_thresh,
            detections_per_img=settings.detections_per_img,
            topk_candidates=settings.topk_candidates,
        )
        return jax.tree.map(lambda x: jnp.where(valid, x, jnp.zeros_like(x)), found)

    return jax.vmap(one)(output.logits, output.deltas, batch["image_size"], batch["example_valid"])

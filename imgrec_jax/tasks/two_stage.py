"""Losses and detections of two-stage detectors: R-CNN, Fast, Faster and Mask R-CNN (`imgrec_jax/models/rcnn.py`).

As torchvision computes them (torchvision/models/detection/{rpn,roi_heads}.py), with static shapes: proposals, samples and
detections have a fixed number of rows and say which of them are valid.

Shape letters: B batch, H W C image, G ground-truth boxes, P proposals, S samples, D detections, M side of a mask,
K foreground classes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from imgrec_jax import losses
from imgrec_jax.detection import masks
from imgrec_jax.detection.detections import Detections, select_detections
from imgrec_jax.detection.proposals import select_proposals
from imgrec_jax.detection.sampling import sample_balanced
from imgrec_jax.detection.targets import GroundTruth, ProposalTargets, Sampler, anchor_targets, proposal_targets
from imgrec_jax.models.rcnn import RCNN
from imgrec_jax.models.rpn import RPNOutput
from imgrec_jax.tasks.detect import Detector, Terms, ground_truth


class ProposalSettings(NamedTuple):
    """Of the region proposal network."""

    pre_nms_top_n_train: int = 2000
    pre_nms_top_n_test: int = 1000
    post_nms_top_n_train: int = 2000
    post_nms_top_n_test: int = 1000
    nms_thresh: float = 0.7
    score_thresh: float = 0.0
    fg_iou_thresh: float = 0.7
    bg_iou_thresh: float = 0.3
    batch_size_per_image: int = 256
    positive_fraction: float = 0.5


class BoxSettings(NamedTuple):
    """Of the samples that train the box head."""

    fg_iou_thresh: float = 0.5
    bg_iou_thresh: float = 0.5
    batch_size_per_image: int = 512
    positive_fraction: float = 0.25


class SelectionSettings(NamedTuple):
    """Of the detections that are kept; see `select_detections`."""

    score_thresh: float = 0.05
    nms_thresh: float = 0.5
    detections_per_img: int = 100
    pre_nms_top_n: int = 2000  # candidates that enter the last suppression; not in torchvision


class Settings(NamedTuple):
    """Thresholds and counts; the defaults are those of torchvision/models/detection/faster_rcnn.py:183-206."""

    rpn: ProposalSettings = ProposalSettings()
    box: BoxSettings = BoxSettings()
    selection: SelectionSettings = SelectionSettings()
    bbox_reg_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    smooth_l1_beta: float = 1 / 9  # rpn.py:320, roi_heads.py:49; detectron2 uses 0
    crowd_thresh: float | None = None  # see anchor_targets; None drops crowds from training, as torchvision does
    mask_batch_size_per_image: int | None = None  # positives that train the mask head; None: all, as in torchvision


DEFAULTS = Settings()

# torchvision's name of each setting -> (part, field); part "" is `Settings` itself.
_PARTS = (("rpn", "rpn_", ProposalSettings), ("box", "box_", BoxSettings), ("selection", "box_", SelectionSettings))
NAMES: dict[str, tuple[str, str]] = {
    **{prefix + field: (part, field) for part, prefix, kind in _PARTS for field in kind._fields},
    **{field: ("", field) for field in Settings._fields if field not in {part for part, *_ in _PARTS}},
}

OPTIONS: dict[str, Any] = {
    name: getattr(getattr(DEFAULTS, part) if part else DEFAULTS, field) for name, (part, field) in NAMES.items()
}


def settings(**named: Any) -> Settings:
    """Settings by torchvision's names, e.g. rpn_nms_thresh=0.6, box_score_thresh=0.1; ValueError for a name that is none."""
    unknown = sorted(set(named) - set(NAMES))
    if unknown:
        raise ValueError(f"a two-stage detector takes no {unknown}; it takes {sorted(NAMES)}")
    made = DEFAULTS
    for name, value in named.items():
        part, field = NAMES[name]
        change = {field: value} if not part else {part: getattr(made, part)._replace(**{field: value})}
        made = made._replace(**change)
    return made


def make_detector(model: RCNN, settings: Settings = DEFAULTS, sampler: Sampler = sample_balanced) -> Detector:
    """What `detect.make_task` trains.

    Args:
      model: the network.
      settings: thresholds and counts.
      sampler: draws the anchors and proposals of the loss; give a deterministic one to fix the draw.
    """

    def init(rng: jax.Array, images: jax.Array) -> dict[str, Any]:
        return dict(model.init(rng, images, jnp.zeros((1, 1, 4)), jnp.ones((1, 1), bool)))

    def terms(model: RCNN, images: jax.Array, batch: dict, key: jax.Array, *, train: bool) -> Terms:
        return loss_terms(
            model, images, batch, jax.random.fold_in(key, 0), jax.random.fold_in(key, 1), settings, sampler, train=train
        )

    def found(model: RCNN, images: jax.Array, batch: dict, *, train: bool) -> Detections:
        return detect(model, images, batch, settings, train=train)

    return Detector(model, init, terms, found)


def loss_terms(
    model: RCNN,
    images: jax.Array,
    batch: dict[str, jax.Array],
    rpn_key: jax.Array,
    box_key: jax.Array,
    settings: Settings,
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
        terms |= _rpn_terms(output, truth, batch, rpn_key, settings, sampler)
        top_n = (settings.rpn.pre_nms_top_n_train, settings.rpn.post_nms_top_n_train)
        proposals, _, proposal_valid = _select(output, batch["image_size"], top_n, settings)
    terms |= _box_terms(model, images, features, proposals, proposal_valid, truth, batch, box_key, settings, sampler, train)
    return terms


def _rpn_terms(
    output: RPNOutput, truth: GroundTruth, batch: dict[str, jax.Array], key: jax.Array, settings: Settings, sampler: Sampler
) -> Terms:
    logits, deltas = jnp.concatenate(output.logits, axis=1), jnp.concatenate(output.deltas, axis=1)
    anchors = jnp.concatenate([jnp.asarray(level) for level in output.anchors])

    def targets_of(key, truth):
        return anchor_targets(
            key,
            anchors,
            truth,
            fg_iou_thresh=settings.rpn.fg_iou_thresh,
            bg_iou_thresh=settings.rpn.bg_iou_thresh,
            batch_size=settings.rpn.batch_size_per_image,
            positive_fraction=settings.rpn.positive_fraction,
            crowd_thresh=settings.crowd_thresh,
            sampler=sampler,
        )

    targets = jax.vmap(targets_of)(_image_keys(key, batch), truth)
    valid = targets.valid & batch["example_valid"][:, None]
    logits = jnp.take_along_axis(logits, targets.index, axis=1)
    deltas = jnp.take_along_axis(deltas, targets.index[..., None], axis=1)
    objectness = optax.sigmoid_binary_cross_entropy(logits, targets.positive.astype(jnp.float32))
    box = _box_loss(deltas - targets.deltas, targets.positive, settings.smooth_l1_beta)
    return {"loss_objectness": (objectness, valid), "loss_rpn_box_reg": (box, valid)}


def _box_terms(
    model, images, features, proposals, proposal_valid, truth, batch, key, settings: Settings, sampler: Sampler, train: bool
) -> Terms:
    def targets_of(key, proposals, valid, truth):
        return proposal_targets(
            key,
            proposals,
            valid,
            truth,
            fg_iou_thresh=settings.box.fg_iou_thresh,
            bg_iou_thresh=settings.box.bg_iou_thresh,
            batch_size=settings.box.batch_size_per_image,
            positive_fraction=settings.box.positive_fraction,
            reg_weights=settings.bbox_reg_weights,
            crowd_thresh=settings.crowd_thresh,
            sampler=sampler,
        )

    targets = jax.vmap(targets_of)(_image_keys(key, batch), proposals, proposal_valid, truth)
    valid = targets.valid & batch["example_valid"][:, None]
    logits, deltas = model.classify(images, features, targets.rois, valid, train=train)
    deltas = jnp.take_along_axis(deltas, targets.label[..., None, None], axis=2)[:, :, 0]
    box = _box_loss(deltas - targets.deltas, targets.positive, settings.smooth_l1_beta)
    terms = {
        "loss_classifier": (losses.softmax_cross_entropy(logits, targets.label), valid),
        "loss_box_reg": (box, valid),
    }
    if not model.has_masks:
        return terms
    most = int(settings.box.batch_size_per_image * settings.box.positive_fraction)
    if settings.mask_batch_size_per_image is not None:
        most = min(most, settings.mask_batch_size_per_image)  # positives come first, in the random order of their draw
    return terms | _mask_terms(model, features, jax.tree.map(lambda x: x[:, :most], targets), batch, train)


def _mask_terms(model: RCNN, features: Any, targets: ProposalTargets, batch: dict[str, jax.Array], train: bool) -> Terms:
    """The loss of the masks of positive proposals of objects that have one: the mean over their pixels."""
    drawn = jnp.any(batch["box_mask"] != 0, axis=(2, 3))
    valid = targets.positive & batch["example_valid"][:, None] & jnp.take_along_axis(drawn, targets.box, axis=1)
    logits = masks.of_classes(model.draw(features, targets.rois, valid, train=train), targets.label)

    def truth_of(bits, box, rois, image_size):
        return masks.crop_masks(bits, box, rois, image_size, logits.shape[-1])

    truth = jax.vmap(truth_of)(batch["box_mask"], targets.box, targets.rois, batch["image_size"])
    values = optax.sigmoid_binary_cross_entropy(logits, truth)
    return {"loss_mask": (jnp.mean(values, axis=(2, 3)), valid)}


def _image_keys(key: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """A key for each image, whatever its row and its device."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch["index"])


def _box_loss(error: jax.Array, positive: jax.Array, beta: float) -> jax.Array:
    """[B, S, 4] -> [B, S], 0 for negatives: its mean over all samples divides by positives and negatives alike."""
    error = jnp.where(positive[..., None], error, 0.0)
    return jnp.sum(losses.smooth_l1(error, beta), axis=-1)


def _select(output: RPNOutput, image_size: jax.Array, top_n: tuple[int, int], settings: Settings) -> Any:
    def one(logits, deltas, image_size):
        return select_proposals(
            logits,
            deltas,
            output.anchors,
            image_size,
            pre_nms_top_n=top_n[0],
            post_nms_top_n=top_n[1],
            nms_thresh=settings.rpn.nms_thresh,
            score_thresh=settings.rpn.score_thresh,
        )

    return jax.vmap(one)(output.logits, output.deltas, image_size)


def detect(model: RCNN, images: jax.Array, batch: dict[str, jax.Array], settings: Settings, *, train: bool) -> Detections:
    """Detections of a bound model, [B, D, ...] in pixels of the resized images."""
    features = model.features(images, train=train)
    if model.rpn is None:
        proposals, valid = batch["proposals"], batch["proposal_valid"]
    else:
        top_n = (settings.rpn.pre_nms_top_n_test, settings.rpn.post_nms_top_n_test)
        proposals, _, valid = _select(model.propose(features, images.shape[1:3]), batch["image_size"], top_n, settings)
    valid = valid & batch["example_valid"][:, None]
    logits, deltas = model.classify(images, features, proposals, valid, train=train)

    def one(logits, deltas, proposals, valid, image_size):
        return select_detections(
            logits,
            deltas,
            proposals,
            valid,
            image_size,
            reg_weights=settings.bbox_reg_weights,
            score_thresh=settings.selection.score_thresh,
            nms_thresh=settings.selection.nms_thresh,
            detections_per_img=settings.selection.detections_per_img,
            pre_nms_top_n=settings.selection.pre_nms_top_n,
        )

    found = jax.vmap(one)(logits, deltas, proposals, valid, batch["image_size"])
    if not model.has_masks:
        return found
    drawn = masks.of_classes(model.draw(features, found.boxes, found.valid, train=train), found.labels)
    return found._replace(masks=jnp.where(found.valid[..., None, None], jax.nn.sigmoid(drawn), 0.0))

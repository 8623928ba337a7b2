"""What a detector should answer: which anchors and proposals enter the loss, and their targets.

Shape letters: N anchors, P proposals, G ground-truth boxes, S samples. One image; `jax.vmap` over the batch.
Follows torchvision/models/detection/rpn.py (assign_targets_to_anchors), roi_heads.py (select_training_samples) and
retinanet.py (compute_loss).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from imgrec_jax.detection import boxes as box_ops
from imgrec_jax.detection.matching import inside_crowd, match
from imgrec_jax.detection.sampling import Samples, sample_balanced

Sampler = Callable[..., Samples]


class GroundTruth(NamedTuple):
    """The boxes of one image. Crowds are not objects to find; they only excuse what lies inside them."""

    boxes: jax.Array  # float32 [G, 4]
    label: jax.Array  # int32 [G], 1..K
    valid: jax.Array  # bool [G], crowds and padding excluded
    crowd: jax.Array  # bool [G], valid crowds


class AnchorTargets(NamedTuple):
    """No gradient passes."""

    index: jax.Array  # type: ignore[assignment]  # int32 [S], into the anchors; the name hides `tuple.index`
    positive: jax.Array  # bool [S]
    valid: jax.Array  # bool [S]
    deltas: jax.Array  # float32 [S, 4]; only those of positives mean something


class ProposalTargets(NamedTuple):
    """No gradient passes."""

    rois: jax.Array  # float32 [S, 4]
    label: jax.Array  # int32 [S], 0 for background
    positive: jax.Array  # bool [S]
    valid: jax.Array  # bool [S]
    deltas: jax.Array  # float32 [S, 4]; only those of positives mean something
    box: jax.Array  # int32 [S], of the ground truth; only those of positives mean something


def anchor_targets(
    key: jax.Array,
    anchors: jax.Array,
    truth: GroundTruth,
    *,
    fg_iou_thresh: float,
    bg_iou_thresh: float,
    batch_size: int,
    positive_fraction: float,
    crowd_thresh: float | None = None,
    sampler: Sampler = sample_balanced,
) -> AnchorTargets:
    """Matches (with low-quality matches) and samples anchors [N, 4]; S = min(batch_size, N).

    Args:
      crowd_thresh: a negative with at least this share of its area in a crowd is left out; None ignores crowds.
      sampler: (key, positive, negative, batch_size, positive_fraction) -> Samples; give another one to fix the draw.
    """
    matches = match(
        box_ops.pairwise_iou(truth.boxes, anchors), truth.valid, fg_iou_thresh, bg_iou_thresh, allow_low_quality=True
    )
    negative = _outside_crowds(matches.negative, anchors, truth, crowd_thresh)
    samples = sampler(key, matches.positive, negative, batch_size, positive_fraction)
    deltas = box_ops.encode(truth.boxes[matches.box[samples.index]], anchors[samples.index])
    return jax.lax.stop_gradient(AnchorTargets(samples.index, samples.positive, samples.valid, deltas))


class DenseTargets(NamedTuple):
    """Of every anchor. No gradient passes."""

    label: jax.Array  # int32 [N], 0 where the anchor is not positive
    positive: jax.Array  # bool [N]
    counts: jax.Array  # bool [N]: positive or negative; the others are left out of the loss
    boxes: jax.Array  # float32 [N, 4]; only those of positives mean something


def dense_targets(
    anchors: jax.Array,
    truth: GroundTruth,
    *,
    fg_iou_thresh: float,
    bg_iou_thresh: float,
    crowd_thresh: float | None = None,
) -> DenseTargets:
    """Matches (with low-quality matches) all anchors [N, 4], without sampling. Args: as `anchor_targets`."""
    matches = match(
        box_ops.pairwise_iou(truth.boxes, anchors), truth.valid, fg_iou_thresh, bg_iou_thresh, allow_low_quality=True
    )
    negative = _outside_crowds(matches.negative, anchors, truth, crowd_thresh)
    label = jnp.where(matches.positive, truth.label[matches.box], 0)
    return jax.lax.stop_gradient(DenseTargets(label, matches.positive, matches.positive | negative, truth.boxes[matches.box]))


def proposal_targets(
    key: jax.Array,
    proposals: jax.Array,
    proposal_valid: jax.Array,
    truth: GroundTruth,
    *,
    fg_iou_thresh: float,
    bg_iou_thresh: float,
    batch_size: int,
    positive_fraction: float,
    reg_weights: tuple[float, ...],
    crowd_thresh: float | None = None,
    sampler: Sampler = sample_balanced,
) -> ProposalTargets:
    """Adds the ground truth to proposals [P, 4], matches and samples; S = min(batch_size, P + G).

    Args: as `anchor_targets`; `reg_weights` are the box coder's.
    """
    candidates = jnp.concatenate([proposals, truth.boxes])
    exists = jnp.concatenate([proposal_valid, truth.valid])
    matches = match(box_ops.pairwise_iou(truth.boxes, candidates), truth.valid, fg_iou_thresh, bg_iou_thresh)
    negative = _outside_crowds(matches.negative & exists, candidates, truth, crowd_thresh)
    samples = sampler(key, matches.positive & exists, negative, batch_size, positive_fraction)
    rois, box = candidates[samples.index], matches.box[samples.index]
    label = jnp.where(samples.positive, truth.label[box], 0)
    deltas = box_ops.encode(truth.boxes[box], rois, reg_weights)
    return jax.lax.stop_gradient(ProposalTargets(rois, label, samples.positive, samples.valid, deltas, box))


def _outside_crowds(negative: jax.Array, anchors: jax.Array, truth: GroundTruth, thresh: float | None) -> jax.Array:
    if thresh is None:
        return negative
    return negative & ~inside_crowd(anchors, truth.boxes, truth.crowd, thresh)

"""From class logits and box deltas, of proposals or of anchors, to detections, with static shapes.

Shape letters: P proposals, N anchors of one level, K foreground classes, D detections. One image; `jax.vmap` over the batch.
Follows torchvision/models/detection/roi_heads.py and retinanet.py (postprocess_detections).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imgrec_jax.detection import boxes as box_ops
from imgrec_jax.detection.nms import nms, top_scores

MIN_SIZE = 1e-2  # pixels; torchvision/models/detection/roi_heads.py:722


class Detections(NamedTuple):
    """Best first; the valid ones come before the others, which hold zeros."""

    boxes: jax.Array  # float32 [D, 4], pixels of the resized image
    scores: jax.Array  # float32 [D], probability of the class
    labels: jax.Array  # int32 [D], 1..K; 0 where not valid
    valid: jax.Array  # bool [D]
    masks: jax.Array | None = None  # float32 [D, M, M], probabilities within the box; None of a detector without masks


def select_detections(
    logits: jax.Array,
    deltas: jax.Array,
    proposals: jax.Array,
    proposal_valid: jax.Array,
    image_size: jax.Array,
    *,
    reg_weights: tuple[float, ...],
    score_thresh: float,
    nms_thresh: float,
    detections_per_img: int,
    pre_nms_top_n: int,
) -> Detections:
    """Softmax, one candidate per proposal and class, suppression within each class, the best over all classes.

    Args:
      logits: [P, K + 1].
      deltas: [P, K + 1, 4].
      proposals, proposal_valid: [P, 4], bool [P].
      image_size: int [2], (height, width) without padding; boxes are clipped to it.
      reg_weights: of the box coder.
      score_thresh: candidates need a greater probability.
      nms_thresh: IoU above which the lower of two boxes of a class goes.
      detections_per_img: D.
      pre_nms_top_n: candidates of highest probability that enter suppression, over all classes. torchvision lets all
        enter; the result is the same whenever D of these survive, or no more than these pass `score_thresh`.
    """
    classes = logits.shape[1] - 1
    probs = jax.nn.softmax(logits)[:, 1:]
    wanted = (probs > score_thresh) & proposal_valid[:, None]
    index, valid = top_scores(probs.ravel(), wanted.ravel(), pre_nms_top_n)
    proposal, label = index // classes, index % classes + 1
    scores = probs.ravel()[index]
    boxes = box_ops.clip(box_ops.decode(deltas[proposal, label], proposals[proposal], reg_weights), image_size)
    valid &= box_ops.at_least(boxes, MIN_SIZE)
    return _suppressed(boxes, scores, label, valid, nms_thresh, detections_per_img)


def select_from_anchors(
    logits: Sequence[jax.Array],
    deltas: Sequence[jax.Array],
    anchors: Sequence[jax.Array | np.ndarray],
    image_size: jax.Array,
    *,
    score_thresh: float,
    nms_thresh: float,
    detections_per_img: int,
    topk_candidates: int,
) -> Detections:
    """Sigmoid, the best candidates (an anchor and a class) of each level, suppression within each class over all levels.

    Args:
      logits: a level each, [N, K + 1]; class 0, the background, is none.
      deltas, anchors: a level each, [N, 4].
      image_size: int [2], (height, width) without padding; boxes are clipped to it.
      score_thresh: candidates need a greater probability.
      nms_thresh: IoU above which the lower of two boxes of a class goes.
      detections_per_img: D.
      topk_candidates: of each level.
    """
    levels = []
    for level_logits, level_deltas, level_anchors in zip(logits, deltas, anchors, strict=True):
        classes = level_logits.shape[1]
        probs = jax.nn.sigmoid(level_logits)
        wanted = (probs > score_thresh) & (jnp.arange(classes) > 0)
        index, valid = top_scores(probs.ravel(), wanted.ravel(), topk_candidates)
        anchor = index // classes
        boxes = box_ops.decode(level_deltas[anchor], jnp.asarray(level_anchors)[anchor])
        levels.append((box_ops.clip(boxes, image_size), probs.ravel()[index], index % classes, valid))
    boxes, scores, label, valid = (jnp.concatenate(parts) for parts in zip(*levels, strict=True))
    return _suppressed(boxes, scores, label, valid, nms_thresh, detections_per_img)


def _suppressed(
    boxes: jax.Array, scores: jax.Array, label: jax.Array, valid: jax.Array, nms_thresh: float, detections_per_img: int
) -> Detections:
    best, found = top_scores(scores, nms(boxes, scores, valid, nms_thresh, label), detections_per_img)
    # A small canvas may have fewer candidates: rows are added, for a set's detections are put together whatever their canvas.
    best, found = (jnp.pad(x, (0, detections_per_img - x.shape[0])) for x in (best, found))
    return Detections(
        boxes=jnp.where(found[:, None], boxes[best], 0.0),
        scores=jnp.where(found, scores[best], 0.0),
        labels=jnp.where(found, label[best], 0),
        valid=found,
    )

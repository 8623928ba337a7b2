"""From the outputs of a region proposal network to proposals, with static shapes.

Shape letters: L levels, N anchors of one level, P proposals. One image; `jax.vmap` over the batch.
Follows torchvision/models/detection/rpn.py (filter_proposals).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imgrec_jax.detection import boxes as box_ops
from imgrec_jax.detection.nms import nms, top_scores

MIN_SIZE = 1e-3  # pixels; torchvision/models/detection/rpn.py:181


class Proposals(NamedTuple):
    """Best first; the valid ones come before the others. None of it carries a gradient."""

    boxes: jax.Array  # float32 [P, 4]
    scores: jax.Array  # float32 [P], probability of holding an object
    valid: jax.Array  # bool [P]


def select_proposals(
    logits: Sequence[jax.Array],
    deltas: Sequence[jax.Array],
    anchors: Sequence[jax.Array | np.ndarray],
    image_size: jax.Array,
    *,
    pre_nms_top_n: int,
    post_nms_top_n: int,
    nms_thresh: float,
    score_thresh: float = 0.0,
) -> Proposals:
    """The best boxes of every level after suppression within the level, then the best over all levels.

    Args:
      logits: L arrays [N]; the levels may differ in N.
      deltas: L arrays [N, 4].
      anchors: L arrays [N, 4].
      image_size: int [2], (height, width) without padding; proposals are clipped to it.
      pre_nms_top_n: boxes of each level that enter suppression.
      post_nms_top_n: boxes kept over all levels; P is this or the number of boxes that entered, whichever is less.
      nms_thresh: IoU above which the lower of two boxes of a level goes.
      score_thresh: smallest probability kept.
    """
    levels = []
    for level_logits, level_deltas, level_anchors in zip(logits, deltas, anchors, strict=True):
        level_logits, level_deltas = jax.lax.stop_gradient((level_logits.astype(jnp.float32), level_deltas))
        best, index = jax.lax.top_k(level_logits, min(pre_nms_top_n, level_logits.shape[0]))
        boxes = box_ops.clip(box_ops.decode(level_deltas[index], jnp.asarray(level_anchors)[index]), image_size)
        scores = jax.nn.sigmoid(best)
        valid = box_ops.at_least(boxes, MIN_SIZE) & (scores >= score_thresh)
        levels.append((boxes, scores, nms(boxes, scores, valid, nms_thresh)))
    boxes, scores, kept = (jnp.concatenate(parts) for parts in zip(*levels, strict=True))
    index, valid = top_scores(scores, kept, post_nms_top_n)
    return Proposals(boxes[index], jnp.where(valid, scores[index], 0.0), valid)

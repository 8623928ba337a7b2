"""Which ground-truth box each anchor (or proposal) answers for.

Shape letters: G ground-truth boxes, N anchors. One image; `jax.vmap` over the batch.
The rules are those of torchvision/models/detection/_utils.py (Matcher), made safe for padded boxes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from imgrec_jax.detection.boxes import pairwise_overlap_of_first


class Matches(NamedTuple):
    """An anchor that is neither positive nor negative is left out of the loss."""

    box: jax.Array  # int32 [N]: the valid ground-truth box of largest IoU, the first one of equals
    positive: jax.Array  # bool [N]
    negative: jax.Array  # bool [N]


def match(
    iou: jax.Array,
    box_valid: jax.Array,
    fg_threshold: float,
    bg_threshold: float,
    allow_low_quality: bool = False,
) -> Matches:
    """Matches by IoU: positive at `fg_threshold` or above, negative below `bg_threshold`.

    Args:
      iou: [G, N].
      box_valid: bool [G]; boxes that are not valid are as if absent. Without any valid box all anchors are negative.
      allow_low_quality: an anchor that reaches the largest IoU of any box is positive too, ties included. It answers
        for the box that it overlaps most itself, which need not be the one that made it positive. A box that no
        anchor overlaps makes none positive.
    """
    iou = jnp.where(box_valid[:, None], iou, 0.0)
    best = jnp.max(iou, axis=0)
    # An invalid box may only win an argmax when all IoUs are 0; -1 keeps it out even then.
    box = jnp.argmax(jnp.where(box_valid[:, None], iou, -1.0), axis=0).astype(jnp.int32)
    any_valid = jnp.any(box_valid)
    positive = (best >= fg_threshold) & any_valid
    negative = (best < bg_threshold) | ~any_valid
    if allow_low_quality:
        best_of_box = jnp.max(iou, axis=1, keepdims=True)
        reached = jnp.any((iou == best_of_box) & (iou > 0), axis=0)
        positive = positive | reached
        negative = negative & ~reached
    return Matches(box, positive, negative)


def inside_crowd(anchors: jax.Array, boxes: jax.Array, crowd: jax.Array, threshold: float) -> jax.Array:
    """bool [N]: at least `threshold` of the anchor's area lies in one crowd region.

    Such an anchor may show an object that nobody annotated, so it should not be a negative example (Detectron's
    TRAIN.CROWD_FILTER_THRESH is 0.7).

    Args:
      anchors: [N, 4].
      boxes: [G, 4].
      crowd: bool [G], True where the box is valid and marks a crowd.
    """
    overlap = pairwise_overlap_of_first(anchors, boxes)
    return jnp.any((overlap >= threshold) & crowd, axis=1)

"""Boxes: areas, overlaps, clipping and the R-CNN box coder.

A box is float32 (x1, y1, x2, y2) in absolute pixels; its width is x2 - x1, without the +1 of the first R-CNN code.
Everything is for one image; the batch is `jax.vmap` at the call.

Shape letters: N, M boxes. The numbers follow torchvision/ops/boxes.py and torchvision/models/detection/_utils.py.
"""

import math

import jax
import jax.numpy as jnp

# A decoded box is at most this factor larger than its anchor, so that exp() cannot overflow early in training.
MAX_LOG_SCALE = math.log(1000.0 / 16.0)
GIOU_EPS = 1e-7  # square pixels; torchvision/ops/giou_loss.py:12


def area(boxes: jax.Array) -> jax.Array:
    """[..., 4] -> [...], square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _intersection(a: jax.Array, b: jax.Array) -> jax.Array:
    """[..., 4] and [..., 4], broadcast against each other -> [...]."""
    width = jnp.maximum(jnp.minimum(a[..., 2], b[..., 2]) - jnp.maximum(a[..., 0], b[..., 0]), 0.0)
    height = jnp.maximum(jnp.minimum(a[..., 3], b[..., 3]) - jnp.maximum(a[..., 1], b[..., 1]), 0.0)
    return width * height


def _pairwise_intersection(a: jax.Array, b: jax.Array) -> jax.Array:
    return _intersection(a[:, None], b[None, :])


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """numerator / denominator, and 0 (with zero gradient) where the denominator is not positive."""
    positive = denominator > 0
    return jnp.where(positive, numerator, 0.0) / jnp.where(positive, denominator, 1.0)


def pairwise_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union, [N, 4], [M, 4] -> [N, M]; two boxes without area have 0."""
    intersection = _pairwise_intersection(a, b)
    return _ratio(intersection, area(a)[:, None] + area(b)[None, :] - intersection)


def pairwise_overlap_of_first(a: jax.Array, b: jax.Array) -> jax.Array:
    """Share of each box of `a` that lies inside each box of `b`, [N, 4], [M, 4] -> [N, M] (COCO's crowd overlap)."""
    return _ratio(_pairwise_intersection(a, b), area(a)[:, None])


def generalized_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """IoU less the share of the smallest box around both that neither covers, -1..1; [..., 4], [..., 4] -> [...].

    Rezatofighi et al. 2019, arXiv 1902.09630; differentiable in both, as torchvision/ops/giou_loss.py computes it.
    """
    around = jnp.concatenate([jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])], axis=-1)
    intersection = _intersection(a, b)
    union = area(a) + area(b) - intersection
    return intersection / (union + GIOU_EPS) - (area(around) - union) / (area(around) + GIOU_EPS)


def clip(boxes: jax.Array, image_size: jax.Array) -> jax.Array:
    """Boxes [..., 4] cut at the borders of an image of `image_size` = (height, width), not counting any padding."""
    height, width = image_size[0], image_size[1]
    return jnp.clip(boxes, 0, jnp.stack([width, height, width, height]).astype(boxes.dtype))


def at_least(boxes: jax.Array, min_size: float) -> jax.Array:
    """[..., 4] -> bool [...]: both sides are `min_size` pixels or more."""
    return (boxes[..., 2] - boxes[..., 0] >= min_size) & (boxes[..., 3] - boxes[..., 1] >= min_size)


def rescale(boxes: jax.Array, from_size: jax.Array, to_size: jax.Array) -> jax.Array:
    """Boxes [..., 4] of an image of `from_size` (h, w) in pixels of the same image resized to `to_size` (h, w)."""
    factor = to_size.astype(jnp.float32) / from_size.astype(jnp.float32)
    return boxes * jnp.stack([factor[1], factor[0], factor[1], factor[0]])


def _centre_size(boxes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    width = boxes[..., 2] - boxes[..., 0]
    height = boxes[..., 3] - boxes[..., 1]
    return boxes[..., 0] + 0.5 * width, boxes[..., 1] + 0.5 * height, width, height


def encode(boxes: jax.Array, anchors: jax.Array, weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)) -> jax.Array:
    """The regression targets (dx, dy, dw, dh) that turn `anchors` into `boxes`; [..., 4], [..., 4] -> [..., 4].

    A side without length (padding) counts as 1 pixel, so that targets and gradients stay finite; mask them afterwards.
    """
    x, y, width, height = _centre_size(boxes)
    anchor_x, anchor_y, anchor_width, anchor_height = _centre_size(anchors)
    sides = (width, height, anchor_width, anchor_height)
    width, height, anchor_width, anchor_height = (jnp.where(side > 0, side, 1.0) for side in sides)
    deltas = (
        (x - anchor_x) / anchor_width,
        (y - anchor_y) / anchor_height,
        jnp.log(width / anchor_width),
        jnp.log(height / anchor_height),
    )
    return jnp.stack(deltas, axis=-1) * jnp.asarray(weights, boxes.dtype)


def decode(deltas: jax.Array, anchors: jax.Array, weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)) -> jax.Array:
    """Inverse of `encode` in float32; deltas [..., 4] and anchors [..., 4] broadcast against each other."""
    deltas = deltas.astype(jnp.float32) / jnp.asarray(weights, jnp.float32)
    anchor_x, anchor_y, anchor_width, anchor_height = _centre_size(anchors)
    x = deltas[..., 0] * anchor_width + anchor_x
    y = deltas[..., 1] * anchor_height + anchor_y
    half_width = 0.5 * jnp.exp(jnp.minimum(deltas[..., 2], MAX_LOG_SCALE)) * anchor_width
    half_height = 0.5 * jnp.exp(jnp.minimum(deltas[..., 3], MAX_LOG_SCALE)) * anchor_height
    return jnp.stack([x - half_width, y - half_height, x + half_width, y + half_height], axis=-1)

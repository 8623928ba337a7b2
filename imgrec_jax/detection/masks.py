"""Masks of objects: the truth cropped to a proposal, and predicted ones put back into the image.

The truth is bits, uint8 [..., H, ceil(W / 8)] with the first of eight columns in the highest bit (`imgrec_jax/data/batch.py`).

Shape letters: H W image, G ground-truth boxes, S samples, D detections, M side of a mask's square.
Follows torchvision/models/detection/roi_heads.py (project_masks_on_boxes, paste_masks_in_image).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

AT_ONCE = 8  # masks that are whole pixels at the same time: 35 MB at 800 x 1344
PADDING = 1  # cells around a mask when it is put back; roi_heads.py:471


def unpack(bits: jax.Array) -> jax.Array:
    """uint8 [..., w] -> float32 [..., 8 * w], 0 or 1."""
    shifts = jnp.arange(7, -1, -1, dtype=jnp.uint8)
    values = (bits[..., None] >> shifts) & 1
    return values.reshape(*bits.shape[:-1], -1).astype(jnp.float32)


def crop_masks(bits: jax.Array, index: jax.Array, rois: jax.Array, image_size: jax.Array, side: int) -> jax.Array:
    """The share of each cell of each RoI that its object covers: RoIAlign of the object's mask, [S, side, side] float32.

    As torchvision's roi_align with sampling_ratio=-1: a bin takes one sample for each pixel that it is long, or begun one. The
    weights of a row of bins are one product with the mask, those of its columns another: no shape depends on an RoI.

    Args:
      bits: uint8 [G, H, ceil(W / 8)].
      index: int [S], the object of each RoI.
      rois: float32 [S, 4], in pixels of the image.
      image_size: int [2], (height, width) without padding; samples more than a pixel outside it count as 0.
    """
    rois = jax.lax.stop_gradient(rois)
    height, width = bits.shape[1], 8 * bits.shape[2]

    def one(each: tuple[jax.Array, jax.Array]) -> jax.Array:
        n, (x1, y1, x2, y2) = each
        rows = _bin_weights(y1, jnp.maximum(y2 - y1, 1.0), image_size[0], side, height)
        columns = _bin_weights(x1, jnp.maximum(x2 - x1, 1.0), image_size[1], side, width)
        return jnp.einsum("ph,hw,qw->pq", rows, unpack(bits[n]), columns, precision=jax.lax.Precision.HIGHEST)

    return jax.lax.map(one, (index, rois), batch_size=min(AT_ONCE, rois.shape[0]))


def _bin_weights(start: jax.Array, size: jax.Array, length: jax.Array, bins: int, cells: int) -> jax.Array:
    """What each of `cells` pixels of an axis counts in each bin, float32 [bins, cells]; see `roi_align._axis_samples`."""
    bin_size = size / bins
    # ceil(size / bins) of the exact quotient: XLA multiplies by a rounded 1 / bins, and 84 / 28 comes out above 3.
    whole = jnp.floor(bin_size)
    count = whole + (whole * bins < size) + ((whole + 1) * bins < size)  # samples of a bin
    sample = jnp.arange(-(-cells // bins))  # as many as the longest RoI needs
    position = start + jnp.arange(bins)[:, None] * bin_size + (sample + 0.5) * bin_size / count
    counts = (sample < count) & (position >= -1.0) & (position <= length)
    position = jnp.clip(position, 0.0, length - 1.0)
    hat = jnp.maximum(1.0 - jnp.abs(position[..., None] - jnp.arange(cells)), 0.0)
    return jnp.sum(jnp.where(counts[..., None], hat, 0.0), axis=1) / count


def of_classes(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mask logits [..., h, w, K + 1] of classes int [...] -> [..., h, w]."""
    return jnp.take_along_axis(logits, labels[..., None, None, None].astype(jnp.int32), axis=-1)[..., 0]


def in_original(boxes: np.ndarray, image_size: np.ndarray, original_size: np.ndarray) -> np.ndarray:
    """Boxes [D, 4] of an image resized to `image_size` in pixels of the original, in float32 as masks are put there."""
    ratio = np.asarray(original_size, np.float32) / np.maximum(image_size, 1).astype(np.float32)  # 0 x 0 of padding
    return np.asarray(boxes, np.float32) * ratio[[1, 0, 1, 0]]


def paste(mask: np.ndarray, box: np.ndarray, size: Sequence[int], threshold: float = 0.5) -> np.ndarray:
    """The whole image of `pasted`, bool [H, W]."""
    part, (top, left) = pasted(mask, box, size, threshold)
    whole = np.zeros((int(size[0]), int(size[1])), np.bool_)
    whole[top : top + part.shape[0], left : left + part.shape[1]] = part
    return whole


def pasted(
    mask: np.ndarray, box: np.ndarray, size: Sequence[int], threshold: float = 0.5
) -> tuple[np.ndarray, tuple[int, int]]:
    """Where a mask of probabilities [M, M] is more than `threshold` once it fills its box.

    Args:
      box: float32 [4] xyxy, in pixels of the image.
      size: (H, W) of the image.

    Returns:
      (bool [h, w], the part of the image that the box covers; its (top, left)). Nothing is set beyond it.
    """
    side, (height, width) = mask.shape[0], map(int, size)
    scale = np.float32((side + 2 * PADDING) / side)
    box = np.asarray(box, np.float32)
    half, centre = (box[2:] - box[:2]) * np.float32(0.5) * scale, (box[2:] + box[:2]) * np.float32(0.5)
    x1, y1, x2, y2 = np.trunc(np.concatenate([centre - half, centre + half])).astype(int).tolist()
    left, right, top, bottom = max(x1, 0), min(x2 + 1, width), max(y1, 0), min(y2 + 1, height)
    if left >= right or top >= bottom:
        return np.zeros((0, 0), np.bool_), (0, 0)
    padded = np.pad(np.asarray(mask, np.float32), PADDING)
    rows = _linear(len(padded), max(y2 - y1 + 1, 1))[top - y1 : bottom - y1]
    columns = _linear(len(padded), max(x2 - x1 + 1, 1))[left - x1 : right - x1]
    return rows @ padded @ columns.T > threshold, (top, left)


def _linear(old: int, new: int) -> np.ndarray:
    """The weights of linear interpolation from `old` to `new` values, float32 [new, old]; centres at half-integers."""
    position = np.maximum((np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new) - np.float32(0.5), 0)
    low = np.minimum(position.astype(np.int64), old - 1)
    fraction = position - low
    weights = np.zeros((new, old), np.float32)
    np.add.at(weights, (np.arange(new), low), 1 - fraction)
    np.add.at(weights, (np.arange(new), np.minimum(low + 1, old - 1)), fraction)
    return weights


def run_lengths(part: np.ndarray, start: tuple[int, int] = (0, 0), size: Sequence[int] | None = None) -> dict:
    """COCO's compressed run lengths {"size": [H, W], "counts": text}, as files have them.

    Only the part is looked at: of a photo of 12 megapixels a hundred masks are encoded in the time of their boxes.

    Args:
      part: bool [h, w].
      start: its (top, left) in the image.
      size: (H, W) of the image; the part's own by default.
    """
    from pycocotools import mask as coco_mask

    height, width = map(int, part.shape if size is None else size)
    columns = np.zeros((part.shape[1], part.shape[0] + 2), np.int8)
    columns[:, 1:-1] = part.T
    change = np.diff(columns)
    first, after = ((start[1] + x) * height + start[0] + y for x, y in (np.nonzero(change > 0), np.nonzero(change < 0)))
    apart = first[1:] != after[:-1]  # a run that reaches the bottom goes on at the top of the next column
    first, after = first[np.r_[True, apart][: len(first)]], after[np.r_[apart, True][: len(after)]]
    edges = np.concatenate([[0], np.stack([first, after], axis=1).ravel(), [height * width]])
    counts = np.diff(edges)
    counts = counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts
    coded = coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": coded["counts"].decode()}


def of_run_lengths(lengths: dict) -> np.ndarray:
    """What `run_lengths` made -> bool [H, W]."""
    from pycocotools import mask as coco_mask

    return coco_mask.decode(lengths).astype(np.bool_)

"""From examples of segmentation to a batch: targets from instances, and the collate step.

Keys of an example as in `geometry_ops`, and besides instances int32 [H, W] (0 where there is none, n on the n-th object) and
pixel_weight float32 [H, W]. Shape letters: H W image, N instances.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from imgrec_jax.data.batch import Batch, stack
from imgrec_jax.data.geometry_ops import Example, Op, Size, crop_and_resize, warp_example

KEYS = ("image", "segmentation", "pixel_valid", "pixel_weight", "instances")


def border_weights(instances: np.ndarray, *, w0: float = 10.0, sigma: float = 5.0) -> np.ndarray:
    """The separating weights of U-Net (Ronneberger et al. 2015, arXiv 1505.04597, equation 2) without its class weights w_c.

    1 + w0 exp(-(d1 + d2)^2 / (2 sigma^2)) on background pixels, with d1 and d2 the distances to the nearest and the second
    nearest object; 1 on objects and where there are fewer than two.

    Args:
      instances: int [H, W], 0 is background.
      w0: the largest added weight.
      sigma: in pixels.

    Returns:
      float32 [H, W].
    """
    weights = np.ones(instances.shape, np.float32)
    ids = np.unique(instances)
    ids = ids[ids > 0]
    reach = int(np.ceil(4 * sigma))  # beyond it the weight is below w0 e^-8
    nearest = np.full((2, *instances.shape), np.inf, np.float32)
    for number in ids:
        mask = instances == number
        x, y, w, h = cv2.boundingRect(mask.view(np.uint8))
        window = np.s_[max(y - reach, 0) : y + h + reach, max(x - reach, 0) : x + w + reach]
        outside = np.ascontiguousarray(~mask[window]).view(np.uint8)
        distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        first, second = nearest[0][window], nearest[1][window]
        np.minimum(second, np.maximum(first, distance), out=second)
        np.minimum(first, distance, out=first)
    background = instances == 0
    total = nearest[0][background] + nearest[1][background]
    weights[background] += w0 * np.exp(-(total**2) / (2 * sigma**2))
    return weights


def touching(instances: np.ndarray) -> np.ndarray:
    """Bool [H, W]: object pixels with a pixel of another object among their eight neighbours."""
    values = instances.astype(np.float32)
    highest = cv2.dilate(values, np.ones((3, 3), np.uint8))
    lowest = -cv2.dilate(np.where(values > 0, -values, -np.inf).astype(np.float32), np.ones((3, 3), np.uint8))
    return (instances > 0) & (highest != lowest)


def instance_targets(*, separate: bool = True, w0: float = 0.0, sigma: float = 5.0) -> Op:
    """Training targets from instances, which are then left out: separated objects, and the U-Net's border weights.

    Args:
      separate: pixels where objects touch become background, so that components of a prediction can be single objects (the
        paper inserts such borders by morphology).
      w0, sigma: of `border_weights`; w0 = 0 gives no weights.
    """

    def op(example: Example, rng: np.random.Generator) -> Example:
        if "instances" not in example:
            raise ValueError("data.train_ops.instance_targets needs instances, and this data set has none; remove it")
        instances = example["instances"]
        if separate:
            instances = np.where(touching(instances), 0, instances)
        out = {key: value for key, value in example.items() if key != "instances"}
        out["segmentation"] = np.where(instances > 0, example["segmentation"], 0)
        if w0:
            out["pixel_weight"] = border_weights(instances, w0=w0, sigma=sigma)
        return out

    return op


def foreground_crop(*, size: Size, probability: float = 0.5, candidates: int = 1) -> Op:
    """A random crop by whole pixels that with some probability holds a pixel that is not background.

    Where objects are few, training sees more of them (Isensee et al. 2021, nnU-Net, oversamples foreground alike). Images
    that are smaller are mirrored first, void.

    Args:
      size: (H, W).
      probability: of choosing a valid pixel of class 1 or more, if there is one, and a crop that holds it; otherwise any crop.
      candidates: so many crops that hold the pixel are drawn, and the one with the most foreground is taken.

    Raises:
      ValueError: no candidates.
    """
    if candidates < 1:
        raise ValueError(f"data.train_ops.foreground_crop: candidates={candidates}; expected 1 or more")

    def op(example: Example, rng: np.random.Generator) -> Example:
        example = _padded(example, np.maximum(size, example["image"].shape[:2]))
        room = np.array(example["image"].shape[:2]) - size
        start = rng.integers(0, room + 1)
        if rng.random() < probability:
            foreground = (example["segmentation"] > 0) & example["pixel_valid"]
            places = np.flatnonzero(foreground)
            if places.size:
                pixel = np.array(np.divmod(places[rng.integers(places.size)], example["image"].shape[1]))
                first, last = np.clip(pixel - size + 1, 0, room), np.clip(pixel, 0, room)
                starts = rng.integers(first, last + 1, (candidates, 2))
                start = max(starts, key=lambda yx: np.count_nonzero(foreground[yx[0] :, yx[1] :][: size[0], : size[1]]))
        window = tuple(slice(first, first + length) for first, length in zip(start, size, strict=True))
        return {**example, **{key: example[key][window] for key in KEYS if key in example}}

    return op


def resize_shorter(length: int) -> Op:
    """Brings the shorter side to `length` pixels; the other keeps the ratio, rounded down as torchvision does."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        height, width = example["image"].shape[:2]
        size = tuple(length * side // min(height, width) for side in (height, width))
        return warp_example(example, crop_and_resize((0, 0, width, height), size), size)

    return op


def collate(*, multiple: int = 1, size: Size | None = None) -> Callable[[Sequence[Example]], Batch]:
    """Makes the step from examples of any size to a batch of one size, padded at the bottom and right.

    The padding of images mirrors them; it is void (pixel_valid is False there) and has weight and instance 0.

    Args:
      multiple: sides are rounded up to multiples of it, for the strides of a network.
      size: (H, W) of every batch; None takes the largest of each batch, and as many shapes are compiled as there are sizes.

    Returns:
      examples -> batch of the `KEYS` that they have.
    """

    def op(examples: Sequence[Example]) -> Batch:
        largest = np.max([example["image"].shape[:2] for example in examples], axis=0)
        if size is not None and np.any(largest > size):
            given = tuple(largest.tolist())
            raise ValueError(f"an image of (height, width) {given} does not fit data.pad_to={size}; crop or resize it")
        target = [-(-int(n) // multiple) * multiple for n in (largest if size is None else size)]
        padded = [_padded(example, target) for example in examples]
        return stack([{key: example[key] for key in KEYS if key in example} for example in padded])

    return op


def _padded(example: Example, size: Sequence[int]) -> Example:
    """The example with image, maps and pixel_valid, of the types of a batch, mirrored and void up to `size`."""
    height, width = example["image"].shape[:2]
    out = {"pixel_valid": np.ones((height, width), np.bool_), **example}  # a set without void pixels has no pixel_valid
    for key in ("segmentation", "instances"):
        if key in out:
            out[key] = out[key].astype(np.int32)
    pad = ((0, int(size[0]) - height), (0, int(size[1]) - width))
    if pad != ((0, 0), (0, 0)):
        out |= {key: np.pad(out[key], pad) for key in KEYS[1:] if key in out}
        out["image"] = np.pad(out["image"], (*pad, (0, 0)), mode="reflect")
    return out

"""Crops and resizes of segmentation examples. Keys of an example as in `geometry`; op(example, rng) -> example.

Shape letters: H W image.
"""

from __future__ import annotations

import numpy as np

from imgrec_jax.data.ops.canvases import MAP_KEYS, pad_maps
from imgrec_jax.data.ops.geometry import Example, Op, Size, crop_and_resize, sizing, warp_example


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
        example = pad_maps(example, np.maximum(size, example["image"].shape[:2]))
        room = np.array(example["image"].shape[:2]) - np.array(size)
        start = rng.integers(0, room + 1)
        if rng.random() < probability:
            foreground = (example["segmentation"] > 0) & example["pixel_valid"]
            places = np.flatnonzero(foreground)
            if places.size:
                pixel = np.array(np.divmod(places[rng.integers(places.size)], example["image"].shape[1]))
                first, last = np.clip(pixel - np.array(size) + 1, 0, room), np.clip(pixel, 0, room)
                starts = rng.integers(first, last + 1, (candidates, 2))
                start = max(starts, key=lambda yx: np.count_nonzero(foreground[yx[0] :, yx[1] :][: size[0], : size[1]]))
        window = tuple(slice(first, first + length) for first, length in zip(start, size, strict=True))
        return {**example, **{key: example[key][window] for key in MAP_KEYS if key in example}}

    return op


def resize_shorter(length: int) -> Op:
    """Brings the shorter side to `length` pixels; the other keeps the ratio, rounded down as torchvision does."""

    def after(size: Size) -> Size:
        return length * size[0] // min(size), length * size[1] // min(size)

    def op(example: Example, rng: np.random.Generator) -> Example:
        height, width = example["image"].shape[:2]
        size = after((height, width))
        return warp_example(example, crop_and_resize((0, 0, width, height), size), size)

    return sizing(op, after)

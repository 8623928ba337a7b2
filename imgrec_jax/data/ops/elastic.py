"""Elastic deformation of an image with its masks, as U-Net was trained (Ronneberger et al. 2015, arXiv 1505.04597).

Random displacements at a coarse grid of points, Gaussian of some pixels' standard deviation, become a smooth field by bicubic
interpolation. Coordinates as in `geometry`. Shape letters: H W image, n points of the grid per side.
"""

from __future__ import annotations

import cv2
import numpy as np

from imgrec_jax.data.ops import bits
from imgrec_jax.data.ops.geometry import Example, Op, Size, boxes_of_masks
from imgrec_jax.data.ops.pixels import white
from imgrec_jax.data.ops.targets import select_boxes


def cubic_weights(size: int, points: int) -> np.ndarray:
    """[size, points] weights of cubic interpolation (Keys 1981, a = -1/2) at pixel centres.

    The points are spread evenly from border to border of the image; beyond them the outermost values go on.
    """
    position = (np.arange(size) + 0.5) / size * (points - 1)
    weights = np.zeros((size, points))
    for neighbour in range(-1, 3):
        point = np.floor(position) + neighbour
        t = np.abs(position - point)
        near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
        value = np.where(t < 1, near, np.where(t < 2, far, 0))
        np.add.at(weights, (np.arange(size), np.clip(point, 0, points - 1).astype(np.int64)), value)
    return weights


def displacement_field(coarse: np.ndarray, size: Size) -> np.ndarray:
    """Displacements [2, n, n] (dy, dx) in pixels at the grid's points -> float32 [2, H, W] at every pixel."""
    rows, columns = (cubic_weights(length, points) for length, points in zip(size, coarse.shape[1:], strict=True))
    return (rows @ coarse @ columns.T).astype(np.float32)


def deform(example: Example, field: np.ndarray, *, fill: int = 0) -> Example:
    """Pixel (y, x) takes what is at (y, x) + field[:, y, x] float32 [2, H, W].

    image is bilinear, outside = `fill` (0..255; of 1/255 in a float image); segmentation, instances and pixel_valid are nearest
    neighbour, outside = 0 and False (void). A segmentation without pixel_valid gains one. Objects take the boxes of their moved
    masks; one of whose mask nothing is left is dropped.

    Raises:
      ValueError: for an example with boxes without masks, which would no longer bound their objects.
    """
    if "boxes" in example and "box_mask" not in example:
        raise ValueError("elastic deformation moves no boxes without masks; use it for segmentation, or for objects with masks")
    height, width = field.shape[1:]
    y, x = np.indices((height, width), np.float32) + field

    def warp(array: np.ndarray, interpolation: int, value: float = 0) -> np.ndarray:
        border = (value,) * 4
        moved = cv2.remap(array, x, y, interpolation, borderMode=cv2.BORDER_CONSTANT, borderValue=border)
        return np.asarray(moved).reshape(array.shape)

    out = {**example, "image": warp(example["image"], cv2.INTER_LINEAR, fill * white(example["image"].dtype) / 255)}
    for key in ("segmentation", "instances"):
        if key in example:
            # OpenCV remaps no wide integers; float32 holds ids up to 2**24 exactly.
            out[key] = warp(example[key].astype(np.float32), cv2.INTER_NEAREST).astype(example[key].dtype)
    if "box_mask" in example:
        masks = bits.each(example["box_mask"], width)
        moved = [warp(mask.astype(np.uint8), cv2.INTER_NEAREST).astype(np.bool_) for mask in masks]
        out["boxes"] = np.concatenate([np.zeros((0, 4), np.float32), *(boxes_of_masks(mask[None]) for mask in moved)])
        out["box_mask"] = bits.pack_each(moved, (height, width))
        out = select_boxes(out, bits.areas(out["box_mask"]) > 0)
    if "segmentation" in example or "pixel_valid" in example:
        valid = example.get("pixel_valid", np.ones((height, width), np.bool_))
        out["pixel_valid"] = warp(valid.astype(np.uint8), cv2.INTER_NEAREST).astype(np.bool_)
    return out


def elastic(*, sigma: float = 10.0, points: int = 3, probability: float = 1.0, fill: int = 0) -> Op:
    """Random elastic deformation (section 3.1 of the paper).

    Args:
      sigma: standard deviation of the displacements in pixels (10 in the paper, for images of 512).
      points: of the grid, per side (3 in the paper).
      probability: of an example being deformed.
      fill: of the image where it is drawn from outside.
    """
    if points < 2:
        raise ValueError(f"elastic: points={points}; expected at least 2 per side")

    def op(example: Example, rng: np.random.Generator) -> Example:
        if rng.random() >= probability:
            return example
        coarse = rng.normal(0, sigma, (2, points, points))
        return deform(example, displacement_field(coarse, example["image"].shape[:2]), fill=fill)

    return op

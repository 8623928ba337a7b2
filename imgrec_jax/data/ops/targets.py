"""Ops on the targets of one example: check, drop, filter and derive. op(example, rng) -> example.

Keys of an example as in `geometry`, and besides instances int32 [H, W] (0 where there is none, n on the n-th object) and
pixel_weight float32 [H, W].

Shape letters: H W image, N boxes.
"""

from __future__ import annotations

import cv2
import numpy as np

from imgrec_jax.data.ops import bits
from imgrec_jax.data.ops.geometry import Example, Op, box_areas, clip_boxes


def select_boxes(example: Example, keep: np.ndarray) -> Example:
    """The example with only the boxes where `keep` [N] is True, and their box_* entries, masks among them."""
    per_box = {k: v[keep] for k, v in example.items() if k == "boxes" or k.startswith("box_")}
    return {**example, **per_box}


def bad_boxes(boxes: np.ndarray, size: tuple[int, int], *, tolerance: float = 1.0) -> dict[str, np.ndarray]:
    """Bool [N] per kind of error: "degenerate" (x2 <= x1, y2 <= y1 or not finite) and "outside" the (H, W) image.

    tolerance: pixels a box may reach over the border before it counts as outside; annotators round, and the boxes of
    COCO 2017 itself reach up to a pixel over.
    """
    finite = np.isfinite(boxes).all(1)
    x1, y1, x2, y2 = boxes.T
    height, width = size
    degenerate = ~finite | (x2 <= x1) | (y2 <= y1)
    inside = (x1 >= -tolerance) & (y1 >= -tolerance) & (x2 <= width + tolerance) & (y2 <= height + tolerance)
    return {"degenerate": degenerate, "outside": finite & ~inside}


def check_boxes(*, drop: bool = False) -> Op:
    """Stop at the first degenerate or out-of-image box with its file and annotation id; good boxes are clipped to the image.

    drop: clip the boxes that reach outside, and remove what has no area, instead of stopping.
    """

    def op(example: Example, rng: np.random.Generator) -> Example:
        if "boxes" not in example:
            return example
        size = example["image"].shape[:2]
        errors = bad_boxes(example["boxes"], size)
        bad = errors["degenerate"] | errors["outside"]
        if bad.any() and not drop:
            first = int(np.flatnonzero(bad)[0])
            kind = next(name for name, flags in errors.items() if flags[first])
            ids = example.get("box_id", np.arange(len(bad)))
            raise ValueError(
                f"{example.get('file_name', 'image')}: annotation {ids[first]} has a box that is {kind}: "
                f"xyxy {np.round(example['boxes'][first], 2).tolist()} in an image of (height, width) {size}; "
                "expected 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height. Correct it (--mode=check lists all), "
                "or set config.data.drop_degenerate_boxes=True to clip and drop such boxes"
            )
        clipped = clip_boxes(np.nan_to_num(example["boxes"]), size)
        keep = ~errors["degenerate"] & (box_areas(clipped) > 0)
        return select_boxes({**example, "boxes": clipped}, keep)

    return op


def drop_degenerate() -> Op:
    """Remove the degenerate boxes of a file before an op moves them: corners in a new order would bound an object again."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        if "boxes" not in example:
            return example
        return select_boxes(example, ~bad_boxes(example["boxes"], example["image"].shape[:2])["degenerate"])

    return op


def drop_crowd() -> Op:
    """Remove crowd regions, as detectors that do not ignore them in training require."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        return select_boxes(example, ~example["box_crowd"])

    return op


def drop_without_mask() -> Op:
    """Remove objects of whose mask nothing is left, or that never had one: a mask head would learn that they are nothing."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        return select_boxes(example, (bits.areas(example["box_mask"]) > 0) | example["box_crowd"])

    return op


def segmentation_from_instances() -> Op:
    """Semantic map int32 [H, W] from masks and labels: 0 is background, small objects lie over large ones, and pixels of
    crowd regions alone are void."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        masks, crowd = example["box_mask"], example["box_crowd"]
        segmentation = np.zeros(example["image"].shape[:2], np.int32)
        width = segmentation.shape[1]
        for i in np.argsort(-bits.areas(masks), kind="stable"):
            if not crowd[i]:
                segmentation[bits.unpack(masks[i], width)] = example["box_label"][i]
        void = bits.unpack(np.bitwise_or.reduce(masks[crowd], axis=0), width) & (segmentation == 0)
        return {**example, "segmentation": segmentation, "pixel_valid": ~void}

    return op


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

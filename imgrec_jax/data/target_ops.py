"""Ops on the targets of one example: check, drop, filter and derive. Keys as in `geometry_ops`; op(example, rng) -> example.

Shape letters: H W image, N boxes.
"""

from __future__ import annotations

import numpy as np

from imgrec_jax.data.geometry_ops import Example, Op, box_areas, boxes_of_masks, clip_boxes


def select_boxes(example: Example, keep: np.ndarray) -> Example:
    """The example with only the boxes where `keep` [N] is True, and their masks and box_* entries."""
    per_box = {k: v[keep] for k, v in example.items() if k in ("boxes", "masks") or k.startswith("box_")}
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


def drop_crowd() -> Op:
    """Remove crowd regions, as detectors that do not ignore them in training require."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        return select_boxes(example, ~example["box_crowd"])

    return op


def keep_labels(labels: tuple[int, ...]) -> Op:
    """Keep boxes of these labels and renumber them 1..len(labels) in the given order."""
    order = {label: position for position, label in enumerate(labels, start=1)}

    def op(example: Example, rng: np.random.Generator) -> Example:
        out = select_boxes(example, np.isin(example["box_label"], labels))
        new = [order[int(label)] for label in out["box_label"]]
        return {**out, "box_label": np.array(new, example["box_label"].dtype).reshape(-1)}

    return op


def tighten_boxes() -> Op:
    """Boxes from masks: the tight box of each mask; objects whose mask is empty are dropped."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        out = select_boxes(example, example["masks"].any((1, 2)))
        return {**out, "boxes": boxes_of_masks(out["masks"])}

    return op


def segmentation_from_instances() -> Op:
    """Semantic map int32 [H, W] from masks and labels: 0 is background, small objects lie over large ones, and pixels of
    crowd regions alone are void."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        masks, crowd = example["masks"], example["box_crowd"]
        segmentation = np.zeros(example["image"].shape[:2], np.int32)
        for i in np.argsort(-masks.sum((1, 2)), kind="stable"):
            if not crowd[i]:
                segmentation[masks[i]] = example["box_label"][i]
        void = masks[crowd].any(0) & (segmentation == 0)
        return {**example, "segmentation": segmentation, "pixel_valid": ~void}

    return op

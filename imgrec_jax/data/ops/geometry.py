"""Affine geometry of one example: build a matrix, warp image, boxes, masks and semantic map together, once.

Coordinates are continuous pixels: pixel (i, j) covers [j, j + 1) x [i, i + 1), so its centre is (j + .5, i + .5) and an
image of height H spans 0..H. A matrix is float64 [3, 3] and maps input (x, y, 1) to output (x, y, 1); `b @ a` applies a
first. Sizes are (height, width). An op is `op(example, rng) -> example`; keys that are absent are not touched. One that changes
the size of images tells it before there are pixels: `op.size_after(size) -> size` (see `size_after`).

Keys warped: image [H, W, C] bilinear, outside = `fill` (0..255; of 1/255 in a float image); boxes [N, 4] xyxy; box_mask, bits
of [N, H, W] (`bits`), segmentation [H, W], instances [H, W] and pixel_valid [H, W] bool nearest neighbour, outside = 0 and
False (void); proposals [P, 4]. Every `box_*` key is filtered with the boxes. Shape letters: H W C image, N boxes, P proposals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import cv2
import numpy as np

from imgrec_jax.data.images import Undecoded
from imgrec_jax.data.ops import bits
from imgrec_jax.data.ops.pixels import white
from imgrec_jax.data.ops.resample import FILTERS, resample

Example = dict
Op = Callable[[Example, np.random.Generator], Example]
Size = tuple[int, int]


def size_after(ops: Iterable[Op], size: Size) -> Size:
    """The size that an image of `size` has after these ops; one without `size_after` keeps it."""
    for op in ops:
        size = op.size_after(size) if hasattr(op, "size_after") else size
    return size


def sizing(op: Op, after: Callable[[Size], Size]) -> Op:
    """The op, which makes images of the size `after(size)` of those of `size`."""
    op.size_after = after  # type: ignore[attr-defined]
    return op


def translation(dx: float, dy: float) -> np.ndarray:
    return np.array([[1, 0, dx], [0, 1, dy], [0, 0, 1]], np.float64)


_TO_CENTRES, _FROM_CENTRES = translation(-0.5, -0.5), translation(0.5, 0.5)  # OpenCV counts from pixel centres


def scaling(sx: float, sy: float) -> np.ndarray:
    return np.diag([sx, sy, 1.0])


def rotation(degrees: float) -> np.ndarray:
    """Counter-clockwise on the screen (y points down) about the origin."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])


def shearing(degrees: float) -> np.ndarray:
    return np.array([[1, np.tan(np.radians(degrees)), 0], [0, 1, 0], [0, 0, 1]])


def flipping(size: Size, *, horizontal: bool = False, vertical: bool = False) -> np.ndarray:
    """Mirror an image of `size` onto itself."""
    height, width = size
    matrix = np.eye(3)
    if horizontal:
        matrix = translation(width, 0) @ scaling(-1, 1) @ matrix
    if vertical:
        matrix = translation(0, height) @ scaling(1, -1) @ matrix
    return matrix


def about(matrix: np.ndarray, x: float, y: float) -> np.ndarray:
    """`matrix` with (x, y) in place of the origin as its fixed point."""
    return translation(x, y) @ matrix @ translation(-x, -y)


def crop_and_resize(box: tuple[float, float, float, float], size: Size) -> np.ndarray:
    """Map the xyxy region `box` onto an output of `size`."""
    x1, y1, x2, y2 = box
    return scaling(size[1] / (x2 - x1), size[0] / (y2 - y1)) @ translation(-x1, -y1)


def is_axis_aligned(matrix: np.ndarray) -> bool:
    """Whether boxes stay boxes (no rotation, no shear)."""
    return bool(matrix[0, 1] == 0 and matrix[1, 0] == 0)


def warp_array(array: np.ndarray, matrix: np.ndarray, size: Size, *, nearest: bool, fill=0) -> np.ndarray:
    """Warp [H, W] or [H, W, C] to `size`; pixels whose centre comes from outside are `fill`.

    Bilinear without antialias, as torch's interpolate, which repeats the border where a pixel lies between it and the outermost
    centres, down to a scale of 1/2; smaller images are averaged (INTER_AREA) to twice the target first. Where a turned or
    sheared image ends within the output, it fades into `fill` by half a pixel. Nearest keeps the input's values and dtype.
    """
    dtype, flat = array.dtype, array.ndim == 2
    if not nearest:
        shrink = 2 * np.hypot(matrix[0, :2], matrix[1, :2])  # length of each column: scale along x, along y
        if shrink.min() < 1 and np.all(shrink > 0):
            height, width = array.shape[:2]
            small = max(1, round(width * min(1, shrink[0]))), max(1, round(height * min(1, shrink[1])))
            array = cv2.resize(array, small, interpolation=cv2.INTER_AREA)
            matrix = matrix @ scaling(width / small[0], height / small[1])
    if dtype == np.bool_:
        array = array.view(np.uint8)
    elif dtype in (np.int32, np.int64):
        array = array.astype(np.float32)  # OpenCV warps no wide integers; class ids are far below 2**24
    centred = _TO_CENTRES @ matrix @ _FROM_CENTRES
    border = (float(fill),) * 4 if np.ndim(fill) == 0 else (*map(float, fill), 0.0)
    inside = None if nearest else _from_inside(matrix, (array.shape[0], array.shape[1]), size)
    warped = cv2.warpAffine(
        array,
        centred[:2],
        (size[1], size[0]),
        flags=cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT if inside is None else cv2.BORDER_REPLICATE,
        borderValue=border,
    )
    if not flat and warped.ndim == 2:
        warped = warped[..., None]
    if inside is not None and inside != ((0, size[0]), (0, size[1])):
        (top, bottom), (left, right) = inside
        value = np.rint(fill) if dtype == np.uint8 else fill
        for beyond in (warped[:top], warped[bottom:], warped[:, :left], warped[:, right:]):
            if beyond.size:
                beyond[:] = value
    return warped.astype(dtype, copy=False) if dtype != np.bool_ else warped.astype(np.bool_)


_Span = tuple[int, int]  # [start, stop)


def _from_inside(matrix: np.ndarray, source: Size, size: Size) -> tuple[_Span, _Span] | None:
    """The (rows, columns) of an output of `size` whose centres come from inside the source; None where they are no rectangle.

    Scalars, not arrays: this is a part of every warp of a small image.
    """
    (a, b, c), (d, e, f) = matrix[:2].tolist()
    if b == d == 0:
        return _span(e, f, source[0], size[0]), _span(a, c, source[1], size[1])
    area = a * e - b * d
    for y in (0.5 - f, size[0] - 0.5 - f):
        for x in (0.5 - c, size[1] - 0.5 - c):
            inside = 0 <= (e * x - b * y) / area <= source[1] and 0 <= (a * y - d * x) / area <= source[0]
            if not inside:
                return None
    return (0, size[0]), (0, size[1])


def _span(scale: float, shift: float, length: int, size: int) -> _Span:
    """Of an axis: which of `size` pixels have their centre within 0..length mapped by x -> scale x + shift, rounding aside."""
    first, last = sorted((shift, scale * length + shift))
    return max(math.ceil(first - 0.5 - 1e-6), 0), max(min(math.floor(last - 0.5 + 1e-6) + 1, size), 0)


def warp_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """xyxy [N, 4] -> the upright float32 boxes [N, 4] around the four mapped corners, not clipped."""
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2).astype(np.float64)
    mapped = corners @ matrix[:2, :2].T + matrix[:2, 2]
    return np.concatenate([mapped.min(1), mapped.max(1)], axis=1).astype(np.float32).reshape(-1, 4)


def clip_boxes(boxes: np.ndarray, size: Size) -> np.ndarray:
    limit = np.array([size[1], size[0], size[1], size[0]], np.float32)
    return np.clip(boxes, 0, limit).astype(np.float32)


def box_areas(boxes: np.ndarray) -> np.ndarray:
    return np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)


def boxes_of_masks(masks: np.ndarray) -> np.ndarray:
    """Tight xyxy float32 [N, 4] of bool [N, H, W]; all zero where a mask is empty."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if rows.size:
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def _warp_instances(example: Example, matrix: np.ndarray, size: Size, min_side: float, min_visible: float) -> Example:
    """The part of `warp_example` that concerns boxes, their masks and every box_* key."""
    exact = warp_boxes(example["boxes"], matrix)
    boxes = clip_boxes(exact, size)
    visible = box_areas(boxes) / np.maximum(box_areas(exact), 1e-12)
    out = dict(example)
    gone = np.zeros(len(boxes), np.bool_)
    if "box_mask" in example:
        before = bits.areas(example["box_mask"])
        area = before * abs(np.linalg.det(matrix[:2, :2]))
        width, tight = example["image"].shape[1], np.zeros((len(boxes), 4), np.float32)
        out["box_mask"] = np.zeros((len(boxes), size[0], -(-size[1] // 8)), np.uint8)
        for n, mask in enumerate(bits.each(example["box_mask"], width)):
            warped = warp_array(mask, matrix, size, nearest=True)
            tight[n] = boxes_of_masks(warped[None])[0]
            out["box_mask"][n] = bits.pack(warped)
        after = bits.areas(out["box_mask"])
        gone = (before > 0) & (after == 0)
        # Corners bound a turned object loosely, and so does what is left of one that the border cuts; its mask does not.
        tighten = (area > 0) & ((visible < 1) | (not is_axis_aligned(matrix)))
        tight = np.concatenate([np.maximum(boxes[:, :2], tight[:, :2]), np.minimum(boxes[:, 2:], tight[:, 2:])], axis=1)
        boxes = np.where(tighten[:, None], tight, boxes)
        visible = np.where(tighten, after / np.maximum(area, 1e-12), visible)
    sides = boxes[:, 2:] - boxes[:, :2]
    keep = (sides >= min_side).all(1) & (visible >= min_visible) & ~gone
    kept = {k: v[keep] for k, v in out.items() if k.startswith("box_")}
    kept["boxes"] = boxes[keep]
    return kept


def warp_example(
    example: Example,
    matrix: np.ndarray,
    size: Size,
    *,
    fill=0,
    min_side: float = 1.0,
    min_visible: float = 0.0,
) -> Example:
    """Warp every geometric key of `example` by `matrix` onto an output of `size`.

    A box is clipped to the output and dropped, with its box_* entries, when a side is below `min_side` pixels or when less
    than `min_visible` of it stays inside, or nothing of its mask is left. Objects with a mask are tightened to it after a
    rotation or where the border cuts them, and their visible fraction is that of the mask. A segmentation without
    `pixel_valid` gains one.
    """
    out = dict(example)
    input_size = example["image"].shape[:2]
    fill = np.multiply(fill, white(example["image"].dtype) / 255)
    out["image"] = warp_array(example["image"], matrix, size, nearest=False, fill=fill)
    if "boxes" in example:
        out.update(_warp_instances(example, matrix, size, min_side, min_visible))
    if "segmentation" in example:
        valid = example.get("pixel_valid", np.ones(input_size, np.bool_))
        out["segmentation"] = warp_array(example["segmentation"], matrix, size, nearest=True)
        out["pixel_valid"] = warp_array(valid, matrix, size, nearest=True)
    if "instances" in example:
        out["instances"] = warp_array(example["instances"], matrix, size, nearest=True)
    if "proposals" in example:
        proposals = clip_boxes(warp_boxes(example["proposals"], matrix), size)
        out["proposals"] = proposals[(proposals[:, 2:] - proposals[:, :2] >= min_side).all(1)]
    return out


def _fit_scale(input_size: Size, size: Size, fit: str) -> tuple[float, float]:
    """(sx, sy) that brings an image of `input_size` to the output `size` by the rule `fit`."""
    sx, sy = size[1] / input_size[1], size[0] / input_size[0]
    rules = {"none": (1.0, 1.0), "stretch": (sx, sy), "inside": (min(sx, sy),) * 2, "cover": (max(sx, sy),) * 2}
    if fit not in rules:
        raise ValueError(f"fit={fit!r} is unknown; choose one of {sorted(rules)}")
    return rules[fit]


def random_affine(
    *,
    size: Size | None = None,
    fit: str = "none",
    random_position: bool = False,
    flip: float = 0.0,
    vertical_flip: float = 0.0,
    scale: tuple[float, float] = (1.0, 1.0),
    aspect: float = 1.0,
    rotate: float = 0.0,
    shear: float = 0.0,
    translate: float = 0.0,
    fill=0,
    min_side: float = 1.0,
    min_visible: float = 0.0,
) -> Op:
    """Flip, scale jitter, rotation, shear, crop or pad, and translation, drawn at random and warped once.

    size: output (H, W), None keeps the input's. fit: how the image first meets that size: "none" (crop or pad around it),
    "inside" (whole image visible), "cover" (no border), "stretch". scale: range of a further factor, drawn log-uniformly;
    aspect: largest ratio of its two axes. random_position: slide the image anywhere it still covers the output, or lies in
    it where it is the smaller one (random crop; with fit="inside", scale=(0.1, 2) this is large-scale jitter). rotate, shear:
    largest degrees. translate: largest shift as a fraction of the output. flip, vertical_flip: probabilities.
    """

    def op(example: Example, rng: np.random.Generator) -> Example:
        height, width = example["image"].shape[:2]
        out = size or (height, width)
        sx, sy = _fit_scale((height, width), out, fit)
        factor = np.exp(rng.uniform(*np.log(scale)))
        squeeze = np.exp(0.5 * rng.uniform(-1, 1) * np.log(aspect))
        sx, sy = sx * factor * squeeze, sy * factor / squeeze
        matrix = flipping((height, width), horizontal=rng.random() < flip, vertical=rng.random() < vertical_flip)
        matrix = scaling(sx, sy) @ translation(-width / 2, -height / 2) @ matrix
        angle, slant = rng.uniform(-rotate, rotate), rng.uniform(-shear, shear)
        if slant:
            matrix = shearing(slant) @ matrix
        if angle:
            matrix = rotation(angle) @ matrix
        slack = np.abs([out[1] - sx * width, out[0] - sy * height]) / 2 if random_position else np.zeros(2)
        shift = rng.uniform(-1, 1, 2) * slack + rng.uniform(-translate, translate, 2) * (out[1], out[0])
        matrix = translation(out[1] / 2 + shift[0], out[0] / 2 + shift[1]) @ matrix
        if np.isin(matrix[:2, :2], (-1, 0, 1)).all():
            matrix = np.round(matrix)  # crops and flips move by whole pixels, so they do not blur
        return warp_example(example, matrix, out, fill=fill, min_side=min_side, min_visible=min_visible)

    return sizing(op, lambda given: given if size is None else (size[0], size[1]))


def random_resized_crop(
    *,
    size: Size,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.0,
    fill=0,
    min_side: float = 1.0,
    min_visible: float = 0.0,
    reduced: bool = False,
) -> Op:
    """A region of random area fraction and width/height ratio, resized to `size` (torchvision's RandomResizedCrop rule).

    reduced: JPEG files of own images that are read as they are (`data.options.size=()`) are decoded at 1/2, 3/8, 1/4 or 1/8 of
      their size where the region still has at least `size` pixels. Faster where images are large; not quite the same pixels.
    """

    def op(example: Example, rng: np.random.Generator) -> Example:
        height, width = example["image"].shape[:2]
        for _ in range(10):
            pixels, shape = height * width * rng.uniform(*area), np.exp(rng.uniform(*np.log(ratio)))
            w, h = round(np.sqrt(pixels * shape)), round(np.sqrt(pixels / shape))
            if 0 < w <= width and 0 < h <= height:
                x, y = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
                break
        else:  # the largest central region of an allowed ratio
            w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
            x, y = (width - w) // 2, (height - h) // 2
        box: tuple[float, float, float, float] = (x, y, x + w, y + h)
        if isinstance(example["image"], Undecoded):
            image = example["image"].read((-(-size[0] * height // h), -(-size[1] * width // w)))
            down, across = image.shape[0] / height, image.shape[1] / width
            example = {**example, "image": image}
            box = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
        matrix = crop_and_resize(box, size)
        if rng.random() < flip:
            matrix = flipping(size, horizontal=True) @ matrix
        return warp_example(example, matrix, size, fill=fill, min_side=min_side, min_visible=min_visible)

    op.takes_undecoded = reduced  # type: ignore[attr-defined]  # told by `pipeline.Pipeline`
    return sizing(op, lambda given: (size[0], size[1]))


def resize(size: Size) -> Op:
    """Stretch to `size`."""
    return random_affine(size=size, fit="stretch")


def resize_and_center_crop(shorter: int, size: Size, *, interpolation: str = "bilinear", antialias: bool = False) -> Op:
    """Bring the shorter side to `shorter` pixels and cut the middle `size` out (ImageNet evaluation).

    In one bilinear warp; or with `antialias` as torchvision and timm do it to files that Pillow has opened, with their
    `interpolation`, "bilinear" or "bicubic".

    Raises:
      ValueError: for another interpolation, or "bicubic" without antialias.
    """
    if interpolation not in FILTERS or (interpolation != "bilinear" and not antialias):
        raise ValueError(
            f"interpolation={interpolation!r}, antialias={antialias}; expected one of {sorted(FILTERS)}, and "
            "antialias=True for any but bilinear"
        )

    def op(example: Example, rng: np.random.Generator) -> Example:
        image = example["image"]
        sides = image.shape[:2]
        # torchvision rounds the sides down, and the corner of the crop to a whole pixel of the resized image
        exact = [shorter * side / min(sides) for side in sides]
        whole = [int(side) if antialias else side for side in exact]
        top, left = (round((side - out) / 2) for side, out in zip(whole, size, strict=True))
        moved = translation(-left, -top)
        out = warp_example(example, moved @ scaling(whole[1] / sides[1], whole[0] / sides[0]), size)
        if antialias:
            out["image"] = warp_array(resample(image, whole, interpolation), moved, size, nearest=False)
        return out

    return sizing(op, lambda given: (size[0], size[1]))

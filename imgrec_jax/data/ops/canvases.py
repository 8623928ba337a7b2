"""Detection batches: resize as torchvision does, pad to one of a few shapes, and group images so that a batch needs one shape.

The shape an image is padded to, its canvas, depends on its size before `resize` alone. `bucketed_order` puts images of one
canvas into a batch, so a program is compiled once per canvas, and every process of a run pads to the same one.

Size rule: torchvision/models/detection/transform.py. Sizes are (height, width). Shape letters: n images of the split,
S steps, B batch, H W C canvas, N boxes of an example, G ground-truth boxes and P proposals of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from imgrec_jax.data.batch import Batch, stack
from imgrec_jax.data.ops import bits
from imgrec_jax.data.ops.geometry import Example, Op, Size, box_areas
from imgrec_jax.data.ops.pixels import white
from imgrec_jax.data.pipeline import Order, rng_for

DIVISOR = 32  # torchvision pads to multiples of 32, the stride of C5


def resized_size(size: Size, min_size: int, max_size: int) -> Size:
    """The shorter side becomes `min_size` unless the longer would exceed `max_size`.

    Truncated like torchvision's: for some sides, e.g. 161 or 199, int(side * (800 / side)) is 799. A side that would vanish
    keeps one pixel.
    """
    scale = min(min_size / min(size), max_size / max(size))
    return max(int(size[0] * scale), 1), max(int(size[1] * scale), 1)


def round_up(size: Size, divisor: int = DIVISOR) -> Size:
    return -(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor


def default_canvases(min_size: int, max_size: int) -> tuple[Size, ...]:
    """Landscape and portrait, up to 4:3 and longer: whatever `resized_size` returns fits into one of them."""
    long, common = round_up((min_size, max_size)), round_up((min_size, min(max_size, -(-min_size * 4 // 3))))
    return tuple(dict.fromkeys((common, common[::-1], long, long[::-1])))


def canvas_of(size: Size, min_size: int, max_size: int, canvases: Sequence[Size], *, only: bool = True) -> Size:
    """The smallest canvas that holds an image of `size` resized to (min_size, max_size); without `canvases` its own.

    only: of `canvases`; else, where none of them does, one of them turned by 90 degrees or, at last, of the default canvases.

    Raises:
      ValueError: when none does.
    """
    height, width = resized_size(size, min_size, max_size)
    if not canvases:
        return round_up((height, width))
    others = ([canvas[::-1] for canvas in canvases], default_canvases(min_size, max_size))
    for offered in (canvases,) if only else (canvases, *others):
        fitting = [canvas for canvas in offered if height <= canvas[0] and width <= canvas[1]]
        if fitting:
            return min(fitting, key=lambda canvas: canvas[0] * canvas[1])
    raise ValueError(
        f"an image of {tuple(size)} becomes {height, width} with min_size={min_size}, max_size={max_size}, which no canvas "
        f"of {tuple(canvases)} holds; add one to config.data.canvases"
    )


def bucketed_order(
    sizes: np.ndarray,
    batch_size: int,
    *,
    min_size: int,
    max_size: int,
    canvases: Sequence[Size],
    seed: int | None,
    only: bool = True,
) -> Callable[[int], Order]:
    """epoch -> Order whose batches each hold images of one canvas; every image once, each canvas's last batch padded.

    sizes: int [n, 2], before `resize`. min_size: the largest where several are drawn from. seed: None keeps the order of the
    split. only: see `canvas_of`.
    """
    sizes = np.asarray(sizes).tolist()
    chosen = [canvas_of(size, min_size, max_size, canvases, only=only) for size in sizes]
    buckets = (*canvases, *sorted(set(chosen) - set(canvases)))
    of_image = np.array([buckets.index(canvas) for canvas in chosen])

    def order(epoch: int) -> Order:
        rng = rng_for(seed, "shuffle", epoch) if seed is not None else None
        images = np.arange(len(of_image)) if rng is None else rng.permutation(len(of_image))
        indices, valid = [], []
        for bucket in range(len(buckets)):
            members = images[of_image[images] == bucket]
            steps = -(-len(members) // batch_size)
            indices.append(np.resize(members, (steps, batch_size)))
            valid.append((np.arange(steps * batch_size) < len(members)).reshape(steps, batch_size))
        batches = np.arange(sum(map(len, indices)))
        batches = batches if rng is None else rng.permutation(batches)
        return Order(np.concatenate(indices)[batches].astype(np.int64), np.concatenate(valid)[batches])

    return order


def resize(
    min_sizes: Sequence[int], max_size: int, canvases: Sequence[Size], *, as_float: bool = False, only: bool = True
) -> Op:
    """Resize image, boxes, masks and proposals, and note the canvas.

    min_sizes: one is drawn per example (multi-scale training); give one for evaluation. Bilinear without antialias.
    as_float: the image becomes float32 in 0..1 before it is resized, as in torchvision, instead of being rounded to uint8.
    only: see `canvas_of`.
    """

    def op(example: Example, rng: np.random.Generator) -> Example:
        image = example["image"]
        old = image.shape[:2]
        new = resized_size(old, int(rng.choice(min_sizes)) if len(min_sizes) > 1 else min_sizes[0], max_size)
        if as_float:
            image = image.astype(np.float32) / np.float32(white(image.dtype))
        out = {
            **example,
            "image": cv2.resize(image, new[::-1], interpolation=cv2.INTER_LINEAR).reshape(*new, -1) if new != old else image,
        }
        ratio = np.array(new[::-1], np.float32) / np.array(old[::-1], np.float32)
        for key in {"boxes", "proposals"} & example.keys():
            out[key] = example[key] * np.tile(ratio, 2)
        if "box_mask" in example:
            rows, columns = (_nearest(a, b) for a, b in zip(old, new, strict=True))
            masks = (mask[rows][:, columns] for mask in bits.each(example["box_mask"], old[1]))
            out["box_mask"] = bits.pack_each(masks, new)
        out["canvas"] = canvas_of(old, max(min_sizes), max_size, canvases, only=only)
        return out

    return op


def _nearest(old: int, new: int) -> np.ndarray:
    """The pixel that each of `new` takes of `old`, int64 [new], rounded in float32 as torch's interpolate does."""
    return np.minimum((np.arange(new, dtype=np.float32) * np.float32(old / new)).astype(np.int64), old - 1)


def collate_boxes(
    *, max_boxes: int, max_proposals: int = 0, drop_extra_boxes: bool = False
) -> Callable[[Sequence[Example]], Batch]:
    """examples -> batch of the contract, images padded at the bottom and right with zeros.

    The canvas is the examples' "canvas" or, where they carry none, the largest height and width rounded up to DIVISOR.
    max_boxes: G. drop_extra_boxes: keep an image's G largest boxes instead of stopping. max_proposals: P, the first ones.

    The function raises:
      ValueError: naming the image, when it has more than G boxes, does not fit the canvas, or shares a batch with another's.
    """

    def batch_of(examples: Sequence[Example]) -> Batch:
        examples = [_limit_boxes(example, max_boxes, drop_extra_boxes) for example in examples]
        canvas = _common_canvas(examples)
        channels, dtype = examples[0]["image"].shape[2], examples[0]["image"].dtype
        batch = {
            "image": np.zeros((len(examples), *canvas, channels), dtype),
            "image_size": np.array([example["image"].shape[:2] for example in examples], np.int32),
            "original_size": np.array([e.get("original_size", e["image"].shape[:2]) for e in examples], np.int32),
        }
        for row, example in zip(batch["image"], examples, strict=True):
            height, width = example["image"].shape[:2]
            row[:height, :width] = example["image"]
        if "boxes" in examples[0]:
            batch["boxes"], batch["box_valid"] = _pad([e["boxes"] for e in examples], max_boxes, np.float32)
            batch["box_label"], _ = _pad([e["box_label"] for e in examples], max_boxes, np.int32)
            batch["box_crowd"], _ = _pad([e["box_crowd"] for e in examples], max_boxes, np.bool_)
        for key in ("window", "image_index"):
            if key in examples[0]:
                batch[key] = np.stack([e[key] for e in examples])
        if "box_mask" in examples[0]:
            batch["box_mask"] = np.zeros((len(examples), max_boxes, canvas[0], -(-canvas[1] // 8)), np.uint8)
            for target, mask in zip(batch["box_mask"], [e["box_mask"] for e in examples], strict=True):
                target[: mask.shape[0], : mask.shape[1], : mask.shape[2]] = mask
        if max_proposals:
            proposals = [e["proposals"][:max_proposals] for e in examples]
            batch["proposals"], batch["proposal_valid"] = _pad(proposals, max_proposals, np.float32)
        return batch

    return batch_of


def _pad(rows: list[np.ndarray], length: int, dtype) -> tuple[np.ndarray, np.ndarray]:
    """Ragged rows -> (zero-padded [B, length, ...], valid bool [B, length])."""
    out = np.zeros((len(rows), length, *rows[0].shape[1:]), dtype)
    for target, row in zip(out, rows, strict=True):
        target[: len(row)] = row
    return out, np.arange(length) < np.array([len(row) for row in rows])[:, None]


def _limit_boxes(example: Example, max_boxes: int, drop: bool) -> Example:
    count = len(example.get("boxes", ()))
    if count <= max_boxes:
        return example
    if not drop:
        raise ValueError(
            f"{example.get('file_name', 'an image')} has {count} boxes, more than max_boxes={max_boxes}; raise "
            "config.data.max_boxes, or set config.data.drop_extra_boxes=True to keep the largest"
        )
    # a crowd is large, and no object is to give way to it
    keep = np.sort(np.lexsort((-box_areas(example["boxes"]), example["box_crowd"]))[:max_boxes])
    return {**example, **{key: example[key][keep] for key in example if key == "boxes" or key.startswith("box_")}}


def _common_canvas(examples: Sequence[Example]) -> Size:
    canvases = {example.get("canvas") for example in examples}
    if len(canvases) > 1:
        raise ValueError(
            f"a batch mixes canvases {sorted(canvases, key=str)}; order the split with bucketed_order, and let an op of "
            "your own that changes the size of images tell it: op.size_after = lambda size: ..."
        )
    canvas = canvases.pop()
    shapes = [example["image"].shape[:2] for example in examples]
    if canvas is None:
        return round_up((max(h for h, _ in shapes), max(w for _, w in shapes)))
    for example, (height, width) in zip(examples, shapes, strict=True):
        if height > canvas[0] or width > canvas[1]:
            raise ValueError(f"{example.get('file_name', 'an image')} of {height, width} does not fit its canvas {canvas}")
    return canvas


MAP_KEYS = ("image", "segmentation", "pixel_valid", "pixel_weight", "instances")


def collate_maps(*, multiple: int = 1, size: Size | None = None) -> Callable[..., Batch]:
    """Makes the step from examples of any size to a batch of one size, padded at the bottom and right.

    The padding of images mirrors them; it is void (pixel_valid is False there) and has weight and instance 0.

    Args:
      multiple: sides are rounded up to multiples of it, for the strides of a network.
      size: (H, W) of every batch; None takes the largest of each batch, and as many shapes are compiled as there are sizes.

    Returns:
      examples -> batch of the `MAP_KEYS` that they have. Without `size` it has `size_of`, and takes what that says of more
      examples than its own: the batch of several processes is of one size.
    """

    def size_of(examples: Sequence[Example]) -> list[int]:
        return np.max([example["image"].shape[:2] for example in examples], axis=0).tolist()

    def op(examples: Sequence[Example], at_least: Sequence[int] | None = None) -> Batch:
        largest = np.array(at_least if at_least is not None else size_of(examples))
        if size is not None and np.any(largest > size):
            given = tuple(largest.tolist())
            raise ValueError(f"an image of (height, width) {given} does not fit data.pad_to={size}; crop or resize it")
        target = [-(-int(n) // multiple) * multiple for n in (largest if size is None else size)]
        padded = [pad_maps(example, target) for example in examples]
        return stack([{key: example[key] for key in MAP_KEYS if key in example} for example in padded])

    if size is None:
        op.size_of = size_of  # type: ignore[attr-defined]
    return op


def pad_maps(example: Example, size: Sequence[int]) -> Example:
    """The example with image, maps and pixel_valid, of the types of a batch, mirrored and void up to `size`."""
    height, width = example["image"].shape[:2]
    out = {"pixel_valid": np.ones((height, width), np.bool_), **example}  # a set without void pixels has no pixel_valid
    out.setdefault("image_size", (height, width))
    for key in ("segmentation", "instances"):
        if key in out:
            out[key] = out[key].astype(np.int32)
    pad = ((0, int(size[0]) - height), (0, int(size[1]) - width))
    if pad != ((0, 0), (0, 0)):
        out |= {key: np.pad(out[key], pad) for key in MAP_KEYS[1:] if key in out}
        out["image"] = np.pad(out["image"], (*pad, (0, 0)), mode="reflect")
    return out

"""Detection in large pictures: windows and the whole picture, and how their boxes become one list.

Everything is in pixels of the original image. Shape letters: n boxes, H W image, P pieces (whole pictures and windows).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from imgrec_jax.detection.masks import of_run_lengths, run_lengths
from imgrec_jax.segmentation.tiling import window_starts

Record = dict[str, Any]
_TOUCH = 1.5  # pixels: a box that comes this near to a seam is cut by it
_INSIDE = 0.8  # share of a box that lies in a better one of another window: a part of the same object


class Window(NamedTuple):
    """A part of an image: (top, left) and (height, width)."""

    start: tuple[int, int]
    size: tuple[int, int]

    @property
    def place(self) -> tuple[int, int, int, int]:
        """(top, left, height, width)."""
        return *self.start, *self.size


def windows_of(size: tuple[int, int], window: tuple[int, int] | None, overlap: float) -> list[Window]:
    """The whole picture, and the windows that cover one that is larger; neighbours share `overlap` of their side."""
    whole = Window((0, 0), size)
    if window is None or (size[0] <= window[0] and size[1] <= window[1]):
        return [whole]
    side = (min(window[0], size[0]), min(window[1], size[1]))
    rows, columns = (window_starts(n, m, overlap).tolist() for n, m in zip(size, side, strict=True))
    return [whole, *(Window((top, left), side) for top in rows for left in columns)]


def merge(
    records: Sequence[Record], windows: Sequence[Window], size: tuple[int, int], *, nms_thresh: float, most: int
) -> Record:
    """The boxes of the whole picture and of its windows as one record, best first.

    A box that a seam cuts is left out: with windows that overlap by more than an object, another window or the whole picture
    has it whole. What overlaps a better box of its class by more than `nms_thresh` (IoU), or lies inside one of another window,
    is the same object.

    Args:
      records: of `windows`, the whole picture first, each in pixels of its window.
      size: of the picture.
      most: boxes that are kept.
    """
    if len(records) == 1:
        return records[0]
    parts = [_moved(record, window, size) for record, window in zip(records, windows, strict=True)]
    together = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    part = np.repeat(np.arange(len(parts)), [len(p["boxes"]) for p in parts])
    order = np.argsort(-together["scores"], kind="stable")
    together, part = {key: values[order] for key, values in together.items()}, part[order]
    kept: list[int] = []
    for label in np.unique(together["labels"]):
        kept += _distinct(together["boxes"], part, np.flatnonzero(together["labels"] == label), nms_thresh)
    chosen = np.sort(np.array(kept, np.int64))[:most]
    merged: Record = {key: values[chosen] for key, values in together.items()}
    if "masks" in merged:  # of the few that stay, in pixels of the picture
        merged["masks"] = [_moved_mask(m, windows[n], size) for m, n in zip(merged["masks"], part[chosen], strict=True)]
    return merged


def merge_pieces(
    records: Sequence[Record], places: np.ndarray, images: np.ndarray, sizes: np.ndarray, **limits: Any
) -> tuple[np.ndarray, Record]:
    """The boxes of many images that were seen in pieces: (which image each box is of, int [n]; all boxes as one record).

    Args:
      records: of P pieces in any order, each in pixels of its piece.
      places: int [P, 4], (top, left, height, width) in the image.
      images: int [P], of which image each piece is.
      sizes: int [number of images, 2].
      **limits: of `merge`.
    """
    counts = np.array([len(record["boxes"]) for record in records])
    # As `windows_of` lists them, the whole picture first; of a piece that pads a batch once more, the one with boxes.
    order = np.lexsort((-counts, places[:, 1], places[:, 0], -places[:, 2] * places[:, 3], images))
    keys = np.column_stack([images, places])[order]
    order = order[np.concatenate([[True], np.any(keys[1:] != keys[:-1], axis=1)])]
    found: list[Record] = []
    seen, firsts = np.unique(images[order], return_index=True)
    for image, rows in zip(seen.tolist(), np.split(order, firsts[1:]), strict=True):
        windows = [Window((top, left), (height, width)) for top, left, height, width in places[rows].tolist()]
        size = (int(sizes[image][0]), int(sizes[image][1]))
        found.append(merge([records[row] for row in rows], windows, size, **limits))
    together: Record = {key: np.concatenate([record[key] for record in found]) for key in ("boxes", "scores", "labels")}
    if "masks" in found[0]:
        together["masks"] = [mask for record in found for mask in record["masks"]]
    return np.repeat(seen, [len(record["boxes"]) for record in found]), together


def _moved(record: Record, window: Window, size: tuple[int, int]) -> Record:
    """A window's boxes in pixels of the picture, without those that a seam cuts; their masks as they are."""
    (top, left), (height, width) = window
    boxes = record["boxes"] + np.array([left, top, left, top])
    bottom, right = top + height, left + width
    seams = {0: (left, left > 0), 1: (top, top > 0), 2: (right, right < size[1]), 3: (bottom, bottom < size[0])}
    whole = np.ones(len(boxes), bool)
    for side, (place, is_seam) in seams.items():
        if is_seam:
            whole &= np.abs(boxes[:, side] - place) > _TOUCH
    moved = {"boxes": boxes[whole], "scores": record["scores"][whole], "labels": record["labels"][whole]}
    if "masks" in record:
        moved["masks"] = np.empty(int(whole.sum()), object)
        moved["masks"][:] = [record["masks"][n] for n in np.flatnonzero(whole)]
    return moved


def _moved_mask(mask: dict[str, Any], window: Window, size: tuple[int, int]) -> dict[str, Any]:
    """Run lengths of a window as those of the picture."""
    return mask if window.size == size else run_lengths(of_run_lengths(mask), window.start, size)


def _distinct(boxes: np.ndarray, part: np.ndarray, rows: np.ndarray, nms_thresh: float) -> list[int]:
    """The rows, best first, without those that repeat a better one; part: the window that each box is of."""
    kept: list[int] = []
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for row in rows.tolist():
        others = np.array(kept, np.int64)
        corner = np.minimum(boxes[others, 2:], boxes[row, 2:]) - np.maximum(boxes[others, :2], boxes[row, :2])
        shared = np.prod(np.maximum(corner, 0), axis=1)
        iou = shared / np.maximum(area[others] + area[row] - shared, 1e-9)
        inside = (shared > _INSIDE * area[row]) & (part[others] != part[row])
        if not ((iou > nms_thresh) | inside).any():
            kept.append(row)
    return kept

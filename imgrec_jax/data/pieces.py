"""Windows of images as examples of their own, for what looks at large pictures piece by piece.

Shape letters: N boxes, H W image.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from imgrec_jax.data.ops import bits
from imgrec_jax.data.ops.geometry import box_areas, clip_boxes
from imgrec_jax.data.ops.targets import select_boxes
from imgrec_jax.data.source import Source

Place = tuple[int, int, int, int]  # (top, left, height, width)
VISIBLE = 0.5  # share of its area that a box must have in a window to count there
KEPT = 4  # decoded images, whose windows come one after the other


def cut(example: dict[str, Any], place: Place) -> dict[str, Any]:
    """A window of an example: its part of the image, its boxes with their masks, and "window" int32 [4]."""
    top, left, height, width = place
    whole = place == (0, 0, *example["image"].shape[:2])
    piece = {key: value for key, value in example.items() if whole or key not in ("proposals", "canvas")}
    piece["image"] = example["image"][top : top + height, left : left + width]
    piece["original_size"], piece["window"] = np.array([height, width], np.int32), np.array(place, np.int32)
    if "boxes" not in example or whole:
        return piece
    moved = example["boxes"] - np.array([left, top, left, top], np.float32)
    clipped = clip_boxes(moved, (height, width))
    piece = select_boxes({**piece, "boxes": clipped}, box_areas(clipped) > VISIBLE * box_areas(moved))
    if "box_mask" in piece:
        rows = piece["box_mask"][:, top : top + height]
        masks = (mask[:, left : left + width] for mask in bits.each(rows, example["image"].shape[1]))
        piece["box_mask"] = bits.pack_each(masks, (height, width))
    return piece


class Pieces:
    """A source whose examples are windows of another's images; "image_index" is the image's position there.

    Its `info.meta["sizes"]`, int [n, 2], are the windows' heights and widths; `whole` is the other source.
    """

    def __init__(self, source: Source, places: Iterable[Iterable[Place]]):
        """places: of each image its windows, in order."""
        self.whole = source
        self._at = [(image, place) for image, here in enumerate(places) for place in here]
        sizes = np.array([place[2:] for _, place in self._at], np.int64)
        self.info = replace(source.info, meta={**source.info.meta, "sizes": sizes})
        self._read = functools.lru_cache(KEPT)(source.__getitem__)

    def __len__(self) -> int:
        return len(self._at)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, place = self._at[index]
        return {**cut(self._read(image), place), "image_index": np.int32(image)}


def whole(source: Source) -> Source:
    """The source of whole images, of windows or of itself."""
    return source.whole if isinstance(source, Pieces) else source

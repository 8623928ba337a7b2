"""Single objects of a predicted foreground: numbered maps int32 [H, W], 0 where there is none.

Objects that touch are one connected component. `by_distance` parts them as a watershed of the distance does (Soille,
Morphological Image Analysis, 9.2): each has a middle that lies farther from the background than the neck between two of them.
"""

import itertools
from collections.abc import Callable

import cv2
import numpy as np

Separate = Callable[[np.ndarray], np.ndarray]

_SQUARE = np.ones((3, 3), np.uint8)
_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
_STEP = 1e-3  # a maximum of a float map stands out by more than this; pixels


def components(*, smallest: int = 0) -> Separate:
    """The 4-connected components of at least `smallest` pixels."""

    def separate(foreground: np.ndarray) -> np.ndarray:
        _, found = cv2.connectedComponents(foreground.astype(np.uint8), connectivity=4)
        return without_small(found, smallest)

    return separate


def by_distance(*, sigma: float = 1.0, height: float = 0.5, smallest: int = 20) -> Separate:
    """Components parted where they narrow.

    The distance of each pixel from the background is smoothed; maxima that stand out by `height` are the objects' middles, and
    the objects grow from there until they meet, so that each is in one piece.

    Args:
      sigma: of the Gaussian that smooths, pixels; 0 leaves the distance as it is.
      height: pixels of distance by which two middles must rise above the neck between them. A larger one parts less.
      smallest: pixels of an object; less is none.
    """

    def separate(foreground: np.ndarray) -> np.ndarray:
        mask = np.pad(foreground, 1).astype(np.uint8)  # what lies beyond the image is background
        distance = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        if sigma:
            distance = cv2.GaussianBlur(distance, (0, 0), sigma) * mask
        found = np.zeros(mask.shape, np.int32)
        _, whole, boxes, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
        count = 0
        for number in range(1, len(boxes)):
            left, top, width, height_ = boxes[number, :4]
            place = np.s_[top - 1 : top + height_ + 1, left - 1 : left + width + 1]
            own = whole[place] == number
            parts = _parted(np.where(own, distance[place], 0).astype(np.float32), own, height)
            found[place][own] = parts[own] + count
            count += int(parts.max(initial=0))
        return without_small(found[1:-1, 1:-1], smallest)

    return separate


NAMES: dict[str, Callable[..., Separate]] = {"components": components, "distance": by_distance}


def _parted(distance: np.ndarray, own: np.ndarray, height: float) -> np.ndarray:
    """The parts 1, 2, ... of one component."""
    # A dome that stands out by less than `height` is flat after the first reconstruction, so the second finds its neighbours'.
    level = _reconstructed(distance - max(height, _STEP), distance)
    tops = (level - _reconstructed(level - _STEP, level) > _STEP / 2) & own
    count, middles = cv2.connectedComponents(tops.astype(np.uint8), connectivity=8)
    if count <= 2:
        return own.astype(np.int32)
    parts, rings = middles.astype(np.float32), itertools.cycle((_CROSS, _SQUARE))  # in turn they grow octagons, nearly discs
    while (free := own & (parts == 0)).any():
        parts = np.where(free, cv2.dilate(parts, next(rings)), parts)
    return parts.astype(np.int32)


def _reconstructed(marker: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The morphological reconstruction by dilation of `marker` under `mask`, float32 [h, w] both."""
    while True:
        grown = np.minimum(cv2.dilate(marker, _SQUARE), mask)
        if np.array_equal(grown, marker):
            return grown
        marker = grown


def without_small(found: np.ndarray, smallest: int) -> np.ndarray:
    """The objects of at least `smallest` pixels, numbered without holes; int32."""
    pixels = np.bincount(found.ravel())
    kept = pixels >= max(smallest, 1)
    kept[0] = False
    numbers = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    return numbers[found]

"""Single objects of a predicted foreground: numbered maps int32 [H, W], 0 where there is none.

Objects that touch are one connected component. `by_distance` parts them as a watershed of the distance does (Soille,
Morphological Image Analysis, 9.2): each has a middle that lies farther from the background than the neck between two of them.
"""

import itertools
from collections.abc import Callable

import cv2
import numpy as np

Separate = Callable[[np.ndarray], np.ndarray]

_AROUND = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]  # (y, x) of neighbours
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
        if not foreground.any():
            return np.zeros(foreground.shape, np.int32)
        mask = np.pad(foreground, 1).astype(np.uint8)  # what lies beyond the image is background
        distance = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        if sigma:
            distance = cv2.GaussianBlur(distance, (0, 0), sigma) * mask
        _, whole = cv2.connectedComponents(mask, connectivity=4)
        parts = _grown(_middles(distance, whole, max(height, _STEP)), whole)
        return without_small(parts[1:-1, 1:-1], smallest)

    return separate


NAMES: dict[str, Callable[..., Separate]] = {"components": components, "distance": by_distance}


def _middles(distance: np.ndarray, whole: np.ndarray, height: float) -> np.ndarray:
    """The middles 1, 2, ... of all components: the pixels of a maximum that rises by more than `height` above the highest neck
    to a higher one, and those around it that are less than `height` lower; int32 [h, w].

    Each pixel belongs to the maximum that the steepest way up leads to; these are joined over their necks, the highest first.
    """
    width = distance.shape[1]
    inner, number = distance[1:-1, 1:-1], np.arange(distance.size, dtype=np.int32).reshape(distance.shape)
    upward, highest = number.copy(), distance.copy()
    for y, x in _AROUND:  # of equal ones the last, so that a plateau has an order, too
        near = np.s_[1 + y : len(distance) - 1 + y, 1 + x : width - 1 + x]
        best, to = highest[1:-1, 1:-1], upward[1:-1, 1:-1]
        better = (distance[near] > best) | ((distance[near] == best) & (number[near] > to))
        better &= (whole[near] == whole[1:-1, 1:-1]) & (inner > 0)
        np.copyto(best, distance[near], where=better)
        np.copyto(to, number[near], where=better)
    top = upward.ravel()
    while not np.array_equal(further := top[top], top):
        top = further
    tops = np.flatnonzero((top == number.ravel()) & (whole.ravel() > 0))
    number.ravel()[tops] = np.arange(len(tops))
    basin = np.where(whole > 0, number.ravel()[top].reshape(distance.shape), 0)

    pairs, necks = [], []
    for y, x in _AROUND[4:]:
        near = np.s_[1 + y : len(distance) - 1 + y, 1 + x : width - 1 + x]
        at = (whole[near] == whole[1:-1, 1:-1]) & (whole[near] > 0) & (basin[near] != basin[1:-1, 1:-1])
        pairs.append(np.sort(np.stack([basin[near][at], basin[1:-1, 1:-1][at]]), axis=0))
        necks.append(np.minimum(distance[near][at], inner[at]))
    (a, b), neck = np.concatenate(pairs, axis=1).astype(np.int64), np.concatenate(necks)
    order = np.argsort(-neck, kind="stable")
    order = order[np.sort(np.unique(a[order] * len(tops) + b[order], return_index=True)[1])]  # the highest of each pair
    heights = distance.ravel()[tops].tolist()
    owner, joined = list(range(len(tops))), list(range(len(tops)))
    for one, other, saddle in zip(a[order].tolist(), b[order].tolist(), neck[order].tolist(), strict=True):
        high, low = sorted((_root(joined, one), _root(joined, other)), key=lambda i: (heights[i], i), reverse=True)
        if high != low:
            joined[low] = high
            if heights[low] - saddle <= height + _STEP / 2:
                owner[low] = high
    of = np.array(owner, np.int32)
    while not np.array_equal(further := of[of], of):
        of = further
    level = distance.ravel()[tops][of] - height - _STEP / 2
    _, found = cv2.connectedComponents(((whole > 0) & (distance > level[basin])).astype(np.uint8), connectivity=4)
    middles = np.zeros(int(found.max(initial=0)) + 1, np.int32)
    own = np.unique(found.ravel()[tops[of == np.arange(len(of))]])
    middles[own] = np.arange(1, len(own) + 1)
    return middles[found]


def _root(parents: list[int], at: int) -> int:
    while parents[at] != at:
        parents[at] = parents[parents[at]]
        at = parents[at]
    return at


def _grown(middles: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Middles grown to all of their components, in steps of a cross and a square: octagons, nearly discs."""
    of = np.zeros(int(middles.max(initial=0)) + 1, np.int32)  # the component of each middle
    of[middles] = whole
    several = np.bincount(of[1:], minlength=int(whole.max(initial=0)) + 1) > 1
    alone = np.zeros(len(several), np.int32)
    alone[of[1:]] = np.arange(1, len(of))
    alone[several] = 0
    parts, place, width = np.where(middles > 0, middles, alone[whole]).ravel(), whole.ravel(), middles.shape[1]
    steps = np.array([y * width + x for y, x in _AROUND])
    cross = np.array([y * width + x for y, x in _AROUND if not (x and y)])
    before, last = np.zeros(0, np.int64), np.flatnonzero((middles > 0) & several[whole])
    rings = itertools.cycle((cross, steps))
    while len(before) + len(last):
        around = next(rings)
        source = last if around is cross else np.concatenate([before, last])  # whose corners are not yet taken
        to = (source[:, None] + around).ravel()
        free = (parts[to] == 0) & (place[to] == place[source].repeat(len(around)))
        to, labels = to[free], parts[source].repeat(len(around))[free]
        np.maximum.at(parts, to, labels)
        before, last = last, np.unique(to)
    return parts.reshape(middles.shape)


def without_small(found: np.ndarray, smallest: int) -> np.ndarray:
    """The objects of at least `smallest` pixels, numbered without holes; int32."""
    pixels = np.bincount(found.ravel())
    kept = pixels >= max(smallest, 1)
    kept[0] = False
    numbers = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    return numbers[found]

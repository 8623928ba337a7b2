"""COCO's matching and its precision and recall, over all images, classes, areas and thresholds at once.

What pycocotools computes one image and class at a time, to the last bit: each detection by falling score takes the free object
of its image and class with the highest IoU of at least the threshold, the later one of equals; an object that counts before one
that is ignored (crowds, and what lies outside the range of areas). The definition is that of Lin et al., "Microsoft COCO",
2014, as the program of its authors has it (cocoapi, cocoeval.py: evaluateImg, accumulate).

Shape letters: N detections, G objects, I images, K classes, A ranges of areas, T IoU thresholds, R recalls, M limits of
detections, P pairs of a detection and an object.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))  # all, small, medium, large: pixels
LIMITS = (1, 10, 100)  # detections of an image and class


class Regions(NamedTuple):
    """Objects or detections.

    Attributes:
      image, label: int64 [n], positions of image and class.
      area: float64 [n].
      crowd: bool [n]; False for detections.
      named: bool [n]; False for an object whose id is 0, which cocoapi takes for none when it counts.
      score: float64 [n]; 0 for objects.
    """

    image: np.ndarray
    label: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    named: np.ndarray
    score: np.ndarray


class Matched(NamedTuple):
    """Detections by class, then by image, then by falling score, at most the largest of LIMITS for each image and class.

    Attributes:
      image, label: int64 [N]; rank: int64 [N], within image and class; score: float64 [N].
      hit, ignored: bool [A, T, N], whether it has an object, and whether it counts for nothing.
      objects: int64 [A, I, K], objects that count.
    """

    image: np.ndarray
    label: np.ndarray
    rank: np.ndarray
    score: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    objects: np.ndarray


def match(
    detected: Regions,
    objects: Regions,
    images: int,
    classes: int,
    overlaps: Callable[[np.ndarray, np.ndarray], np.ndarray],
    areas: tuple[tuple[float, float], ...] = AREAS,
) -> Matched:
    """Matches detections with objects.

    Args:
      images, classes: how many.
      overlaps: (positions of detections [P], of objects [P]) -> IoU, or for crowds the share of the detection inside, [P].
        Pairs of an image and class come together.
    """
    order = np.lexsort((-detected.score, detected.image, detected.label))  # stable, as a mergesort of each image is
    group = detected.label[order] * images + detected.image[order]
    rank = _within(group)
    keep = rank < LIMITS[-1]
    order, group, rank = order[keep], group[keep], rank[keep]
    low, high = np.array(areas).T[:, :, None]
    outside = (detected.area[order] < low) | (detected.area[order] > high)  # [A, N]
    uncounted = objects.crowd | (objects.area < low) | (objects.area > high)  # [A, G]

    d, g = _pairs(group, objects.label * images + objects.image)
    iou = overlaps(order[d], g)
    limits = np.minimum(IOUS, 1 - 1e-10)
    near = iou >= limits.min()
    d, g, iou = d[near], g[near], iou[near]
    hit = np.zeros((len(areas), len(IOUS), len(order)), np.bool_)
    ignored = np.zeros_like(hit)
    taken = np.zeros((len(areas), len(IOUS), len(objects.image)), np.bool_)
    # Of each detection by rising IoU, of equal ones in the order of the objects: the last one that is free is the one.
    sort = np.lexsort((g, iou, d))
    d, g, iou = d[sort], g[sort], iou[sort]
    first, of_pair = np.unique(d, return_index=True, return_inverse=True)[1:]
    turn = _within(group[d[first]])  # the detections of an image and class choose one after the other
    by_turn = np.argsort(turn[of_pair], kind="stable")
    stops = [0, *np.cumsum(np.bincount(turn[of_pair])).tolist()]
    for start, stop in itertools.pairwise(stops):
        mine = by_turn[start:stop]
        theirs, values = g[mine], iou[mine]
        starts = np.flatnonzero(np.diff(d[mine], prepend=-1))
        free = (~taken[:, :, theirs] | objects.crowd[theirs]) & (values >= limits[:, None])  # [A, T, P]
        place = np.arange(1, len(mine) + 1, dtype=np.int32) + ~uncounted[:, None, theirs] * np.int32(len(mine))
        chosen = np.maximum.reduceat(np.where(free, place, 0), starts, axis=2)  # 0: none
        a, t, n = np.nonzero(chosen)
        which = theirs[(chosen[a, t, n] - 1) % len(mine)]
        taken[a, t, which] = True
        who = d[mine[starts]][n]
        hit[a, t, who] = objects.named[which]
        ignored[a, t, who] = uncounted[a, which]
    ignored |= ~hit & outside[:, None]
    counted = np.zeros((len(areas), images, classes), np.int64)
    a, n = np.nonzero(~uncounted)
    np.add.at(counted, (a, objects.image[n], objects.label[n]), 1)
    image, label, score = detected.image[order], detected.label[order], detected.score[order]
    return Matched(image, label, rank, score, hit, ignored, counted)


def by_score(matched: Matched, label: int) -> np.ndarray:
    """Positions of the detections of a class by falling score; of equal ones the order of the images."""
    start, stop = np.searchsorted(matched.label, [label, label + 1])
    return start + np.argsort(-matched.score[start:stop], kind="stable")


def tables(matched: Matched) -> tuple[np.ndarray, np.ndarray]:
    """(precision [T, R, K, A, M], recall [T, K, A, M]); -1 where a class has no object that counts."""
    areas, thresholds, _ = matched.hit.shape
    classes = matched.objects.shape[2]
    precision = np.full((thresholds, len(RECALLS), classes, areas, len(LIMITS)), -1.0)
    recall = np.full((thresholds, classes, areas, len(LIMITS)), -1.0)
    objects = matched.objects.sum(1)  # [A, K]
    for k in range(classes):
        ordered, before = by_score(matched, k), -1
        for m, limit in enumerate(LIMITS):
            mine = ordered[matched.rank[ordered] < limit]
            if len(mine) == before:
                same = objects[:, k] > 0
                precision[:, :, k, same, m] = precision[:, :, k, same, m - 1]
                recall[:, k, same, m] = recall[:, k, same, m - 1]
                continue
            before = len(mine)
            for a in np.flatnonzero(objects[:, k]).tolist():
                values = _curve(matched.hit[a][:, mine], matched.ignored[a][:, mine], int(objects[a, k]))
                precision[:, :, k, a, m], recall[:, k, a, m] = values
    return precision, recall


def _curve(hit: np.ndarray, ignored: np.ndarray, objects: int) -> tuple[np.ndarray, np.ndarray]:
    """(precision [T, R], the highest at this recall or a higher one; recall [T]); hit, ignored: bool [T, n] by falling score.

    Precision rises, and recall changes, only where a detection has an object: those places decide both.
    """
    true = hit & ~ignored
    row, at = np.nonzero(true)
    found = np.bincount(row, minlength=len(hit))
    number = np.arange(1, len(row) + 1) - np.repeat(np.cumsum(found) - found, found)  # 1, 2, ... in each row
    said = np.cumsum(~ignored, axis=1, dtype=np.int32)[row, at]
    best = np.zeros((len(hit), objects + 1))
    best[row, number - 1] = number / (said + np.spacing(1))
    best = np.maximum.accumulate(best[:, ::-1], axis=1)[:, ::-1]
    place = np.searchsorted(np.arange(1, objects + 1) / objects, RECALLS, side="left")
    return best[:, place], found / objects


def _within(group: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... in each run of equal values: int64 [n]."""
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    return np.arange(len(group)) - np.repeat(starts, np.diff(starts, append=len(group)))


def _pairs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions (i, j) of all pairs with first[i] == second[j], by i, then j; `first` is sorted."""
    order = np.argsort(second, kind="stable")
    begin, end = (np.searchsorted(second[order], first, side=side) for side in ("left", "right"))
    counts = end - begin
    i = np.repeat(np.arange(len(first)), counts)
    offset = np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)
    return i, order[np.repeat(begin, counts) + offset]

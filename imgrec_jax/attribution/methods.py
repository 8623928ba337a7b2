"""What in an image speaks for a score: methods that need only the score, and those that look at a layer.

A score is a pure function of images, float32 [N, H, W, C] 0..1 -> float32 [N]. Every method explains one image [H, W, C] and
gives an attribution of each value [H, W, C] or of each pixel [H, W]; `heat` makes one map of it. A layer is "watched": a
function images -> (scores, maps [N, h, w, F]), and its gradient one of shifts added to the maps (`layers.added`).

Shape letters: N images of a call, H W C image, h w F map of a layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

Score = Callable[[jax.Array], jax.Array]
AT_ONCE = 32  # images of one call at most


class Pace(NamedTuple):
    """How the calls of a method that takes many follow each other.

    Attributes:
      pixels: height x width x images of one call at most; a gradient keeps every layer's map of them.
      between: called before each call; what it raises ends the method.
    """

    pixels: int = 2**21
    between: Callable[[], None] = lambda: None

    def at_once(self, shape: tuple[int, ...]) -> int:
        """Images [H, W, C] of one call."""
        return max(min(self.pixels // (shape[0] * shape[1]), AT_ONCE), 1)


PACE = Pace()


def in_chunks(function: Score, images: np.ndarray, pace: Pace = PACE) -> np.ndarray:
    """function(images) of any number N, some at a time, the last call filled up so that one program serves all."""
    parts = _parts(function, lambda start, end: images[start:end], len(images), images.shape[1:], pace)
    return np.concatenate([found for _, _, found in parts])


def weighted_sum(
    function: Score,
    make: Callable[[int, int], np.ndarray],
    weights: np.ndarray,
    shape: tuple[int, ...],
    pace: Pace = PACE,
) -> np.ndarray:
    """The sum of weights [N] times function(images), of which no more than a call's are in memory; float64 [H, W, C].

    make: (start, end) -> these of the N images, asked for in their order. shape: (H, W, C).
    """
    total = np.zeros(shape)
    for start, end, found in _parts(function, make, len(weights), shape, pace):
        total += np.tensordot(weights[start:end].astype(np.float32), found, 1)
    return total


def _parts(
    function: Score, make: Callable[[int, int], np.ndarray], count: int, shape: tuple[int, ...], pace: Pace
) -> Iterator[tuple[int, int, np.ndarray]]:
    size = pace.at_once(shape)
    for start in range(0, count, size):
        end = min(start + size, count)
        images = make(start, end)
        filled = np.resize(images, (size, *shape)) if count > size else images
        pace.between()
        yield start, end, np.asarray(function(jnp.asarray(filled, jnp.float32)))[: end - start]


def gradient_of(score: Score) -> Score:
    """images [N, H, W, C] -> the gradient of each one's score by its values, the same shape."""
    return functools.partial(_gradient, score if isinstance(score, Partial) else Partial(score))


@jax.jit
def _gradient(score: Any, images: jax.Array) -> jax.Array:
    return jax.grad(lambda images: jnp.sum(score(images)))(images)


@jax.jit
def _value(score: Any, images: jax.Array) -> jax.Array:
    return score(images)


def gradients(score: Score, image: np.ndarray) -> np.ndarray:
    """Simonyan et al. 2013 (arXiv 1312.6034): the gradient itself, [H, W, C]."""
    return np.asarray(gradient_of(score)(jnp.asarray(image[None], jnp.float32)))[0]


def smoothgrad(
    score: Score, image: np.ndarray, *, draws: int = 50, noise: float = 0.15, seed: int = 0, pace: Pace = PACE
) -> np.ndarray:
    """Smilkov et al. 2017 (arXiv 1706.03825): the mean gradient over `draws` images with Gaussian noise, whose standard
    deviation is `noise` of the image's range. [H, W, C]."""
    spread, rng = np.float32(noise * float(image.max() - image.min())), np.random.default_rng(seed)

    def noisy(start: int, end: int) -> np.ndarray:
        return image + spread * rng.standard_normal((end - start, *image.shape), np.float32)

    total = weighted_sum(gradient_of(score), noisy, np.ones(draws), image.shape, pace)
    return (total / draws).astype(np.float32)


class Integrated(NamedTuple):
    """Attributes:
    attribution: [H, W, C].
    difference: score(image) - score(baseline), which the attributions should add up to.
    gap: how far they are from it, as a share of it.
    steps: points of the path.
    """

    attribution: np.ndarray
    difference: float
    gap: float
    steps: int


def integrated_gradients(
    score: Score,
    image: np.ndarray,
    *,
    baseline: np.ndarray | float = 0.0,
    steps: int = 50,
    most: int = 400,
    bound: float = 0.01,
    pace: Pace = PACE,
) -> Integrated:
    """Sundararajan et al. 2017 (arXiv 1703.01365), by Gauss-Legendre quadrature along the straight path from the baseline.

    The points are doubled until the attributions add up to the difference of the scores within `bound`, or there are `most`.
    """
    start = np.broadcast_to(np.asarray(baseline, np.float32), image.shape)
    grad = gradient_of(score)
    value = functools.partial(_value, score if isinstance(score, Partial) else Partial(score))
    ends = in_chunks(value, np.stack([image, start]), pace).astype(np.float64)
    difference = float(ends[0] - ends[1])
    while True:
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        places, weights = (nodes + 1) / 2, weights / 2
        path = functools.partial(_between, start, image, places.astype(np.float32))
        mean = weighted_sum(grad, path, weights, image.shape, pace)
        attribution = (image - start) * mean
        gap = abs(float(attribution.sum()) - difference) / max(abs(difference), 1e-12)
        if gap <= bound or 2 * steps > most:
            return Integrated(attribution.astype(np.float32), difference, gap, steps)
        steps *= 2


def _between(first: np.ndarray, last: np.ndarray, places: np.ndarray, start: int, end: int) -> np.ndarray:
    """The images at places [start:end] of the straight path, float32 [end - start, H, W, C]."""
    return first + places[start:end, None, None, None] * (last - first)


class Looked(NamedTuple):
    """A layer's map and the gradient of the score by it, of one image, float32 [h, w, F] each."""

    map: np.ndarray
    gradient: np.ndarray


def gradcam(looked: Looked) -> np.ndarray:
    """Selvaraju et al. 2017 (arXiv 1610.02391): the map weighed by its mean gradients, what is negative cut off. [h, w].

    With a score summed over the pixels of a class it is Seg-Grad-CAM (Vinogradova et al. 2020, arXiv 2002.11434). With the
    score of a box the mean gradients forget where the box is, and other objects light up, too: see `hirescam`.
    """
    weights = looked.gradient.mean(axis=(0, 1))
    return np.maximum(looked.map @ weights, 0)


def hirescam(looked: Looked) -> np.ndarray:
    """Draelos and Carin 2020 (arXiv 2011.08891): the map times its gradient at each place, negatives cut off. [h, w]."""
    return np.maximum((looked.map * looked.gradient).sum(axis=2), 0)


def gradcam_plus_plus(looked: Looked) -> np.ndarray:
    """Chattopadhay et al. 2018 (arXiv 1710.11063), equation 19 for a score that is exponentiated. [h, w]."""
    g, total = looked.gradient, looked.map.sum(axis=(0, 1))
    below = 2 * g**2 + total * g**3
    alpha = np.where(g != 0, g**2 / np.where(below != 0, below, 1.0), 0.0)
    weights = (alpha * np.maximum(g, 0)).sum(axis=(0, 1))
    return np.maximum(looked.map @ weights, 0)


def occlusion(
    score: Score, image: np.ndarray, *, window: int | None = None, stride: int | None = None, fill: np.ndarray | float = 0.0
) -> np.ndarray:
    """Zeiler and Fergus 2014 (arXiv 1311.2901): how much the score falls when a square is filled, as the mean over the squares
    that hold a pixel. [H, W].

    window: side of the square, an eighth of the shorter side unless given; stride: half of it unless given.
    """
    height, width = image.shape[:2]
    window = window or max(min(height, width) // 8, 1)
    stride = stride or max(window // 2, 1)
    rows, columns = (sorted({*range(0, max(n - window, 0), stride), max(n - window, 0)}) for n in (height, width))
    places = [(y, x) for y in rows for x in columns]
    whole = float(in_chunks(score, image[None])[0])
    total, count = np.zeros((height, width)), np.zeros((height, width))
    for start in range(0, len(places), AT_ONCE):
        part = places[start : start + AT_ONCE]
        hidden = np.repeat(image[None], len(part), axis=0)
        for one, (y, x) in zip(hidden, part, strict=True):
            one[y : y + window, x : x + window] = fill
        filled = np.resize(hidden, (AT_ONCE, *image.shape)) if len(places) > AT_ONCE else hidden
        for value, (y, x) in zip(in_chunks(score, filled), part, strict=False):
            total[y : y + window, x : x + window] += whole - float(value)
            count[y : y + window, x : x + window] += 1
    return (total / np.maximum(count, 1)).astype(np.float32)


def rise(score: Score, image: np.ndarray, *, masks: int = 1000, cells: int = 8, keep: float = 0.5, seed: int = 0) -> np.ndarray:
    """Petsiuk et al. 2018 (arXiv 1806.07421): the mean of random masks weighed by the score of what they leave. [H, W].

    With the score of a box it is D-RISE (Petsiuk et al. 2021, arXiv 2006.03204).

    Args:
      masks: how many.
      cells: of a mask's coarse grid, which is enlarged bilinearly and shifted at random.
      keep: probability of a cell.
    """
    import cv2

    rng = np.random.default_rng(seed)
    height, width = image.shape[:2]
    tall, wide = -(-height // cells), -(-width // cells)
    total, seen = np.zeros((height, width)), np.zeros((height, width))
    for start in range(0, masks, AT_ONCE):
        drawn = np.empty((AT_ONCE, height, width), np.float32)
        for one in drawn:
            coarse = (rng.random((cells + 1, cells + 1)) < keep).astype(np.float32)
            large = cv2.resize(coarse, ((cells + 1) * wide, (cells + 1) * tall), interpolation=cv2.INTER_LINEAR)
            y, x = rng.integers(0, tall + 1), rng.integers(0, wide + 1)
            one[...] = large[y : y + height, x : x + width]
        values = in_chunks(score, image * drawn[..., None]).astype(np.float64)
        count = min(AT_ONCE, masks - start)
        total += np.tensordot(values[:count], drawn[:count], 1)
        seen += drawn[:count].sum(0)
    return (total / np.maximum(seen, 1e-9)).astype(np.float32)


def heat(attribution: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An attribution of values, of pixels or of a layer's cells as one map of `size` within 0..1, float32 [H, W].

    Of the three colours the one with the largest magnitude counts. Single outliers are cut at the 99.9th percentile.
    """
    import cv2

    flat = np.abs(attribution).max(axis=2) if attribution.ndim == 3 else attribution
    flat = flat.astype(np.float32)
    if flat.shape != size:
        flat = cv2.resize(flat, size[::-1], interpolation=cv2.INTER_LINEAR)
    low, high = float(flat.min()), float(np.percentile(flat, 99.9))
    return np.clip((flat - low) / max(high - low, 1e-12), 0, 1)

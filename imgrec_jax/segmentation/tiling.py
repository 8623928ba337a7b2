"""Prediction of large images by overlapping windows, and the mean over versions of an image.

Everything is a function around `predict`, [N, H, W, C] -> [N, H, W, K], with static shapes.
Shape letters: B batch, N images or windows, H W image, h w window, C channels, K classes, T windows of an image.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

Predict = Callable[[jax.Array], jax.Array]
Size = tuple[int, int]

# Standard deviation of the blending weights in window sides (Isensee et al. 2021, nnU-Net: an eighth).
BLEND_SIGMA = 1 / 8
# No pixel of a window weighs less than this share of its centre, so that far corners are not lost to rounding.
BLEND_FLOOR = 1e-3


def window_starts(size: int, window: int, overlap: float) -> np.ndarray:
    """First pixels [n] of the fewest evenly spread windows that cover `size` and share `overlap` of their side or more, but for
    the pixel that their places are rounded by."""
    if window >= size:
        return np.zeros(1, np.int64)
    step = max(window * (1 - overlap), 1.0)
    count = math.ceil((size - window) / step) + 1
    return np.round(np.linspace(0, size - window, count)).astype(np.int64)


def blending(size: Size, window: Size, overlap: float) -> tuple[np.ndarray, np.ndarray]:
    """Windows over an image of `size` and their weights: (starts int [T, 2], weights float32 [T, h, w]).

    The weights are Gaussians around the windows' centres; at every pixel those of the windows that cover it sum to one.
    """
    starts = np.stack(np.meshgrid(*map(window_starts, size, window, (overlap, overlap)), indexing="ij"), -1).reshape(-1, 2)
    rows, columns = (np.exp(-0.5 * ((np.arange(n) + 0.5 - n / 2) / (BLEND_SIGMA * n)) ** 2) for n in window)
    bell = np.maximum(rows[:, None] * columns, BLEND_FLOOR)
    total = np.zeros(size)
    for y, x in starts:
        total[y : y + window[0], x : x + window[1]] += bell
    weights = [bell / total[y : y + window[0], x : x + window[1]] for y, x in starts]
    return starts, np.stack(weights).astype(np.float32)


def no_context(length: int) -> tuple[int, int]:
    """For networks whose output has the size of their input."""
    return 0, 0


def sliding_window(
    predict: Predict,
    image: jax.Array,
    *,
    window: Size | None = None,
    overlap: float = 0.25,
    windows_per_call: int = 8,
    context: Callable[[int], tuple[int, int]] = no_context,
) -> jax.Array:
    """Predicts windows of an image and blends them. [B, H, W, C] -> [B, H, W, K].

    One window that covers the image gives `predict(image)` itself.

    Args:
      predict: [N, h + context, w + context, C] -> [N, h, w, K]; rows and columns beyond h and w are cut off.
      window: (h, w), cut down to the image; None is the whole image. Must suit the network's strides.
      overlap: least share of its side that a window has in common with the next.
      windows_per_call: of every image, how many are predicted at a time.
      context: h -> pixels (before, after) a window that the network needs beside it (the overlap-tile strategy of Ronneberger
        et al. 2015, arXiv 1505.04597, figure 2); beyond the image's border they are mirrored.
    """
    batch, height, width, channels = image.shape
    h, w = window = (height, width) if window is None else (min(window[0], height), min(window[1], width))
    (top, bottom), (left, right) = context(h), context(w)
    padded = jnp.pad(image, ((0, 0), (top, bottom), (left, right), (0, 0)), mode="reflect")
    starts, weights = blending((height, width), window, overlap)
    if len(starts) == 1:
        return predict(padded)[:, :h, :w]

    def cut(start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(padded, (0, *start, 0), (batch, h + top + bottom, w + left + right, channels))

    def step(total: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        starts, weights = inputs
        windows = jax.vmap(cut)(starts)
        probs = predict(windows.reshape(-1, *windows.shape[2:]))[:, :h, :w].reshape(len(starts), batch, h, w, -1)
        for i in range(len(starts)):
            place = (0, *starts[i], 0)
            there = jax.lax.dynamic_slice(total, place, (batch, h, w, total.shape[3]))
            total = jax.lax.dynamic_update_slice(total, there + probs[i] * weights[i][..., None], place)
        return total, None

    calls = -(-len(starts) // windows_per_call)
    filled = calls * windows_per_call - len(starts)  # windows of weight zero fill the last call
    starts = np.concatenate([starts, np.zeros((filled, 2), np.int64)]).astype(np.int32).reshape(calls, -1, 2)
    weights = np.concatenate([weights, np.zeros((filled, h, w), np.float32)]).reshape(calls, -1, h, w)
    classes = jax.eval_shape(lambda: predict(cut(starts[0, 0]))).shape[-1]
    zero = jnp.zeros((batch, height, width, classes), jnp.float32)
    # XLA's CPU backend runs a convolution inside a loop on one thread.
    unroll = calls if jax.default_backend() == "cpu" else 1
    total, _ = jax.lax.scan(step, zero, (jnp.asarray(starts), jnp.asarray(weights)), unroll=unroll)
    return total


# Elements of the square's symmetry group: (quarter turns, mirrored first).
DIHEDRAL: dict[str, tuple[tuple[int, bool], ...]] = {
    "none": ((0, False),),
    "flips": ((0, False), (0, True), (2, False), (2, True)),
    "rotations": ((0, False), (1, False), (2, False), (3, False)),
    "d4": tuple((turns, mirrored) for mirrored in (False, True) for turns in range(4)),
}
# Pixels to the bottom right: 5 is off the grid of strides 2, 4, 8 and 16, by 1, 1, 5 and 5 pixels.
SHIFTS = (0, 5)
TEST_TIME = (*DIHEDRAL, "rotations7", "shifts")


def averaged(predict: Predict, image: jax.Array, versions: str) -> jax.Array:
    """The mean prediction over versions of an image, each put back in place. [B, H, W, C] -> [B, H, W, K].

    Args:
      versions: "none"; "flips" (4), "rotations" (4 quarter turns) or "d4" (all 8), which move pixels without mixing them;
        "rotations7": seven rotations, as U-Net averaged its predictions (Ronneberger et al. 2015, section 4; the paper does not
        give the angles: here they are spread evenly over the circle); "shifts": moved by each of `SHIFTS`, mirrored at the
        border, so that a strided network meets a pixel at two phases of its grid.

    Raises:
      ValueError: unknown `versions`.
    """
    if versions == "rotations7":
        return _averaged_rotations(predict, image, 7)
    if versions == "shifts":
        return _mean([_shifted(predict, image, pixels) for pixels in SHIFTS])
    if versions not in DIHEDRAL:
        raise ValueError(f"test-time versions {versions!r} are unknown; choose one of {TEST_TIME}")
    # Versions of one shape are one batch: eight copies of a network compile for several times as long, for each size of image.
    by_shape: dict[Size, list[tuple[int, bool]]] = {}
    for turns, mirrored in DIHEDRAL[versions]:
        height, width = image.shape[1:3]
        by_shape.setdefault((height, width) if turns % 2 == 0 else (width, height), []).append((turns, mirrored))
    predictions = []
    for group in by_shape.values():
        versions_of = [jnp.rot90(image[:, :, ::-1] if mirrored else image, turns, axes=(1, 2)) for turns, mirrored in group]
        found = jnp.split(predict(jnp.concatenate(versions_of)), len(group))
        for (turns, mirrored), version in zip(group, found, strict=True):
            back = jnp.rot90(version, -turns, axes=(1, 2))
            predictions.append(back[:, :, ::-1] if mirrored else back)
    return _mean(predictions)


def _mean(predictions: Sequence[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, predictions) / len(predictions)


def _shifted(predict: Predict, image: jax.Array, pixels: int) -> jax.Array:
    moved = jnp.pad(image, ((0, 0), (pixels, 0), (pixels, 0), (0, 0)), mode="reflect")
    return predict(moved)[:, pixels:, pixels:]


def _averaged_rotations(predict: Predict, image: jax.Array, count: int) -> jax.Array:
    """Corners that a rotation turns out of the canvas are left out of its share of the mean."""
    size = (image.shape[1], image.shape[2])
    total, weight = predict(image), np.ones((*size, 1), np.float32)
    for k in range(1, count):
        there, back = rotation_grid(size, 2 * np.pi * k / count), rotation_grid(size, -2 * np.pi * k / count)
        inside = np.all((back >= 0) & (back <= np.array(size)[:, None, None] - 1), axis=0)[..., None].astype(np.float32)
        total = total + sample(predict(sample(image, there)), back) * inside
        weight = weight + inside
    return total / weight


def rotation_grid(size: Size, angle: float) -> np.ndarray:
    """Where each pixel of an image turned by `angle` radians about its centre comes from: float32 [2, H, W] (row, column)."""
    centre = (np.array(size) - 1)[:, None, None] / 2
    y, x = np.indices(size) - centre
    rotated = np.stack([np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x])
    return (rotated + centre).astype(np.float32)


def sample(image: jax.Array, grid: np.ndarray) -> jax.Array:
    """Bilinear samples at `grid` [2, H, W], mirrored outside. [B, H, W, C] -> [B, H, W, C]."""

    def one(plane: jax.Array) -> jax.Array:
        return jax.scipy.ndimage.map_coordinates(plane, list(grid), order=1, mode="mirror")

    return jax.vmap(jax.vmap(one, in_axes=2, out_axes=2))(image)

"""Resizing of feature maps and logits exactly as torch.nn.functional.interpolate computes it.

Every method is a matrix per axis, so it costs two small matrix products on any backend and its transpose is the
gradient. Shape letters: B batch, H W input, h w output, C channels.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from imgrec_jax.ops.precision import single


def linear_weights(size: int, target: int) -> np.ndarray:
    """[target, size] weights of linear interpolation, half-pixel centres (align_corners=False), no antialiasing.

    Sample i sits at (i + 0.5) * size / target - 0.5, at least 0; beyond the last centre the last value is repeated
    (aten/src/ATen/native/UpSample.h, area_pixel_compute_source_index).
    """
    position = np.maximum((np.arange(target, dtype=np.float32) + 0.5) * np.float32(size / target) - 0.5, 0)
    low = np.minimum(np.floor(position).astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    fraction = (position - low).astype(np.float32)
    weights = np.zeros((target, size), np.float32)
    rows = np.arange(target)
    np.add.at(weights, (rows, low), 1 - fraction)
    np.add.at(weights, (rows, high), fraction)
    return weights


def average_weights(size: int, target: int) -> np.ndarray:
    """[target, size] weights of adaptive average pooling: cell i averages [floor(i s / t), ceil((i + 1) s / t))."""
    weights = np.zeros((target, size), np.float32)
    for i in range(target):
        start, stop = i * size // target, -(-(i + 1) * size // target)
        weights[i, start:stop] = 1 / (stop - start)
    return weights


def _apply(x: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    out = jnp.einsum("hH,bHWc->bhWc", rows, single(x), precision="highest")
    return jnp.einsum("wW,bhWc->bhwc", columns, out, precision="highest").astype(x.dtype)


def resize_bilinear(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """x [B, H, W, C] -> [B, h, w, C], bilinear with align_corners=False and no antialiasing."""
    if x.shape[1:3] == tuple(size):
        return x
    return _apply(x, linear_weights(x.shape[1], size[0]), linear_weights(x.shape[2], size[1]))


def adaptive_avg_pool(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """x [B, H, W, C] -> [B, h, w, C] as torch.nn.AdaptiveAvgPool2d, any sizes."""
    if x.shape[1:3] == tuple(size):
        return x
    return _apply(x, average_weights(x.shape[1], size[0]), average_weights(x.shape[2], size[1]))


def resize_nearest(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """x [B, H, W, C] -> [B, h, w, C]; output i copies input floor(i * size / target), torch's "nearest"."""
    factors = [target // source for source, target in zip(x.shape[1:3], size, strict=True)]
    if all(f * s == t for f, s, t in zip(factors, x.shape[1:3], size, strict=True)):
        b, h, w, c = x.shape
        tiled = jnp.broadcast_to(x[:, :, None, :, None], (b, h, factors[0], w, factors[1], c))
        return tiled.reshape(b, size[0], size[1], c)
    rows, columns = (
        np.minimum(np.floor(np.arange(t, dtype=np.float32) * np.float32(s / t)).astype(np.int64), s - 1)
        for s, t in zip(x.shape[1:3], size, strict=True)
    )
    return x[:, rows][:, :, columns]


def pad_to_multiple(x: jax.Array, multiple: int) -> jax.Array:
    """x [B, H, W, C] with zeros at the bottom and right until H and W are multiples of `multiple`."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), (0, -x.shape[2] % multiple), (0, 0)))

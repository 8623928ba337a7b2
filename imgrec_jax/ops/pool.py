"""Pooling that is fast on every backend."""

import jax
import jax.numpy as jnp
from flax import linen as nn


def max_pool(x: jax.Array, window: int = 2) -> jax.Array:
    """Max over non-overlapping `window` x `window` cells; a remainder at the bottom and right is dropped.

    By reshape, because the gradient of `nn.max_pool` (select-and-scatter) costs as much as a whole small network on the CPU.
    Where values tie, the gradient is shared among them. [B, H, W, C] -> [B, H // window, W // window, C].
    """
    return jnp.max(_cells(x, window), axis=(2, 4))


def avg_pool(x: jax.Array, window: int = 2) -> jax.Array:
    """Mean over the same cells. [B, H, W, C] -> [B, H // window, W // window, C]."""
    return jnp.mean(_cells(x, window), axis=(2, 4))


def _cells(x: jax.Array, window: int) -> jax.Array:
    batch, height, width, channels = x.shape
    h, w = height // window, width // window
    if not h or not w:
        raise ValueError(f"cannot pool {height}x{width} pixels by {window}: the image is too small for this network")
    return x[:, : h * window, : w * window].reshape(batch, h, window, w, window, channels)


def max_pool_overlapping(x: jax.Array, window: int, stride: int, padding: int) -> jax.Array:
    """Max pooling with torch's symmetric padding by -inf. [B, H, W, C] -> [B, H', W', C]."""
    return nn.max_pool(x, (window, window), (stride, stride), ((padding, padding), (padding, padding)))

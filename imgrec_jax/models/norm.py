"""Normalisation layers by name, with one call signature: `norm(name="bn1")(x, train=train)`.

Shape letters: B batch, H W image, C channels.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imgrec_jax.ops.sums import channel_sum


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015, arXiv 1502.03167); `momentum` 0.9 is torch's 0.1.

    Parameters and statistics are named as in `flax.linen.BatchNorm`. The running variance is the biased one, as there; torch
    stores n / (n - 1) times it. `axis_name` is a mapped axis over which the statistics are taken, too.

    Sums over the batch are what costs time here: see `channel_sum`. With it the train step of the scenes' Faster R-CNN takes
    83 ms where it took 100 with Flax's layer, that of the U-Net 53 in place of 64 (2 AVX2 cores, jax 0.10.2, the configs of
    commit e2c9a45).
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Normalises x [..., C]. `mask` (broadcastable to x, True = counts) leaves elements out of the statistics; where it
        counts none, the running ones stay as they are."""
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if train:
            mean, var, counts = _moments(wide, mask, None if self.is_initializing() else self.axis_name)
            if not self.is_initializing():
                for running, new in ((running_mean, mean), (running_var, var)):
                    taken_in = self.momentum * running.value + (1 - self.momentum) * new
                    running.value = taken_in if mask is None else jnp.where(counts, taken_in, running.value)
        else:
            mean, var = running_mean.value, running_var.value
        y = _standardise(wide, mean, scale * jax.lax.rsqrt(var + self.epsilon), bias)
        return y.astype(self.dtype or jnp.promote_types(x.dtype, scale.dtype))


@jax.custom_vjp
def _sums(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x [..., C] -> sums of x and of its squares, [C] each."""
    return channel_sum(x), channel_sum(x * x)


# The gradient of a sum is a broadcast, that of a broadcast a sum: both are given, so that every sum is a `channel_sum`.
_sums.defvjp(lambda x: (_sums(x), x), lambda x, gradients: (gradients[0] + 2 * x * gradients[1],))


@jax.custom_vjp
def _standardise(x: jax.Array, mean: jax.Array, multiplier: jax.Array, bias: jax.Array) -> jax.Array:
    """(x - mean) * multiplier + bias; x [..., C], the rest [C]."""
    return (x - mean) * multiplier + bias


def _standardise_backward(saved: tuple, gradient: jax.Array) -> tuple:
    x, mean, multiplier = saved
    total = channel_sum(gradient)
    return gradient * multiplier, -multiplier * total, channel_sum(gradient * (x - mean)), total


_standardise.defvjp(
    lambda x, mean, multiplier, bias: (_standardise(x, mean, multiplier, bias), (x, mean, multiplier)), _standardise_backward
)


def _moments(x: jax.Array, mask: jax.Array | None, axis_name: str | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean and biased variance of the channels of x [..., C], where `mask` says so, and whether it does anywhere."""
    if mask is None:
        count = jnp.asarray(x.size // x.shape[-1], x.dtype)
    else:
        x = jnp.where(mask, x, 0.0)
        count = jnp.sum(jnp.broadcast_to(mask, (*x.shape[:-1], 1)), dtype=x.dtype)
    sums = (*_sums(x), count)
    total, squares, count = sums if axis_name is None else jax.lax.psum(sums, axis_name)
    counts, count = count > 0, jnp.maximum(count, 1)
    mean = total / count
    return mean, jnp.maximum(squares / count - mean * mean, 0.0), counts


def fold(scale: jax.Array, bias: jax.Array, mean: jax.Array, var: jax.Array, epsilon: float) -> tuple:
    """The (multiplier, offset) that apply statistics and affine at once (torchvision/ops/misc.py:54-63)."""
    multiplier = scale * jax.lax.rsqrt(var + epsilon)
    return multiplier, bias - mean * multiplier


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with constant statistics and affine: all four are in "batch_stats", none is trained.

    epsilon 0.0 is what torchvision uses with its released COCO_V1 detector.
    """

    epsilon: float = 1e-5
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        """x [..., C] -> the same shape; `train` and `mask` change nothing."""
        constant = {"scale": 1.0, "bias": 0.0, "mean": 0.0, "var": 1.0}
        values = {
            name: self.variable("batch_stats", name, jnp.full, (x.shape[-1],), value, jnp.float32).value
            for name, value in constant.items()
        }
        multiplier, offset = jax.lax.stop_gradient(fold(**values, epsilon=self.epsilon))
        dtype = self.dtype or x.dtype
        return x.astype(dtype) * multiplier.astype(dtype) + offset.astype(dtype)


class GroupNorm(nn.Module):
    """Group normalisation over the largest number of groups <= `num_groups` that divides both it and C."""

    num_groups: int = 32
    epsilon: float = 1e-5
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        """x [B, ..., C] -> the same shape; `train` and `mask` change nothing: each of the B has its own statistics."""
        groups = math.gcd(self.num_groups, x.shape[-1])
        return nn.GroupNorm(groups, epsilon=self.epsilon, dtype=self.dtype, name="group")(x)


class Identity(nn.Module):
    """No normalisation."""

    dtype: jnp.dtype | None = None

    def __call__(self, x: jax.Array, *, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        return x


NORMS: dict[str, type[nn.Module]] = {
    "batch": BatchNorm,
    "frozen": FrozenBatchNorm,
    "group": GroupNorm,
    "none": Identity,
}


def make_norm(name: str, *, axis_name: str | None = None, **options: Any) -> Callable[..., nn.Module]:
    """A partial of the norm called `name`.

    Args:
      axis_name: mapped axis under `pmap`, over which batch statistics are taken; the other norms have none.
      options: further fields of the norm (momentum, epsilon, num_groups, ...).
    """
    if name not in NORMS:
        raise ValueError(f"norm {name!r} is unknown; choose one of {sorted(NORMS)}")
    if name == "batch":
        options["axis_name"] = axis_name
    return functools.partial(NORMS[name], **options)

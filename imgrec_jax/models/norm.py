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


class BatchNorm(nn.BatchNorm):
    """Batch normalisation; Flax momentum 0.9 is torch's 0.1.

    The running variance follows Flax, the biased one; torch stores n / (n - 1) times it.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    def __call__(  # type: ignore[override]
        self, x: jax.Array, *, train: bool, mask: jax.Array | None = None
    ) -> jax.Array:
        """Normalises x [..., C]. `mask` (broadcastable to x, True = counts) leaves elements out of the statistics."""
        return super().__call__(x, use_running_average=not train, mask=mask)


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
        """x [B, ..., C] -> the same shape; `mask` leaves elements out of the statistics."""
        groups = math.gcd(self.num_groups, x.shape[-1])
        return nn.GroupNorm(groups, epsilon=self.epsilon, dtype=self.dtype, name="group")(x, mask=mask)


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

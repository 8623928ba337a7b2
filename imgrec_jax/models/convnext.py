"""ConvNeXt as torchvision builds it (Liu et al. 2022, arXiv 2201.03545).

Shape letters: B batch, H W image, C channels.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imgrec_jax.models.layers import Conv, drop_path, exact_gelu, truncated_normal

EPSILON = 1e-6  # of every layer norm


class ConvNeXtBlock(nn.Module):
    """7x7 depthwise, layer norm, two dense layers with GELU between, scaled, added to the input."""

    drop_path: float = 0.0
    conv: Callable[..., nn.Module] = Conv
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """x [B, h, w, C] -> the same shape."""
        width = x.shape[-1]
        init: dict[str, Any] = {"kernel_init": truncated_normal, "dtype": self.dtype}
        y = self.conv(width, (7, 7), padding=3, feature_group_count=width, name="depthwise", **init)(x)
        y = nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name="norm")(y)
        y = exact_gelu(nn.Dense(4 * width, name="fc1", **init)(y))
        y = nn.Dense(width, name="fc2", **init)(y)
        scale = self.param("layer_scale", nn.initializers.constant(1e-6), (width,))
        return x + drop_path(y * scale.astype(y.dtype), self.drop_path, train)


class ConvNeXt(nn.Module):
    """A ConvNeXt trunk; maps "stage0" (stride 4) to "stage3". Its norms are layer norms, whatever a config says of norms."""

    depths: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    drop_path: float = 0.0
    remat: bool = False
    conv: Callable[..., nn.Module] = Conv
    dtype: jnp.dtype | None = None

    @property
    def strides(self) -> dict[str, int]:
        """Input pixels per cell of each map."""
        return {f"stage{i}": 4 * 2**i for i in range(len(self.depths))}

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each map."""
        return {f"stage{i}": width for i, width in enumerate(self.widths)}

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """x [B, H, W, C], normalised -> {"stage0": ..., ...}."""
        init: dict[str, Any] = {"padding": 0, "kernel_init": truncated_normal, "dtype": self.dtype}
        block = nn.remat(ConvNeXtBlock, static_argnums=(2,)) if self.remat else ConvNeXtBlock
        maps, done = {}, 0
        for s, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            if s == 0:
                x = self.conv(width, (4, 4), strides=4, name="stem_conv", **init)(x)
                x = nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name="stem_norm")(x)
            else:
                x = nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name=f"down{s}_norm")(x)
                x = self.conv(width, (2, 2), strides=2, name=f"down{s}_conv", **init)(x)
            for i in range(depth):
                rate = self.drop_path * done / max(sum(self.depths) - 1, 1)
                x = block(rate, self.conv, self.dtype, name=f"blocks_{s}_{i}")(x, train)
                done += 1
            maps[f"stage{s}"] = x
        return maps


class PooledNorm(nn.Module):
    """Global average pooling and a layer norm, in one order or the other."""

    epsilon: float
    norm_first: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, maps: dict[str, jax.Array], *, train: bool = False) -> jax.Array:
        """A backbone's maps -> [B, E] of the last one."""
        x, norm = maps[list(maps)[-1]], nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")
        return norm(x).mean(axis=(1, 2)) if self.norm_first else norm(x.mean(axis=(1, 2)))

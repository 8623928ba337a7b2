"""DenseNet as torchvision builds it (Huang et al. 2016, arXiv 1608.06993), layer names kept.

Shape letters: B batch, H W image, C channels.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imgrec_jax.models.layers import Conv, kaiming_normal
from imgrec_jax.models.norm import BatchNorm
from imgrec_jax.ops.pool import avg_pool, max_pool_overlapping
from imgrec_jax.ops.relu import relu


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1, norm, ReLU, 3x3: `growth` new channels."""

    growth: int
    conv: Callable[..., nn.Module] = Conv
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """x [B, h, w, C] -> [B, h, w, C + growth]."""
        y = x
        for index, (features, size) in enumerate(((4 * self.growth, 1), (self.growth, 3)), start=1):
            y = relu(self.norm(name=f"norm{index}", dtype=self.dtype)(y, train=train))
            y = self.conv(
                features, (size, size), padding=size // 2, use_bias=False, kernel_init=kaiming_normal, dtype=self.dtype,
                name=f"conv{index}",
            )(y)  # fmt: skip
        return jnp.concatenate([x, y], axis=-1)


class DenseNet(nn.Module):
    """A DenseNet trunk; maps "stem" (before the pooling), "denseblock1", ...; the defaults are DenseNet-121."""

    blocks: tuple[int, ...] = (6, 12, 24, 16)
    growth: int = 32
    stem_width: int = 64
    remat: bool = False
    conv: Callable[..., nn.Module] = Conv
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: jnp.dtype | None = None

    @property
    def strides(self) -> dict[str, int]:
        """Input pixels per cell of each map."""
        return {"stem": 2, **{f"denseblock{i}": 2 ** (i + 1) for i in range(1, len(self.blocks) + 1)}}

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each map."""
        channels, width = {"stem": self.stem_width}, self.stem_width
        for index, count in enumerate(self.blocks, start=1):
            channels[f"denseblock{index}"] = width + count * self.growth
            width = channels[f"denseblock{index}"] // 2
        return channels

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """x [B, H, W, C], normalised -> {"stem": ..., "denseblock1": ..., ...}."""
        init: dict[str, Any] = {"use_bias": False, "kernel_init": kaiming_normal, "dtype": self.dtype}
        x = self.conv(self.stem_width, (7, 7), strides=2, padding=3, name="conv0", **init)(x)
        x = relu(self.norm(name="norm0", dtype=self.dtype)(x, train=train))
        maps = {"stem": x}
        x = max_pool_overlapping(x, window=3, stride=2, padding=1)
        layer = nn.remat(DenseLayer, static_argnums=(2,)) if self.remat else DenseLayer
        for index, count in enumerate(self.blocks, start=1):
            for i in range(1, count + 1):
                options: dict[str, Any] = {"conv": self.conv, "norm": self.norm, "dtype": self.dtype}
                x = layer(self.growth, **options, name=f"denseblock{index}_denselayer{i}")(x, train)
            maps[f"denseblock{index}"] = x
            if index < len(self.blocks):
                x = relu(self.norm(name=f"transition{index}_norm", dtype=self.dtype)(x, train=train))
                x = self.conv(x.shape[-1] // 2, (1, 1), padding=0, name=f"transition{index}_conv", **init)(x)
                x = avg_pool(x, 2)
        return maps


class DenseNetEmbedding(nn.Module):
    """The last norm, ReLU and global average pooling."""

    norm: Callable[..., nn.Module] = BatchNorm
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, maps: dict[str, jax.Array], *, train: bool = False) -> jax.Array:
        """The maps of `DenseNet` -> [B, E]."""
        x = self.norm(name="norm5", dtype=self.dtype)(maps[list(maps)[-1]], train=train)
        return relu(x).mean(axis=(1, 2))

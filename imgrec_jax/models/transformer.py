"""ViT (Dosovitskiy et al. 2020, arXiv 2010.11929) and Swin (Liu et al. 2021, arXiv 2103.14030), as torchvision builds them.

Shape letters: B batch, H W image, h w map, N tokens, C channels, A heads, M side of a window.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from imgrec_jax.models.layers import Conv, Named, drop_path, exact_gelu, truncated_normal


def attend(x: jax.Array, heads: int, dtype: jnp.dtype | None, bias: jax.Array | None = None) -> jax.Array:
    """Self-attention in the calling module's scope (`qkv`, `proj`): x [..., N, C] -> the same; bias [..., A, N, N]."""
    width = x.shape[-1]
    qkv = nn.Dense(3 * width, kernel_init=truncated_normal, dtype=dtype, name="qkv")(x)
    query, key, value = jnp.moveaxis(qkv.reshape(*x.shape[:-1], 3, heads, width // heads), -3, 0)
    logits = jnp.einsum("...nad,...mad->...anm", query * (width // heads) ** -0.5, key).astype(jnp.float32)
    weights = nn.softmax(logits if bias is None else logits + bias).astype(value.dtype)
    y = jnp.einsum("...anm,...mad->...nad", weights, value).reshape(x.shape)
    return nn.Dense(width, kernel_init=truncated_normal, dtype=dtype, name="proj")(y)


def mlp(x: jax.Array, dtype: jnp.dtype | None) -> jax.Array:
    """Two dense layers, the first four times as wide, in the calling module's scope (`fc1`, `fc2`)."""
    init: dict[str, Any] = {"kernel_init": nn.initializers.xavier_uniform(), "dtype": dtype}
    return nn.Dense(x.shape[-1], name="fc2", **init)(exact_gelu(nn.Dense(4 * x.shape[-1], name="fc1", **init)(x)))


class EncoderBlock(nn.Module):
    """Attention and an MLP, each after a layer norm and added to its input."""

    heads: int
    drop_path: float = 0.0
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """x [B, N, C] -> the same shape."""
        norm: dict[str, Any] = {"epsilon": 1e-6, "dtype": self.dtype}
        x = x + drop_path(attend(nn.LayerNorm(**norm, name="norm1")(x), self.heads, self.dtype), self.drop_path, train)
        return x + drop_path(mlp(nn.LayerNorm(**norm, name="norm2")(x), self.dtype), self.drop_path, train)


class ViT(nn.Module):
    """A vision transformer. Its maps are "tokens" (one cell a patch) and, not a map, "class" [B, C], the class token.

    The position embedding is of the images that the model is initialised with; sides that are no multiple of the patch lose
    the rest at the bottom and right.

    plain: without a class token, and with positions of fixed sines and cosines (Beyer, Zhai, Kolesnikov 2022, arXiv
      2205.01580): the mean of the tokens is the embedding.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    drop_path: float = 0.0
    remat: bool = False
    plain: bool = False
    conv: Callable[..., nn.Module] = Conv
    dtype: jnp.dtype | None = None

    @property
    def strides(self) -> dict[str, int]:
        """Input pixels per cell of each map."""
        return {"tokens": self.patch}

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each map."""
        return {"tokens": self.width}

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """x [B, H, W, C], normalised -> {"tokens": [B, h, w, width], "class": [B, width]}, after the last norm."""
        patch = (self.patch, self.patch)
        init = nn.initializers.lecun_normal()
        x = self.conv(
            self.width, patch, strides=self.patch, padding="VALID", kernel_init=init, dtype=self.dtype, name="patch_embed"
        )(x)
        batch, height, width = x.shape[:3]
        if self.plain:
            x = x.reshape(batch, -1, self.width) + jnp.asarray(sines(height, width, self.width), x.dtype)
        else:
            token = self.param("class_token", nn.initializers.zeros, (1, 1, self.width))
            position = self.param("pos_embedding", nn.initializers.normal(0.02), (1, 1 + height * width, self.width))
            token = jnp.broadcast_to(token.astype(x.dtype), (batch, 1, self.width))
            x = jnp.concatenate([token, x.reshape(batch, -1, self.width)], axis=1) + position.astype(x.dtype)
        block = nn.remat(EncoderBlock, static_argnums=(2,)) if self.remat else EncoderBlock
        for i in range(self.depth):
            if i == self.depth - 1 and not self.plain:  # the last map that the class token still reads
                cells = Named(name="before_last_block")(x[:, 1:].reshape(batch, height, width, -1))
                x = jnp.concatenate([x[:, :1], cells.reshape(batch, -1, self.width)], axis=1)
            x = block(self.heads, self.drop_path * i / max(self.depth - 1, 1), self.dtype, name=f"blocks_{i}")(x, train)
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)
        if self.plain:
            return {"tokens": x.reshape(batch, height, width, -1)}
        return {"tokens": x[:, 1:].reshape(batch, height, width, -1), "class": x[:, 0]}


def sines(height: int, width: int, channels: int) -> np.ndarray:
    """float32 [H * W, C]: sine and cosine of x, then of y, at C / 4 frequencies from 1 down to 1 / 10,000, geometrically.

    Raises:
      ValueError: for a C that is no multiple of 4.
    """
    if channels % 4:
        raise ValueError(f"{channels} channels; positions of sines and cosines need a multiple of 4")
    frequency = 10_000.0 ** -np.linspace(0, 1, channels // 4)
    y, x = (place.ravel()[:, None] * frequency for place in np.mgrid[:height, :width])
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)


class ClassToken(nn.Module):
    """The embedding of a ViT."""

    @nn.compact
    def __call__(self, maps: dict[str, jax.Array], *, train: bool = False) -> jax.Array:
        """The maps of `ViT` -> [B, C]."""
        return maps["class"]


def relative_position_index(side: int) -> np.ndarray:
    """int [M * M, M * M]: the row of the bias table for each pair of cells of a window."""
    cells = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij")).reshape(2, -1)
    offset = cells[:, :, None] - cells[:, None, :] + side - 1
    return offset[0] * (2 * side - 1) + offset[1]


def _window_mask(height: int, width: int, side: int, shifts: tuple[int, int]) -> np.ndarray:
    """float [windows, 1, M * M, M * M]: -100 between cells that only the cyclic shift brought together."""
    region = np.zeros((height, width), np.int64)
    for axis, (size, shift) in enumerate(((height, shifts[0]), (width, shifts[1]))):
        # torchvision slices by -shift: without a shift the whole axis is of the last slice
        number = (np.arange(size) >= size - side).astype(np.int64) + (np.arange(size) >= size - shift) * (shift > 0)
        region += np.expand_dims(number * 3**axis, 1 - axis)
    windows = region.reshape(height // side, side, width // side, side).swapaxes(1, 2).reshape(-1, side * side)
    return np.where(windows[:, None, :, None] != windows[:, None, None, :], -100.0, 0.0).astype(np.float32)


class SwinBlock(nn.Module):
    """Attention within windows of `side` cells, moved by `shift`, and an MLP."""

    heads: int
    shift: int
    side: int = 7
    drop_path: float = 0.0
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """x [B, h, w, C] -> the same shape."""
        norm: dict[str, Any] = {"epsilon": 1e-5, "dtype": self.dtype}
        x = x + drop_path(self._attention(nn.LayerNorm(**norm, name="norm1")(x)), self.drop_path, train)
        return x + drop_path(mlp(nn.LayerNorm(**norm, name="norm2")(x), self.dtype), self.drop_path, train)

    def _attention(self, x: jax.Array) -> jax.Array:
        side, (batch, height, width, channels) = self.side, x.shape
        x = jnp.pad(x, ((0, 0), (0, -height % side), (0, -width % side), (0, 0)))
        h, w = x.shape[1:3]
        shifts = (0 if side >= h else self.shift, 0 if side >= w else self.shift)
        x = jnp.roll(x, (-shifts[0], -shifts[1]), axis=(1, 2))
        x = (
            x.reshape(batch, h // side, side, w // side, side, channels)
            .swapaxes(2, 3)
            .reshape(batch, -1, side * side, channels)
        )
        table = self.param("relative_position_bias_table", truncated_normal, ((2 * side - 1) ** 2, self.heads))
        bias = jnp.moveaxis(table[relative_position_index(side)], -1, 0).astype(jnp.float32)
        if any(shifts):
            bias = bias + jnp.asarray(_window_mask(h, w, side, shifts))
        x = attend(x, self.heads, self.dtype, bias)
        x = x.reshape(batch, h // side, w // side, side, side, channels).swapaxes(2, 3).reshape(batch, h, w, channels)
        return jnp.roll(x, shifts, axis=(1, 2))[:, :height, :width]


class Swin(nn.Module):
    """A Swin trunk; maps "stage0" (stride 4) to "stage3"; the defaults are Swin-T."""

    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
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
        return {f"stage{i}": self.width * 2**i for i in range(len(self.depths))}

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """x [B, H, W, C], normalised -> {"stage0": ..., ...}."""
        init: dict[str, Any] = {"kernel_init": truncated_normal, "dtype": self.dtype}
        norm: dict[str, Any] = {"epsilon": 1e-5, "dtype": self.dtype}
        x = self.conv(self.width, (4, 4), strides=4, padding="VALID", name="patch_embed", **init)(x)
        x = nn.LayerNorm(**norm, name="patch_norm")(x)
        block = nn.remat(SwinBlock, static_argnums=(2,)) if self.remat else SwinBlock
        maps, done = {}, 0
        for s, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            if s:
                x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
                x = jnp.concatenate([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], axis=-1)
                x = nn.LayerNorm(**norm, name=f"merge{s}_norm")(x)
                x = nn.Dense(self.width * 2**s, use_bias=False, name=f"merge{s}_reduction", **init)(x)
            for i in range(depth):
                rate = self.drop_path * done / max(sum(self.depths) - 1, 1)
                options: dict[str, Any] = {"drop_path": rate, "dtype": self.dtype, "name": f"blocks_{s}_{i}"}
                x = block(heads, 3 if i % 2 else 0, **options)(x, train)
                done += 1
            maps[f"stage{s}"] = x
        return maps

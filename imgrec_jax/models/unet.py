"""U-Net (Ronneberger, Fischer, Brox 2015, arXiv:1505.04597), and its decoder over any backbone with named maps.

Every model returns {"logits": float32}. With padding="same" they have the input's size, whatever it is; with
padding="valid", the paper's, they are the prediction for the centre, `valid_margin(depth)` pixels smaller on each side.

Shape letters: B batch, H W image, C channels, K classes with background.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from imgrec_jax.models.layers import Conv
from imgrec_jax.ops.pool import max_pool
from imgrec_jax.ops.precision import single
from imgrec_jax.ops.relu import relu
from imgrec_jax.ops.resize import pad_to_multiple, resize_bilinear

he_normal = nn.initializers.he_normal()  # section 3: standard deviation sqrt(2 / incoming nodes)
# each output pixel of a transposed convolution whose stride is its kernel has C incoming nodes
_he_normal_upsampling = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal", 2, 3, batch_axis=(0, 1))


def valid_margin(depth: int) -> int:
    """Pixels that padding="valid" takes from each side: two 3x3 convolutions at each of 2 * depth + 1 places."""
    return 2 * (3 * 2**depth - 2)


def valid_sizes(size: int, depth: int) -> tuple[int, int]:
    """The nearest sizes <= and >= `size` that padding="valid" accepts; equal when `size` is one of them.

    Every level must be even before it is pooled, and something must be left at the end; the sizes are
    2**depth apart.
    """
    step = 2**depth
    # the lowest level has an odd or even side m >= 5; level by level upwards, n -> 2 n + 4
    smallest = 5
    for _ in range(depth):
        smallest = 2 * smallest + 4
    while smallest - 2 * valid_margin(depth) <= 0:
        smallest += step
    below = max(smallest, size - (size - smallest) % step)
    return below, below if below >= size else below + step


class UpConv(nn.Module):
    """Transposed convolution whose kernel and stride are `factor`, as one matrix product: its output cells do not overlap."""

    features: int
    factor: int = 2
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, factor * H, factor * W, features]."""
        n = self.factor
        kernel = self.param("kernel", _he_normal_upsampling, (n, n, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        b, h, w, _ = x.shape
        return jnp.einsum("bhwc,ijcd->bhiwjd", x, kernel).reshape(b, n * h, n * w, self.features) + bias


class DoubleConv(nn.Module):
    """Twice: 3x3 convolution, norm (None: a bias instead), ReLU."""

    features: int
    padding: int = 1
    conv: Callable[..., nn.Module] = Conv
    norm: Callable[..., nn.Module] | None = None
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """x [B, H, W, C] -> [B, H - 4 + 4 * padding, ..., features]."""
        for i in (1, 2):
            x = self.conv(
                self.features,
                (3, 3),
                padding=self.padding,
                use_bias=self.norm is None,
                kernel_init=he_normal,
                dtype=self.dtype,
                name=f"conv{i}",
            )(x)
            if self.norm is not None:
                x = self.norm(name=f"norm{i}", dtype=self.dtype)(x, train=train)
            x = relu(x)
        return x


class LevelScores(nn.Module):
    """The sum of linear classifiers of several maps at one size, as the FCN adds the scores of its skips.

    They start at zero. Beside a U-Net's own head they give the loss a short way to every level.
    """

    num_classes: int
    conv: Callable[..., nn.Module] = Conv
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array], size: Sequence[int]) -> jax.Array:
        """maps [B, h, w, C] of any sizes, the coarsest first -> [B, *size, K], float32."""
        zeros, scores = nn.initializers.zeros, []
        for i, x in enumerate(maps):
            score = self.conv(self.num_classes, (1, 1), padding=0, kernel_init=zeros, dtype=self.dtype, name=f"score{i}")(x)
            scores.append(single(score))
        # On the way up each sum is enlarged to the next map's size, not each score to the last.
        total = functools.reduce(lambda total, score: resize_bilinear(total, score.shape[1:3]) + score, scores)
        return resize_bilinear(total, size)


class UNet(nn.Module):
    """The paper's network is the default with padding="valid": depth 4, 64 to 1024 channels.

    `upsample` is "transposed" (2x2 transposed convolution) or "bilinear" (interpolation and a 1x1 convolution); both go to the
    channels of the finer level. `widths` are the channels of every level, the finest first; without them they double from
    `width` on. Dropout acts on the two deepest levels of the contracting path, as in the authors' network.

    `score_levels` (padding="same" only) adds the scores of linear classifiers of all coarser levels to those of the finest, as
    the FCN adds those of its skips: the loss then reaches every level on a short way. The experiments of this project
    (experiments/004_scenes_segmentation) show how much sooner a narrow network then tells many classes apart.
    """

    num_classes: int
    depth: int = 4
    width: int = 64
    widths: tuple[int, ...] = ()
    padding: str = "same"
    upsample: str = "transposed"
    dropout: float = 0.0
    score_levels: bool = False
    conv: Callable[..., nn.Module] = Conv
    norm: Callable[..., nn.Module] | None = None
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """x [B, H, W, C] -> {"logits": [B, h, w, K]}; needs a "dropout" key when training with dropout > 0."""
        if self.widths and len(self.widths) != self.depth + 1:
            raise ValueError(f"widths={self.widths}: expected {self.depth + 1} numbers for depth {self.depth}")
        if self.score_levels and self.padding == "valid":
            raise ValueError('score_levels=True needs padding="same": with "valid" the levels see different parts of the image')
        height, width = x.shape[1:3]
        if self.padding == "valid":
            self._check_size(height, width)
        else:
            x = pad_to_multiple(x, 2**self.depth)
        skips = []
        for level in range(self.depth + 1):
            x = self._double(f"down{level}", level)(x, train=train)
            if level >= self.depth - 1:
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
            if level < self.depth:
                skips.append(x)
                x = max_pool(x, 2)
        coarse = [x]
        for level in reversed(range(self.depth)):
            x = self._up(f"up{level}_sample", x, self._channels(level))
            x = jnp.concatenate([_crop_centre(skips[level], x.shape[1:3]), x], axis=-1)
            x = self._double(f"up{level}", level)(x, train=train)
            coarse.append(x)
        head = self.conv(self.num_classes, (1, 1), padding=0, kernel_init=he_normal, dtype=self.dtype, name="head")
        logits = single(head(x))
        if self.score_levels:
            logits += LevelScores(self.num_classes, self.conv, self.dtype, name="scores")(coarse[:-1], x.shape[1:3])
        return {"logits": logits[:, :height, :width]}

    def _channels(self, level: int) -> int:
        return self.widths[level] if self.widths else self.width * 2**level

    def _double(self, name: str, level: int) -> DoubleConv:
        padding = 0 if self.padding == "valid" else 1
        return DoubleConv(self._channels(level), padding, self.conv, self.norm, self.dtype, name=name)

    def _up(self, name: str, x: jax.Array, features: int) -> jax.Array:
        if self.upsample == "transposed":
            return UpConv(features, dtype=self.dtype, name=name)(x)
        x = self.conv(features, (1, 1), padding=0, kernel_init=he_normal, dtype=self.dtype, name=name)(x)
        return resize_bilinear(x, (2 * x.shape[1], 2 * x.shape[2]))

    def _check_size(self, height: int, width: int) -> None:
        for axis, size in (("height", height), ("width", width)):
            below, above = valid_sizes(size, self.depth)
            if size not in (below, above):
                raise ValueError(
                    f'{axis} {size} does not fit a U-Net of depth {self.depth} with padding="valid"; the nearest '
                    f'sizes are {" and ".join(map(str, sorted({below, above})))}, or use padding="same"'
                )


class BackboneUNet(nn.Module):
    """U-Net's expanding path over the named maps of any backbone.

    `levels` names the maps from the coarsest to the finest, `widths` the channels after merging each finer one. What is left to
    the input's resolution (the finest map's stride) is bridged by `upsample`: "bilinear" interpolation of the logits, or
    "transposed", where the head predicts every pixel of a cell by itself (Shi et al. 2016, arXiv 1609.05158).
    `score_levels` as in `UNet`, the backbone's coarsest map included. Over a VGG's "conv5" to "conv1" it is TernausNet
    (Iglovikov and Shvets 2018, arXiv 1801.05746) with bilinear interpolation in place of transposed convolutions.
    """

    backbone: nn.Module
    num_classes: int
    levels: tuple[str, ...] = ("layer4", "layer3", "layer2", "layer1", "stem")
    widths: tuple[int, ...] = (256, 128, 64, 32)
    upsample: str = "bilinear"
    score_levels: bool = False
    conv: Callable[..., nn.Module] = Conv
    norm: Callable[..., nn.Module] | None = None
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """x [B, H, W, C], normalised -> {"logits": [B, H, W, K]}."""
        if len(self.widths) != len(self.levels) - 1:
            raise ValueError(f"widths={self.widths}: expected one for each of levels={self.levels} but the first")
        height, width = x.shape[1:3]
        x = pad_to_multiple(x, max(self.backbone.strides[name] for name in self.levels))
        padded = x.shape[1:3]
        maps = self.backbone(x, train=train)
        x = maps[self.levels[0]]
        coarse = [x]
        for name, features in zip(self.levels[1:], self.widths, strict=True):
            skip = maps[name]
            x = jnp.concatenate([skip, resize_bilinear(x, skip.shape[1:3])], axis=-1)
            x = DoubleConv(features, 1, self.conv, self.norm, self.dtype, name=f"up_{name}")(x, train=train)
            coarse.append(x)
        if self.upsample == "transposed":
            stride = self.backbone.strides[self.levels[-1]]
            logits = UpConv(self.num_classes, stride, dtype=self.dtype, name="head")(x)
        else:
            init = {"padding": 0, "kernel_init": he_normal, "dtype": self.dtype, "name": "head"}
            logits = resize_bilinear(single(self.conv(self.num_classes, (1, 1), **init)(x)), padded)
        logits = single(logits)
        if self.score_levels:
            logits += LevelScores(self.num_classes, self.conv, self.dtype, name="scores")(coarse[:-1], padded)
        return {"logits": logits[:, :height, :width]}


def _crop_centre(x: jax.Array, size: Sequence[int]) -> jax.Array:
    top, left = ((n - m) // 2 for n, m in zip(x.shape[1:3], size, strict=True))
    return x[:, top : top + size[0], left : left + size[1]]

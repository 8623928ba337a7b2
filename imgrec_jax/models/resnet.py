"""ResNet v1.5 as torchvision builds it, and a small ResNet for low resolutions.

He et al. 2015 (arXiv:1512.03385); the stride sits on the 3x3 convolution of a bottleneck, as in
torchvision/models/resnet.py, whose layer names are kept. Padding is explicit and symmetric.

Shape letters: B batch, H W image, C channels, K classes.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from imgrec_jax.models.layers import Conv, kaiming_normal
from imgrec_jax.models.norm import BatchNorm
from imgrec_jax.ops.pool import max_pool_overlapping
from imgrec_jax.ops.relu import relu


class _Block(nn.Module):
    """What both residual blocks share. `shortcut`: "projection" (1x1 convolution) or "pad" (He et al.'s option A)."""

    expansion: ClassVar[int]  # output channels per `width`
    width: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1  # of the 3x3 convolution of a bottleneck, and its width for 64 of `width`
    group_width: int = 64
    conv: Callable[..., nn.Module] = Conv
    norm: Callable[..., nn.Module] = BatchNorm
    shortcut: str = "projection"
    dtype: jnp.dtype | None = None

    def _conv_norm(
        self, x: jax.Array, index: int, features: int, size: int, stride: int, train: bool, groups: int = 1
    ) -> jax.Array:
        x = self.conv(
            features,
            (size, size),
            strides=stride,
            padding=self.dilation * (size // 2),
            kernel_dilation=self.dilation if size > 1 else 1,
            feature_group_count=groups,
            use_bias=False,
            kernel_init=kaiming_normal,
            dtype=self.dtype,
            name=f"conv{index}",
        )(x)
        return self.norm(name=f"bn{index}", dtype=self.dtype)(x, train=train)

    def _shortcut(self, x: jax.Array, features: int, train: bool) -> jax.Array:
        if self.stride == 1 and x.shape[-1] == features:
            return x
        if self.shortcut == "pad":
            extra = features - x.shape[-1]
            return jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0),) * 3 + ((extra // 2, extra - extra // 2),))
        x = self.conv(
            features,
            (1, 1),
            strides=self.stride,
            padding=0,
            use_bias=False,
            kernel_init=kaiming_normal,
            dtype=self.dtype,
            name="downsample_0",
        )(x)
        return self.norm(name="downsample_1", dtype=self.dtype)(x, train=train)


class BasicBlock(_Block):
    """3x3, 3x3 with a residual connection; `width` output channels."""

    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        y = relu(self._conv_norm(x, 1, self.width, 3, self.stride, train))
        y = self._conv_norm(y, 2, self.width, 3, 1, train)
        return relu(y + self._shortcut(x, self.width, train))


class Bottleneck(_Block):
    """1x1, 3x3 (strided), 1x1 with a residual connection; 4 * `width` output channels.

    With `groups` it is ResNeXt's block (Xie et al. 2016, arXiv 1611.05431), with `group_width` over 64 and one group Wide
    ResNet's (Zagoruyko and Komodakis 2016, arXiv 1605.07146).
    """

    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        features = self.width * self.expansion
        inner = self.width * self.group_width // 64 * self.groups
        y = relu(self._conv_norm(x, 1, inner, 1, 1, train))
        y = relu(self._conv_norm(y, 2, inner, 3, self.stride, train, self.groups))
        y = self._conv_norm(y, 3, features, 1, 1, train)
        return relu(y + self._shortcut(x, features, train))


class ResNet(nn.Module):
    """A residual trunk with named feature maps; the defaults are ResNet-50 at ImageNet resolution.

    `dilate[i]` replaces the stride of stage i by dilation (torchvision's replace_stride_with_dilation, one entry
    per stage). `remat` recomputes each block's activations in the backward pass to save memory. `stem_abs` rectifies the
    stem's output by |x| in place of ReLU (Jarrett et al. 2009, "What is the best multi-stage architecture for object
    recognition?"): up to the norm's offset, an edge gives the same response from light to dark as from dark to light.
    """

    block: type[_Block] = Bottleneck
    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stage_strides: tuple[int, ...] = (1, 2, 2, 2)
    groups: int = 1
    group_width: int = 64
    dilate: tuple[bool, ...] = (False, False, False, False)
    stem_width: int = 64
    stem_kernel: int = 7
    stem_stride: int = 2
    stem_pool: bool = True
    stem_abs: bool = False
    shortcut: str = "projection"
    remat: bool = False
    conv: Callable[..., nn.Module] = Conv
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: jnp.dtype | None = None

    @property
    def strides(self) -> dict[str, int]:
        """Input pixels per cell of each map."""
        strides = {"stem": self.stem_stride}
        total = self.stem_stride * (2 if self.stem_pool else 1)
        for index, (stride, dilated) in enumerate(zip(self.stage_strides, self.dilate, strict=True), start=1):
            total *= 1 if dilated else stride
            strides[f"layer{index}"] = total
        return strides

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each map."""
        stages = {f"layer{i}": width * self.block.expansion for i, width in enumerate(self.widths, start=1)}
        return {"stem": self.stem_width, **stages}

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """x [B, H, W, C], normalised -> {"stem": before the pooling, "layer1": ..., ...}."""
        x = self.conv(
            self.stem_width,
            (self.stem_kernel, self.stem_kernel),
            strides=self.stem_stride,
            padding=self.stem_kernel // 2,
            use_bias=False,
            kernel_init=kaiming_normal,
            dtype=self.dtype,
            name="conv1",
        )(x)
        x = self.norm(name="bn1", dtype=self.dtype)(x, train=train)
        x = jnp.abs(x) if self.stem_abs else relu(x)
        maps = {"stem": x}
        if self.stem_pool:
            x = max_pool_overlapping(x, window=3, stride=2, padding=1)
        block = nn.remat(self.block, static_argnums=(2,)) if self.remat else self.block
        dilation = 1
        for stage, (size, width, stride) in enumerate(zip(self.stage_sizes, self.widths, self.stage_strides, strict=True)):
            first_dilation = dilation
            if self.dilate[stage]:
                dilation, stride = dilation * stride, 1
            for i in range(size):
                x = block(
                    width,
                    stride=stride if i == 0 else 1,
                    dilation=first_dilation if i == 0 else dilation,
                    groups=self.groups,
                    group_width=self.group_width,
                    conv=self.conv,
                    norm=self.norm,
                    shortcut=self.shortcut,
                    dtype=self.dtype,
                    name=f"layer{stage + 1}_{i}",
                )(x, train)
            maps[f"layer{stage + 1}"] = x
        return maps


RESNETS: dict[str, Callable[..., ResNet]] = {
    "resnet18": functools.partial(ResNet, block=BasicBlock, stage_sizes=(2, 2, 2, 2)),
    "resnet34": functools.partial(ResNet, block=BasicBlock, stage_sizes=(3, 4, 6, 3)),
    "resnet50": functools.partial(ResNet, block=Bottleneck, stage_sizes=(3, 4, 6, 3)),
    "resnet101": functools.partial(ResNet, block=Bottleneck, stage_sizes=(3, 4, 23, 3)),
    "resnet152": functools.partial(ResNet, block=Bottleneck, stage_sizes=(3, 8, 36, 3)),
    "resnext50_32x4d": functools.partial(ResNet, block=Bottleneck, stage_sizes=(3, 4, 6, 3), groups=32, group_width=4),
    "wide_resnet50_2": functools.partial(ResNet, block=Bottleneck, stage_sizes=(3, 4, 6, 3), group_width=128),
}
# For images of 32 pixels or so: 3x3, no stride, no pooling.
STEMS: dict[str, dict[str, Any]] = {"imagenet": {}, "cifar": {"stem_kernel": 3, "stem_stride": 1, "stem_pool": False}}


def small_resnet(
    widths: tuple[int, ...] = (16, 32, 64),
    blocks: int | tuple[int, ...] = 3,
    stem_stride: int = 1,
    stem_width: int | None = None,
    **options: Any,
) -> ResNet:
    """A ResNet for images of 32 to 128 pixels: 3x3 stem, no pooling, `blocks` basic blocks in each stage (or one number each).

    The stem has as many channels as the first stage unless `stem_width` is given. The defaults with shortcut="pad" are the
    ResNet-20 of He et al. 2015, section 4.2.
    """
    return ResNet(
        block=BasicBlock,
        stage_sizes=(blocks,) * len(widths) if isinstance(blocks, int) else blocks,
        widths=widths,
        stage_strides=(1,) + (2,) * (len(widths) - 1),
        dilate=(False,) * len(widths),
        stem_width=widths[0] if stem_width is None else stem_width,
        stem_kernel=3,
        stem_stride=stem_stride,
        stem_pool=False,
        **options,
    )

"""MobileNetV1, V2, V3, EfficientNet and EfficientNet-Lite: tables of inverted residual blocks.

Howard et al. 2017 (arXiv 1704.04861), Sandler et al. 2018 (arXiv 1801.04381), Howard et al. 2019 (arXiv 1905.02244), Tan and
Le 2019 (arXiv 1905.11946; Lite: github.com/tensorflow/tpu, efficientnet/lite). Numbers as in torchvision and timm.

Shape letters: B batch, H W image, h w map, C channels.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from imgrec_jax.models.layers import Conv, activation, drop_path, kaiming_normal, torch_uniform
from imgrec_jax.models.norm import BatchNorm


class Block(NamedTuple):
    """One block.

    Attributes:
      expanded: channels of the depthwise convolution; 0 for as many as come in, without an expansion.
      features: channels that go out.
      squeeze: hidden channels of squeeze-and-excitation, 0 for none.
      act: name of the activation.
    """

    expanded: int
    features: int
    kernel: int = 3
    stride: int = 1
    squeeze: int = 0
    act: str = "relu6"


class MBNet(NamedTuple):
    """A network: stem and head channels, stages of blocks.

    Attributes:
      head: channels of the 1x1 convolution before the pooling, 0 for none; dense: of a layer after it, 0 for none.
      act: of stem and head; gate: of squeeze-and-excitation, squeeze_act: of its hidden layer.
      residual: whether blocks add their input where shapes allow; project_act: whether the last convolution of a block is
        followed by the activation (MobileNetV1's blocks are such).
      epsilon: of batch norm; padding: "torch" (symmetric) or "tf" (TensorFlow's SAME).
      dropout: before the classifier.
    """

    stem: int
    stages: tuple[tuple[Block, ...], ...]
    head: int = 1280
    dense: int = 0
    act: str = "relu6"
    gate: str = "sigmoid"
    squeeze_act: str = "relu"
    residual: bool = True
    project_act: bool = False
    epsilon: float = 1e-5
    padding: str = "torch"
    dropout: float = 0.2


def divisible(value: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `value`, but never under 90 % of it (tensorflow/models, slim/nets/mobilenet)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def mobilenet_v1(width: float = 1.0) -> MBNet:
    """13 blocks of a depthwise and a 1x1 convolution; width 0.25 to 1."""
    table = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))  # features, blocks, stride of the first
    stages = tuple(
        tuple(Block(0, int(features * width), stride=stride if i == 0 else 1) for i in range(count))
        for features, count, stride in table
    )
    return MBNet(
        int(32 * width), stages, head=0, residual=False, project_act=True, epsilon=1e-3, padding="tf", dropout=0.001
    )  # fmt: skip


def mobilenet_v2() -> MBNet:
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    stages, channels = [], 32
    for expansion, features, count, stride in table:
        stage = []
        for i in range(count):
            stage.append(Block(channels * expansion if expansion > 1 else 0, features, stride=stride if i == 0 else 1))
            channels = features
        stages.append(tuple(stage))
    return MBNet(32, tuple(stages))


# Kernel, expanded, features, squeeze-and-excitation, activation, stride; grouped by features (arXiv 1905.02244, tables 1, 2).
_V3_LARGE = (
    ((3, 16, 16, False, "relu", 1),),
    ((3, 64, 24, False, "relu", 2), (3, 72, 24, False, "relu", 1)),
    ((5, 72, 40, True, "relu", 2), (5, 120, 40, True, "relu", 1), (5, 120, 40, True, "relu", 1)),
    (
        (3, 240, 80, False, "hard_swish", 2), (3, 200, 80, False, "hard_swish", 1), (3, 184, 80, False, "hard_swish", 1),
        (3, 184, 80, False, "hard_swish", 1),
    ),
    ((3, 480, 112, True, "hard_swish", 1), (3, 672, 112, True, "hard_swish", 1)),
    ((5, 672, 160, True, "hard_swish", 2), (5, 960, 160, True, "hard_swish", 1), (5, 960, 160, True, "hard_swish", 1)),
)  # fmt: skip
_V3_SMALL = (
    ((3, 16, 16, True, "relu", 2),),
    ((3, 72, 24, False, "relu", 2), (3, 88, 24, False, "relu", 1)),
    ((5, 96, 40, True, "hard_swish", 2), (5, 240, 40, True, "hard_swish", 1), (5, 240, 40, True, "hard_swish", 1)),
    ((5, 120, 48, True, "hard_swish", 1), (5, 144, 48, True, "hard_swish", 1)),
    ((5, 288, 96, True, "hard_swish", 2), (5, 576, 96, True, "hard_swish", 1), (5, 576, 96, True, "hard_swish", 1)),
)


def mobilenet_v3(size: str) -> MBNet:
    """size: "large" or "small"."""
    rows, head, dense = {"large": (_V3_LARGE, 960, 1280), "small": (_V3_SMALL, 576, 1024)}[size]
    stages, channels = [], 16
    for stage in rows:
        blocks = []
        for kernel, expanded, features, squeezes, act, stride in stage:
            squeeze = divisible(expanded // 4) if squeezes else 0
            blocks.append(Block(0 if expanded == channels else expanded, features, kernel, stride, squeeze, act))
            channels = features
        stages.append(tuple(blocks))
    return MBNet(16, tuple(stages), head, dense, act="hard_swish", gate="hard_sigmoid", epsilon=1e-3)


# Expansion, kernel, stride, features, blocks (arXiv 1905.11946, table 1).
_EFFICIENTNET = (
    (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)  # fmt: skip


def efficientnet(width: float, depth: float, dropout: float, lite: bool = False) -> MBNet:
    """width, depth: multipliers. lite: ReLU6, no squeeze-and-excitation, stem, head and the outer stages not scaled."""
    stem = 32 if lite else divisible(32 * width)
    stages, channels, act = [], stem, "relu6" if lite else "silu"
    for index, (expansion, kernel, stride, features, count) in enumerate(_EFFICIENTNET):
        scaled = not lite or 0 < index < len(_EFFICIENTNET) - 1
        blocks = []
        for i in range(math.ceil(count * depth) if scaled else count):
            expanded = channels * expansion if expansion > 1 else 0
            squeeze = 0 if lite else max(1, channels // 4)
            out = divisible(features * width)
            blocks.append(Block(expanded, out, kernel, stride if i == 0 else 1, squeeze, act))
            channels = out
        stages.append(tuple(blocks))
    return MBNet(
        stem, tuple(stages), head=1280 if lite else 4 * channels, act=act, squeeze_act="silu", dropout=dropout,
        epsilon=1e-3 if lite else 1e-5, padding="tf" if lite else "torch",
    )  # fmt: skip


NETS: dict[str, MBNet] = {
    **{
        f"mobilenet_v1{'' if width == 1 else f'_{round(100 * width):03d}'}": mobilenet_v1(width)
        for width in (1, 0.75, 0.5, 0.25)
    },
    "mobilenet_v2": mobilenet_v2(),
    "mobilenet_v3_large": mobilenet_v3("large"),
    "mobilenet_v3_small": mobilenet_v3("small"),
    "efficientnet_b0": efficientnet(1.0, 1.0, 0.2),
    "efficientnet_b1": efficientnet(1.0, 1.1, 0.2),
    "efficientnet_b2": efficientnet(1.1, 1.2, 0.3),
    "efficientnet_b3": efficientnet(1.2, 1.4, 0.3),
    "efficientnet_lite0": efficientnet(1.0, 1.0, 0.2, lite=True),
    "efficientnet_lite1": efficientnet(1.0, 1.1, 0.2, lite=True),
    "efficientnet_lite2": efficientnet(1.1, 1.2, 0.3, lite=True),
}


def padding_of(kind: str, kernel: int) -> str | int:
    """What a convolution is given: "SAME" for "tf", `kernel // 2` on each side for "torch"."""
    if kind not in ("torch", "tf"):
        raise ValueError(f"padding={kind!r} is unknown; choose 'torch' (symmetric) or 'tf' (SAME)")
    return "SAME" if kind == "tf" else kernel // 2


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, squeeze-and-excitation, 1x1 projection, each but the gate with a norm."""

    block: Block
    net: MBNet
    drop_path: float = 0.0
    conv: Callable[..., nn.Module] = Conv
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """x [B, h, w, C] -> [B, h', w', features]."""
        block, act = self.block, activation(self.block.act)
        y = x
        if block.expanded:
            y = act(self._conv_norm(y, "expand", block.expanded, 1, train))
        y = act(self._conv_norm(y, "depthwise", y.shape[-1], block.kernel, train, block.stride, y.shape[-1]))
        if block.squeeze:
            y = y * self._gate(y, block.squeeze)
        y = self._conv_norm(y, "project", block.features, 1, train)
        if self.net.project_act:
            y = act(y)
        if self.net.residual and y.shape == x.shape and block.stride == 1:
            y = drop_path(y, self.drop_path, train) + x
        return y

    def _conv_norm(
        self, x: jax.Array, name: str, features: int, kernel: int, train: bool, stride: int = 1, groups: int = 1
    ) -> jax.Array:
        x = self.conv(
            features, (kernel, kernel), strides=stride, padding=padding_of(self.net.padding, kernel), use_bias=False,
            feature_group_count=groups, kernel_init=kaiming_normal, dtype=self.dtype, name=f"{name}_conv",
        )(x)  # fmt: skip
        return self.norm(name=f"{name}_bn", dtype=self.dtype)(x, train=train)

    def _gate(self, x: jax.Array, squeeze: int) -> jax.Array:
        options: dict[str, Any] = {"padding": 0, "kernel_init": kaiming_normal, "dtype": self.dtype}
        y = jnp.mean(x, axis=(1, 2), keepdims=True)
        y = activation(self.net.squeeze_act)(self.conv(squeeze, (1, 1), name="se_reduce", **options)(y))
        return activation(self.net.gate)(self.conv(x.shape[-1], (1, 1), name="se_expand", **options)(y))


class MBBackbone(nn.Module):
    """Stem and stages of a network; maps "stem", "stage0", "stage1", ...

    drop_path: rate of stochastic depth, growing linearly from 0 at the first block to what it would be after the last, as
      torchvision's; (n - 1) / n of it at the last of n.
    """

    net: MBNet
    drop_path: float = 0.0
    remat: bool = False
    conv: Callable[..., nn.Module] = Conv
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: jnp.dtype | None = None

    @property
    def strides(self) -> dict[str, int]:
        """Input pixels per cell of each map."""
        strides = {"stem": 2}
        total = 2
        for index, stage in enumerate(self.net.stages):
            total *= math.prod(block.stride for block in stage)
            strides[f"stage{index}"] = total
        return strides

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each map."""
        return {"stem": self.net.stem, **{f"stage{i}": stage[-1].features for i, stage in enumerate(self.net.stages)}}

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """x [B, H, W, C], normalised -> {"stem": ..., "stage0": ..., ...}."""
        x = self.conv(
            self.net.stem, (3, 3), strides=2, padding=padding_of(self.net.padding, 3), use_bias=False,
            kernel_init=kaiming_normal, dtype=self.dtype, name="stem_conv",
        )(x)  # fmt: skip
        x = activation(self.net.act)(self.norm(name="stem_bn", dtype=self.dtype)(x, train=train))
        maps = {"stem": x}
        block_type = nn.remat(InvertedResidual, static_argnums=(2,)) if self.remat else InvertedResidual
        count, done = sum(map(len, self.net.stages)), 0
        for s, stage in enumerate(self.net.stages):
            for i, block in enumerate(stage):
                rate = self.drop_path * done / count
                options: dict[str, Any] = {"drop_path": rate, "conv": self.conv, "norm": self.norm, "dtype": self.dtype}
                x = block_type(block, self.net, **options, name=f"blocks_{s}_{i}")(x, train)
                done += 1
            maps[f"stage{s}"] = x
        return maps


class MBEmbedding(nn.Module):
    """1x1 convolution, global average pooling, and MobileNetV3's dense layer, where the network has them."""

    net: MBNet
    conv: Callable[..., nn.Module] = Conv
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, maps: dict[str, jax.Array], *, train: bool = False) -> jax.Array:
        """The maps of `MBBackbone` -> [B, E]."""
        x, act = maps[list(maps)[-1]], activation(self.net.act)
        if self.net.head:
            options: dict[str, Any] = {"padding": 0, "use_bias": False, "kernel_init": kaiming_normal, "dtype": self.dtype}
            x = self.conv(self.net.head, (1, 1), **options, name="conv")(x)
            x = act(self.norm(name="bn", dtype=self.dtype)(x, train=train))
        x = x.mean(axis=(1, 2))
        if self.net.dense:
            x = act(nn.Dense(self.net.dense, kernel_init=torch_uniform, dtype=self.dtype, name="dense")(x))
        return x

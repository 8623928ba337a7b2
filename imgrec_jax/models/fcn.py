"""Fully convolutional networks for segmentation: Long et al.'s FCN-32s/16s/8s and torchvision's FCN-ResNet.

Long, Shelhamer, Darrell 2015 (arXiv:1411.4038) with the reference implementation's numbers; torchvision/models/
segmentation/fcn.py. Any input size works. Every model returns {"logits": [B, H, W, K] float32}, and "aux_logits" of
the same shape where there is an auxiliary head.

Shape letters: B batch, H W image, h w map, C channels, K classes with background.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from imgrec_jax.models.layers import Conv, torch_uniform
from imgrec_jax.models.norm import BatchNorm
from imgrec_jax.models.resnet import RESNETS, ResNet
from imgrec_jax.ops.precision import single
from imgrec_jax.ops.relu import relu
from imgrec_jax.ops.resize import pad_to_multiple, resize_bilinear

# Input scales of the skips' score layers when 32s, 16s and 8s are trained at once rather than one after the other
# (shelhamer/fcn.berkeleyvision.org, voc-fcn8s-atonce/net.py: scale_pool4, scale_pool3).
AT_ONCE_SCALES = (0.01, 0.0001)


def bilinear_kernel(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """A transposed convolution's kernel [4, 4, K, K] that doubles each channel's size by bilinear interpolation."""
    hat = np.array([0.25, 0.75, 0.75, 0.25])  # what a value contributes to the half-pixel centres around it
    return jnp.asarray(hat[:, None, None, None] * hat[:, None, None] * np.eye(shape[2], shape[3]), dtype)


class FCN(nn.Module):
    """Long et al.'s FCN over any backbone whose maps halve from one to the next.

    `levels` names the maps from the coarsest: ("pool5",) is FCN-32s on VGG, ("pool5", "pool4") 16s, and
    ("pool5", "pool4", "pool3") 8s. Between levels the scores are upsampled by learnt transposed convolutions that
    start as bilinear interpolation; the last upsampling is fixed and bilinear, as in the paper. Where the reference
    pads images by 100 pixels, fc6 here is padded to keep the map's size. `scales` multiply the skips' inputs
    (`AT_ONCE_SCALES` to train the skips from the start).
    """

    backbone: nn.Module
    num_classes: int
    levels: tuple[str, ...] = ("pool5", "pool4", "pool3")
    scales: tuple[float, ...] = (1.0, 1.0)
    hidden: int = 4096
    head_kernel: int = 7
    dropout: float = 0.5
    conv: Callable[..., nn.Module] = Conv
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """x [B, H, W, C], normalised -> {"logits": [B, H, W, K]}; needs a "dropout" key when training."""
        height, width = x.shape[1:3]
        strides = [self.backbone.strides[name] for name in self.levels]
        if any(coarse != 2 * fine for coarse, fine in zip(strides, strides[1:], strict=False)):
            raise ValueError(f"levels {self.levels} have strides {strides}; each must be half the one before")
        x = pad_to_multiple(x, strides[0])
        padded = x.shape[1:3]
        maps = self.backbone(x, train=train)
        x = maps[self.levels[0]]
        for name, kernel in (("fc6", self.head_kernel), ("fc7", 1)):
            init = nn.initializers.he_normal()
            conv = self.conv(self.hidden, (kernel, kernel), padding=kernel // 2, kernel_init=init, dtype=self.dtype, name=name)
            x = nn.Dropout(self.dropout, deterministic=not train)(relu(conv(x)))
        x = self._score("score", x)
        for name, scale in zip(self.levels[1:], self.scales[: len(self.levels) - 1], strict=True):
            x = self._double(f"upscore_{name}", x) + self._score(f"score_{name}", maps[name] * scale)
        x = resize_bilinear(single(x), padded)
        return {"logits": x[:, :height, :width]}

    def _score(self, name: str, x: jax.Array) -> jax.Array:
        # section 4.3: the class scoring layers start at zero
        conv = self.conv(self.num_classes, (1, 1), padding=0, kernel_init=nn.initializers.zeros, dtype=self.dtype, name=name)
        return conv(x)

    def _double(self, name: str, x: jax.Array) -> jax.Array:
        return nn.ConvTranspose(
            self.num_classes,
            (4, 4),
            strides=(2, 2),
            padding=((2, 2), (2, 2)),  # around the dilated input: the output is exactly twice as large
            use_bias=False,
            kernel_init=bilinear_kernel,
            dtype=self.dtype,
            name=name,
        )(x)


class FCNResNet(nn.Module):
    """torchvision's FCN: a dilated ResNet of output stride 8, a head on `layer4` and an auxiliary one on `layer3`."""

    backbone: ResNet
    num_classes: int = 21
    aux: bool = True
    dropout: float = 0.1
    conv: Callable[..., nn.Module] = Conv
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """x [B, H, W, 3], normalised -> {"logits", "aux_logits" if `aux`}; needs a "dropout" key when training."""
        maps = self.backbone(x, train=train)
        heads = {
            "logits": ("classifier", "layer4"),
            **({"aux_logits": ("aux_classifier", "layer3")} if self.aux else {}),
        }
        return {
            output: resize_bilinear(single(self._head(name, maps[level], train)), x.shape[1:3])
            for output, (name, level) in heads.items()
        }

    def _head(self, name: str, x: jax.Array, train: bool) -> jax.Array:
        width = x.shape[-1] // 4  # fcn.py:38
        init = {"kernel_init": torch_uniform, "dtype": self.dtype}
        x = self.conv(width, (3, 3), padding=1, use_bias=False, name=f"{name}_0", **init)(x)
        x = relu(self.norm(name=f"{name}_1", dtype=self.dtype)(x, train=train))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return self.conv(self.num_classes, (1, 1), padding=0, name=f"{name}_4", **init)(x)


def fcn_resnet(name: str, num_classes: int = 21, aux: bool = True, dropout: float = 0.1, **options: Any) -> FCNResNet:
    """fcn_resnet50 or fcn_resnet101 for `name` "resnet50" or "resnet101"; `options`: conv, norm, dtype (and remat)."""
    trunk = RESNETS[name](dilate=(False, False, True, True), **options)
    options.pop("remat", None)
    return FCNResNet(trunk, num_classes, aux, dropout, **options)

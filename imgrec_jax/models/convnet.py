"""Plain convolutional networks for classification, from the classic MNIST ones to a small modern one.

Shape letters: B batch, H W C image, K classes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from imgrec_jax.models.layers import MONOTONE, Conv, Named, activation, initializer
from imgrec_jax.models.norm import make_norm
from imgrec_jax.ops.pool import max_pool


class Stage(NamedTuple):
    """One convolution: its features, kernel side, stride, and the side of the max-pooling after it (1: none)."""

    features: int
    kernel: int = 3
    stride: int = 1
    pool: int = 1


class ConvNet(nn.Module):
    """Convolutions with pooling, then dense layers. The input size is free: the first dense layer takes what comes.

    Attributes:
      convs: the convolutions, as `Stage` or plain tuples of its fields.
      dense: widths of the hidden dense layers.
      num_classes: outputs K.
      padding: "VALID" or "SAME".
      head: "flatten", or "gap" for global average pooling before the dense layers.
      activation, kernel_init: names of `layers.py`; norm: a name of `norm.py`.
      dropout: rate before every dense layer but the first, and before the only one.
      norm_options: fields of the norm, e.g. {"momentum": 0.8}.
      axis_name: mapped axis under `pmap`, for batch normalisation.
    """

    convs: tuple[tuple, ...]
    dense: tuple[int, ...] = ()
    num_classes: int = 10
    padding: str = "VALID"
    head: str = "flatten"
    activation: str = "relu"
    kernel_init: str = "he_normal"
    norm: str = "none"
    norm_options: tuple[tuple[str, float], ...] = ()
    dropout: float = 0.0
    axis_name: str | None = None
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """x [B, H, W, C] -> logits [B, K]."""
        act, init = activation(self.activation), initializer(self.kernel_init)
        norm = make_norm(self.norm, axis_name=self.axis_name, dtype=self.dtype, **dict(self.norm_options))
        for i, spec in enumerate(self.convs):
            conv = Stage(*spec)
            x = Conv(
                conv.features,
                (conv.kernel, conv.kernel),
                conv.stride,
                self.padding,
                use_bias=self.norm == "none",
                kernel_init=init,
                dtype=self.dtype,
                name=f"conv{i + 1}",
            )(x)
            x = norm(name=f"norm{i + 1}")(x, train=train)
            if conv.pool == 1:
                x = Named(name=f"act{i + 1}")(act(x))
            elif self.activation in MONOTONE:
                x = act(max_pool(x, conv.pool))
            else:
                x = max_pool(act(x), conv.pool)
        if self.head == "gap":
            x = jnp.mean(x, axis=(1, 2))
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.dense):
            if i:
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = act(nn.Dense(width, kernel_init=init, dtype=self.dtype, name=f"dense{i + 1}")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, kernel_init=init, dtype=self.dtype, name="logits")(x)


def _preset(convs: tuple[Stage, ...], given: dict, **options) -> ConvNet:
    return ConvNet(**{"convs": tuple(map(tuple, convs)), **options, **given})


def pytorch_cnn(**options) -> ConvNet:
    """The network of PyTorch's first MNIST example: conv5 10, pool, conv5 20, pool, dense 50; 21,840 parameters there."""
    return _preset((Stage(10, 5, pool=2), Stage(20, 5, pool=2)), options, dense=(50,), kernel_init="torch")


def keras_cnn(**options) -> ConvNet:
    """The network of Keras's first MNIST example: conv3 32, pool, conv3 64, pool, conv3 64, dense 64; 93,322 parameters."""
    return _preset((Stage(32, pool=2), Stage(64, pool=2), Stage(64)), options, dense=(64,), kernel_init="glorot_uniform")


def wide_cnn(**options) -> ConvNet:
    """conv3 64, pool, conv3 128, pool, dense 256, for images of any size."""
    return _preset((Stage(64, pool=2), Stage(128, pool=2)), options, dense=(256,), padding="SAME")

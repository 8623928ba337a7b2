"""What follows a crop: a head that describes it, and a predictor of its class, its box and its mask, class by class.

Shape letters: M crops, h w C crop, K foreground classes; class 0 is background.
Layers, names and initial values follow torchvision/models/detection/faster_rcnn.py and mask_rcnn.py. Crops are flattened as
(h, w, C); torchvision's weights, made for (C, h, w), are permuted when loaded.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from imgrec_jax.models.layers import Conv, kaiming_normal, torch_uniform
from imgrec_jax.ops.precision import single
from imgrec_jax.ops.relu import relu


class TwoMLPHead(nn.Module):
    """Two fully connected layers; 1024 wide after an FPN, 4096 with dropout 0.5 after VGG16 (Fast R-CNN).

    With `norm`, which neither has, it follows each layer in place of a bias.
    """

    width: int = 1024
    dropout: float = 0.0
    norm: Callable[..., nn.Module] | None = None
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, valid: jax.Array | None = None, train: bool = False) -> jax.Array:
        """x [M, h, w, C] -> [M, width]; crops that are not `valid` (bool [M]) do not enter batch statistics.

        Needs a "dropout" key when training with dropout.
        """
        x = x.reshape(x.shape[0], -1)
        for name in ("fc6", "fc7"):
            x = nn.Dense(self.width, use_bias=self.norm is None, kernel_init=torch_uniform, dtype=self.dtype, name=name)(x)
            if self.norm is not None:
                mask = None if valid is None else valid[:, None]
                x = self.norm(name=f"{name}_norm", dtype=self.dtype)(x, train=train, mask=mask)
            x = nn.Dropout(self.dropout, deterministic=not train)(relu(x))
        return x


class ConvFCHead(nn.Module):
    """3x3 convolutions with a norm each, then one fully connected layer (torchvision's v2 detector)."""

    conv_widths: tuple[int, ...] = (256, 256, 256, 256)
    width: int = 1024
    norm: Callable[..., nn.Module] | None = None
    conv: Callable[..., nn.Module] = Conv
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, valid: jax.Array | None = None, train: bool = False) -> jax.Array:
        """x [M, h, w, C] -> [M, width]; crops that are not `valid` (bool [M]) do not enter batch statistics."""
        for i, features in enumerate(self.conv_widths):
            x = conv_norm_relu(self, x, features, i, valid, train)
        x = x.reshape(x.shape[0], -1)
        return relu(nn.Dense(self.width, kernel_init=torch_uniform, dtype=self.dtype, name="fc")(x))


class FastRCNNPredictor(nn.Module):
    """Two linear layers side by side."""

    num_classes: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x [M, width] -> class logits [M, K + 1] and box deltas [M, K + 1, 4], float32."""
        logits = nn.Dense(self.num_classes, kernel_init=torch_uniform, dtype=self.dtype, name="cls_score")(x)
        deltas = nn.Dense(4 * self.num_classes, kernel_init=torch_uniform, dtype=self.dtype, name="bbox_pred")(x)
        deltas = deltas.reshape(-1, self.num_classes, 4)
        return single(logits), single(deltas)


class MaskHead(nn.Module):
    """3x3 convolutions with ReLU (torchvision's MaskRCNNHeads); with `norm`, as in its v2, without biases."""

    conv_widths: tuple[int, ...] = (256, 256, 256, 256)
    norm: Callable[..., nn.Module] | None = None
    conv: Callable[..., nn.Module] = Conv
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, valid: jax.Array | None = None, train: bool = False) -> jax.Array:
        """x [M, h, w, C] -> [M, h, w, width]; crops that are not `valid` (bool [M]) do not enter batch statistics."""
        for i, features in enumerate(self.conv_widths):
            x = conv_norm_relu(self, x, features, i, valid, train)
        return x


class MaskRCNNPredictor(nn.Module):
    """A transposed convolution to twice the side, then a logit for each class of each pixel."""

    num_classes: int
    width: int = 256
    conv: Callable[..., nn.Module] = Conv
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [M, h, w, C] -> [M, 2h, 2w, K + 1], float32."""
        x = relu(TwiceAsLarge(self.width, dtype=self.dtype, name="conv5_mask")(x))
        logits = self.conv(self.num_classes, (1, 1), kernel_init=kaiming_normal, dtype=self.dtype, name="mask_fcn_logits")(x)
        return single(logits)


class TwiceAsLarge(nn.Module):
    """A transposed convolution of kernel and stride 2: every pixel becomes 2 x 2, and no two meet.

    The kernel [2, 2, C, D] is that of torch's ConvTranspose2d (C, D, 2, 2) with its axes moved.
    """

    features: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [M, h, w, C] -> [M, 2h, 2w, D]."""
        # torch counts the fan of its (C, D, 2, 2) with C first: kaiming_normal's fan_out is C * 4
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal", in_axis=2, out_axis=3)
        kernel = self.param("kernel", init, (2, 2, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        dtype = self.dtype or x.dtype
        y = jnp.einsum("mhwc,ijcd->mhiwjd", x.astype(dtype), kernel.astype(dtype)) + bias.astype(dtype)
        return y.reshape(x.shape[0], 2 * x.shape[1], 2 * x.shape[2], self.features)


def conv_norm_relu(
    head: ConvFCHead | MaskHead, x: jax.Array, features: int, index: int, valid: jax.Array | None, train: bool
) -> jax.Array:
    """The convolution `index` of a head, in its scope, with its norm where it has one."""
    x = head.conv(
        features,
        (3, 3),
        padding=1,
        use_bias=head.norm is None,
        kernel_init=kaiming_normal,
        dtype=head.dtype,
        name=f"conv_{index}",
    )(x)
    if head.norm is not None:
        mask = None if valid is None else valid[:, None, None, None]
        x = head.norm(name=f"norm_{index}", dtype=head.dtype)(x, train=train, mask=mask)
    return relu(x)


class RoIHeads(nn.Module):
    """A box head and its predictor; with a mask head and its predictor for Mask R-CNN."""

    box_head: nn.Module
    box_predictor: FastRCNNPredictor
    mask_head: MaskHead | None = None
    mask_predictor: MaskRCNNPredictor | None = None

    def __call__(self, crops: jax.Array, *, valid: jax.Array | None = None, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """crops [M, h, w, C], valid bool [M] -> class logits [M, K + 1], box deltas [M, K + 1, 4]."""
        return self.box_predictor(self.box_head(crops, valid=valid, train=train))

    def masks(self, crops: jax.Array, *, valid: jax.Array | None = None, train: bool = False) -> jax.Array:
        """crops [M, h, w, C], valid bool [M] -> mask logits [M, 2h, 2w, K + 1]."""
        assert self.mask_head is not None and self.mask_predictor is not None
        return self.mask_predictor(self.mask_head(crops, valid=valid, train=train))

"""VGG as torchvision builds it (Simonyan and Zisserman 2014, arXiv:1409.1556), layer numbers kept.

Shape letters: B batch, H W image, C channels, K classes.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from imgrec_jax.models.resnet import kaiming_normal
from imgrec_jax.ops.pool import max_pool
from imgrec_jax.ops.resize import adaptive_avg_pool

VGG16_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # (width, convolutions): configuration D


class VGG(nn.Module):
    """VGG trunk; maps "conv1".."conv5" (before pooling i) and "pool1".."pool5".

    `norm` puts a normalisation after each convolution, as vgg16_bn does.
    """

    stages: tuple[tuple[int, int], ...] = VGG16_STAGES
    norm: Callable[..., nn.Module] | None = None
    conv: Callable[..., nn.Module] = nn.Conv
    dtype: jnp.dtype | None = None

    @property
    def strides(self) -> dict[str, int]:
        """Input pixels per cell of each map."""
        numbers = range(1, len(self.stages) + 1)
        return {name: stride for i in numbers for name, stride in ((f"conv{i}", 2 ** (i - 1)), (f"pool{i}", 2**i))}

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each map."""
        return {f"{kind}{i}": w for i, (w, _) in enumerate(self.stages, start=1) for kind in ("conv", "pool")}

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """x [B, H, W, 3], normalised -> {"conv1": ..., "pool1": ..., ..., "pool5": ...}."""
        maps = {}
        index = 0  # torchvision numbers convolutions, norms, activations and poolings in one sequence
        for stage, (width, depth) in enumerate(self.stages, start=1):
            for _ in range(depth):
                conv = self.conv(
                    width, (3, 3), padding=1, kernel_init=kaiming_normal, dtype=self.dtype, name=f"features_{index}"
                )
                x = conv(x)
                if self.norm is not None:
                    index += 1
                    x = self.norm(name=f"features_{index}", dtype=self.dtype)(x, train=train)
                x = nn.relu(x)
                index += 2
            maps[f"conv{stage}"] = x
            x = max_pool(x, 2)
            maps[f"pool{stage}"] = x
            index += 1
        return maps


class VGGClassifier(nn.Module):
    """VGG's head: adaptive average pooling to 7x7, then 4096-4096-K with dropout."""

    backbone: VGG
    num_classes: int = 1000
    hidden: int = 4096
    dropout: float = 0.5
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """x [B, H, W, 3] -> logits [B, K], float32; needs a "dropout" key when training."""
        x = self.backbone(x, train=train)[f"pool{len(self.backbone.stages)}"]
        x = adaptive_avg_pool(x, (7, 7)).reshape(x.shape[0], -1)
        for layer, width in (("classifier_0", self.hidden), ("classifier_3", self.hidden)):
            x = nn.relu(self._linear(width, layer)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return self._linear(self.num_classes, "classifier_6")(x).astype(jnp.float32)

    def _linear(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(features, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype, name=name)

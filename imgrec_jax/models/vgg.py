"""VGG as torchvision builds it (Simonyan and Zisserman 2014, arXiv:1409.1556), layer numbers kept.

Shape letters: B batch, H W image, C channels, K classes.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from imgrec_jax.models.layers import Conv, kaiming_normal
from imgrec_jax.ops.pool import max_pool
from imgrec_jax.ops.relu import relu
from imgrec_jax.ops.resize import adaptive_avg_pool

# (width, convolutions) of each stage: configurations A, B, D and E
VGG_STAGES: dict[str, tuple[tuple[int, int], ...]] = {
    f"vgg{layers}": tuple(zip((64, 128, 256, 512, 512), depths, strict=True))
    for layers, depths in {
        11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4),
    }.items()
}  # fmt: skip
VGG16_STAGES = VGG_STAGES["vgg16"]


class VGG(nn.Module):
    """VGG trunk; maps "conv1".."conv5" (before pooling i) and "pool1".."pool5".

    `norm` puts a normalisation after each convolution, as vgg16_bn does.
    """

    stages: tuple[tuple[int, int], ...] = VGG16_STAGES
    norm: Callable[..., nn.Module] | None = None
    conv: Callable[..., nn.Module] = Conv
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
                x = relu(x)
                index += 2
            maps[f"conv{stage}"] = x
            x = max_pool(x, 2)
            maps[f"pool{stage}"] = x
            index += 1
        return maps


class VGGEmbedding(nn.Module):
    """What is before VGG's last layer: adaptive average pooling to 7x7, then two layers of `hidden` with dropout between.

    `pool_only` takes the mean of the last map in place of all that.
    """

    pool_only: bool = False
    hidden: int = 4096
    dropout: float = 0.5
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, maps: dict[str, jax.Array], *, train: bool = False) -> jax.Array:
        """The maps of `VGG` -> [B, hidden]; needs a "dropout" key when training."""
        x = maps[list(maps)[-1]]
        if self.pool_only:
            return x.mean(axis=(1, 2))
        x = adaptive_avg_pool(x, (7, 7)).reshape(x.shape[0], -1)
        x = relu(self._linear("fc6")(x))
        return relu(self._linear("fc7")(nn.Dropout(self.dropout, deterministic=not train)(x)))

    def _linear(self, name: str) -> nn.Dense:
        return nn.Dense(self.hidden, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype, name=name)

"""Feature pyramid network as torchvision builds it (Lin et al. 2017, arXiv:1612.03144).

torchvision/ops/feature_pyramid_network.py: 1x1 laterals, nearest top-down path added at the lateral's size, 3x3
outputs, and above them, of strides twice as large each, either LastLevelMaxPool, a subsampling of the coarsest output called
"pool", or LastLevelP6P7, two strided convolutions called "p6" and "p7" (RetinaNet).

Shape letters: B batch, H W map, C channels.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from imgrec_jax.models.layers import Conv
from imgrec_jax.ops.relu import relu
from imgrec_jax.ops.resize import resize_nearest

# torchvision/ops/feature_pyramid_network.py:101-105: kaiming_uniform with a=1 has variance 1 / fan_in
kaiming_uniform_a1 = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


# The maps above the coarsest output, and what they are made from: "output" of the pyramid, or "input" of its coarsest lateral.
TOPS: dict[str, tuple[tuple[str, ...], str]] = {
    "pool": (("pool",), "output"),
    "p6p7": (("p6", "p7"), "output"),
    "p6p7_of_c5": (("p6", "p7"), "input"),
}


class FPN(nn.Module):
    """Maps of one width from backbone maps. With `norm` (the v2 detector), convolutions have no bias.

    top: of TOPS; RetinaNet's "p6p7" begins at P5, as torchvision's first one, or with "p6p7_of_c5" at C5, as its v2.
    """

    features: int = 256
    top: str = "pool"
    norm: Callable[..., nn.Module] | None = None
    conv: Callable[..., nn.Module] = Conv
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, maps: Mapping[str, jax.Array], *, train: bool = False) -> dict[str, jax.Array]:
        """{name: [B, H, W, C]} from fine to coarse -> {name: [B, H, W, features], and the maps of `top`}."""
        laterals = [self._conv_norm(x, f"inner_blocks_{i}", 1, train) for i, x in enumerate(maps.values())]
        merged = laterals[-1:]
        for lateral in laterals[-2::-1]:
            merged.insert(0, lateral + resize_nearest(merged[0], lateral.shape[1:3]))
        outputs = {
            name: self._conv_norm(x, f"layer_blocks_{i}", 3, train)
            for i, (name, x) in enumerate(zip(maps, merged, strict=True))
        }
        coarsest = list(maps)[-1]
        if self.top == "pool":
            return {**outputs, "pool": outputs[coarsest][:, ::2, ::2]}
        p6 = self._strided((maps if TOPS[self.top][1] == "input" else outputs)[coarsest], "extra_blocks_p6")
        return {**outputs, "p6": p6, "p7": self._strided(relu(p6), "extra_blocks_p7")}

    def _strided(self, x: jax.Array, name: str) -> jax.Array:
        return self.conv(
            self.features, (3, 3), strides=2, padding=1, kernel_init=kaiming_uniform_a1, dtype=self.dtype, name=name
        )(x)

    def _conv_norm(self, x: jax.Array, name: str, size: int, train: bool) -> jax.Array:
        x = self.conv(
            self.features,
            (size, size),
            padding=size // 2,
            use_bias=self.norm is None,
            kernel_init=kaiming_uniform_a1,
            dtype=self.dtype,
            name=f"{name}_0",
        )(x)
        return x if self.norm is None else self.norm(name=f"{name}_1", dtype=self.dtype)(x, train=train)


class BackboneWithFPN(nn.Module):
    """A backbone `body` whose maps `levels` (fine to coarse) feed an `fpn`; itself a backbone with named maps."""

    body: nn.Module
    fpn: FPN
    levels: tuple[str, ...] = ("layer1", "layer2", "layer3", "layer4")

    @property
    def strides(self) -> dict[str, int]:
        """Input pixels per cell of each level; those above have twice as many each."""
        strides = {name: self.body.strides[name] for name in self.levels}
        above = {name: 2**n * strides[self.levels[-1]] for n, name in enumerate(TOPS[self.fpn.top][0], start=1)}
        return {**strides, **above}

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each map."""
        return dict.fromkeys((*self.levels, *TOPS[self.fpn.top][0]), self.fpn.features)

    def __call__(self, x: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """x [B, H, W, C], normalised -> {level: [B, H, W, fpn.features], ...}."""
        maps = self.body(x, train=train)
        return self.fpn({name: maps[name] for name in self.levels}, train=train)

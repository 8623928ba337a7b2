"""The region proposal network of Faster R-CNN (Ren et al. 2015, arXiv 1506.01497), over one level or a pyramid.

Shape letters: B batch, H W C feature map, A anchors per cell, N = H * W * A anchors of a level, L levels.
Layers, names and initial values follow torchvision/models/detection/rpn.py.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from imgrec_jax.detection.anchors import cell_anchors, pyramid_anchors
from imgrec_jax.models.layers import Conv
from imgrec_jax.ops.precision import single
from imgrec_jax.ops.relu import relu


class RPNHead(nn.Module):
    """3x3 convolutions, then an objectness logit and four box deltas per anchor; the same weights on every level."""

    anchors_per_cell: int
    conv_depth: int = 1
    conv: Callable[..., nn.Module] = Conv
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """x [B, H, W, C] -> logits [B, N] and deltas [B, N, 4] in the order (row, column, anchor), float32."""
        for i in range(self.conv_depth):
            x = relu(self._layer(x.shape[-1], 3, f"conv_{i}_0")(x))
        logits = self._layer(self.anchors_per_cell, 1, "cls_logits")(x)
        deltas = self._layer(4 * self.anchors_per_cell, 1, "bbox_pred")(x)
        batch = x.shape[0]
        return single(logits.reshape(batch, -1)), single(deltas.reshape(batch, -1, 4))

    def _layer(self, features: int, size: int, name: str) -> nn.Module:
        init = nn.initializers.normal(0.01)
        return self.conv(features, (size, size), padding=size // 2, kernel_init=init, dtype=self.dtype, name=name)


class RPNOutput(NamedTuple):
    """One entry per level."""

    logits: list[jax.Array]  # [B, N]
    deltas: list[jax.Array]  # [B, N, 4]
    anchors: list[np.ndarray]  # [N, 4]


class RPN(nn.Module):
    """`head` on the maps `levels`, with the anchors it refers to.

    Attributes:
      head: its `anchors_per_cell` is len(sizes of one level) * len(aspect_ratios).
      levels: names of the maps, fine to coarse.
      anchor_sizes: per level, square roots of areas in pixels.
      aspect_ratios: height / width.
      fixed_strides: {level: pixels} for anchors spaced as detectron2 does, with corners not rounded; None for
        torchvision's rule, the integer quotient of image and map, with corners rounded.
    """

    head: RPNHead
    levels: tuple[str, ...]
    anchor_sizes: tuple[tuple[float, ...], ...]
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    fixed_strides: Mapping[str, int] | None = None

    def __call__(self, features: Mapping[str, jax.Array], image_hw: Sequence[int]) -> RPNOutput:
        """features {level: [B, H, W, C]} of a network input of `image_hw` = padded (height, width)."""
        maps = [features[name] for name in self.levels]
        logits, deltas = zip(*[self.head(x) for x in maps], strict=True)
        return RPNOutput(list(logits), list(deltas), self.anchors([x.shape[1:3] for x in maps], image_hw))

    def anchors(self, grid_sizes: Sequence[Sequence[int]], image_hw: Sequence[int]) -> list[np.ndarray]:
        """L arrays [N, 4] for feature maps of `grid_sizes` (H, W)."""
        strides = self.fixed_strides
        cells = [cell_anchors(sizes, self.aspect_ratios, strides is None) for sizes in self.anchor_sizes]
        if strides is None:
            return pyramid_anchors(cells, grid_sizes, image_size=image_hw)
        return pyramid_anchors(cells, grid_sizes, strides=[strides[name] for name in self.levels])

"""RetinaNet: classes and boxes straight from the anchors of a feature pyramid (Lin et al. 2017, arXiv 1708.02002).

One stage: no proposals, no crops. Two towers of convolutions, shared by all levels, say of every anchor how likely each class
is and how the box differs from it. Layers, names and initial values follow torchvision/models/detection/retinanet.py.

Shape letters: B batch, H W image or map, C channels, A anchors per cell, N anchors of one level, K foreground classes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from imgrec_jax.detection.anchors import cell_anchors, pyramid_anchors
from imgrec_jax.models.fpn import FPN, BackboneWithFPN
from imgrec_jax.models.layers import Conv
from imgrec_jax.models.norm import BatchNorm, FrozenBatchNorm, GroupNorm
from imgrec_jax.models.resnet import RESNETS
from imgrec_jax.ops.precision import single
from imgrec_jax.ops.relu import relu

PRIOR = 0.01  # probability of each class at the start, so that the many empty anchors do not swamp the first steps
BOX_LOSSES = ("l1", "giou")
_normal = nn.initializers.normal(0.01)


class Tower(nn.Module):
    """3x3 convolutions with ReLU, then one that has `outputs` channels for each anchor of a cell.

    Attributes:
      last: name of the last convolution; bias: its initial bias.
      norm: after each convolution in place of its bias; None as in torchvision's first RetinaNet.
    """

    outputs: int
    anchors_per_cell: int
    last: str
    bias: float = 0.0
    depth: int = 4
    norm: Callable[..., nn.Module] | None = None
    conv: Callable[..., nn.Module] = Conv
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """x [B, H, W, C] -> [B, N, outputs] in the order (row, column, anchor), float32."""
        for i in range(self.depth):
            x = self.conv(
                x.shape[-1],
                (3, 3),
                padding=1,
                use_bias=self.norm is None,
                kernel_init=_normal,
                dtype=self.dtype,
                name=f"conv_{i}_0",
            )(x)
            if self.norm is not None:
                x = self.norm(name=f"conv_{i}_1", dtype=self.dtype)(x, train=train)
            x = relu(x)
        x = self.conv(
            self.anchors_per_cell * self.outputs,
            (3, 3),
            padding=1,
            kernel_init=_normal,
            bias_init=nn.initializers.constant(self.bias),
            dtype=self.dtype,
            name=self.last,
        )(x)
        return single(x.reshape(x.shape[0], -1, self.outputs))


class RetinaNetHead(nn.Module):
    """The two towers."""

    classification_head: Tower
    regression_head: Tower

    def __call__(self, x: jax.Array, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """x [B, H, W, C] -> class logits [B, N, K + 1] and box deltas [B, N, 4]."""
        return self.classification_head(x, train=train), self.regression_head(x, train=train)


class RetinaNetOutput(NamedTuple):
    """One entry per level."""

    logits: list[jax.Array]  # [B, N, K + 1]
    deltas: list[jax.Array]  # [B, N, 4]
    anchors: list[np.ndarray]  # [N, 4]


class RetinaNet(nn.Module):
    """A one-stage detector.

    Attributes:
      backbone: images -> {name: map}.
      head: its towers have len(sizes of one level) * len(aspect_ratios) anchors per cell.
      levels: names of the maps, fine to coarse.
      anchor_sizes: per level, square roots of areas in pixels; aspect_ratios: height / width.
      box_loss: "l1" of the deltas, or "giou", 1 minus the generalised IoU of the decoded boxes (torchvision's v2).
    """

    backbone: nn.Module
    head: RetinaNetHead
    levels: tuple[str, ...]
    anchor_sizes: tuple[tuple[float, ...], ...]
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    box_loss: str = "l1"

    @property
    def num_classes(self) -> int:
        """K + 1, background included: torchvision's released weights have a logit for it, which nothing reads."""
        return self.head.classification_head.outputs

    @property
    def needs_proposals(self) -> bool:
        """Whether the batch must bring proposals."""
        return False

    @property
    def has_masks(self) -> bool:
        """Whether it draws the mask of each detection."""
        return False

    def __call__(self, images: jax.Array, *, train: bool = False) -> RetinaNetOutput:
        """images [B, H, W, C], normalised."""
        features = self.backbone(images, train=train)
        maps = [features[name] for name in self.levels]
        logits, deltas = zip(*[self.head(x, train=train) for x in maps], strict=True)
        return RetinaNetOutput(list(logits), list(deltas), self.anchors([x.shape[1:3] for x in maps], images.shape[1:3]))

    def anchors(self, grid_sizes: Sequence[Sequence[int]], image_hw: Sequence[int]) -> list[np.ndarray]:
        """L arrays [N, 4] for feature maps of `grid_sizes` (H, W)."""
        cells = [cell_anchors(sizes, self.aspect_ratios) for sizes in self.anchor_sizes]
        return pyramid_anchors(cells, grid_sizes, image_size=image_hw)


def make_retinanet(
    *,
    backbone: nn.Module,
    num_classes: int,
    levels: tuple[str, ...],
    anchor_sizes: tuple[tuple[float, ...], ...],
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
    depth: int = 4,
    norm: Callable[..., nn.Module] | None = None,
    box_loss: str = "l1",
    conv: Callable[..., nn.Module] = Conv,
    dtype: jnp.dtype | None = None,
) -> RetinaNet:
    """Args: as `RetinaNet`; num_classes: K + 1; depth, norm, conv, dtype: of the towers."""
    if box_loss not in BOX_LOSSES:
        raise ValueError(f"box_loss={box_loss!r} is unknown; choose one of {BOX_LOSSES}")
    if len(levels) != len(anchor_sizes) or len({len(sizes) for sizes in anchor_sizes}) > 1:
        raise ValueError(f"anchor_sizes={anchor_sizes}: expected one tuple for each of {levels}, all of one length")
    tower: dict[str, Any] = {
        "anchors_per_cell": len(anchor_sizes[0]) * len(aspect_ratios),
        "depth": depth,
        "norm": norm,
        "conv": conv,
    }
    head = RetinaNetHead(
        Tower(num_classes, last="cls_logits", bias=-math.log((1 - PRIOR) / PRIOR), dtype=dtype, **tower),
        Tower(4, last="bbox_reg", dtype=dtype, **tower),
    )
    return RetinaNet(backbone, head, levels, anchor_sizes, aspect_ratios, box_loss)


RETINA_LEVELS = ("layer2", "layer3", "layer4")


def octaves(sizes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Three sizes for each, a third of an octave apart, cut to whole pixels as torchvision does."""
    return tuple((size, int(size * 2 ** (1 / 3)), int(size * 2 ** (2 / 3))) for size in sizes)


RETINA_ANCHOR_SIZES = octaves((32, 64, 128, 256, 512))


def retinanet_resnet50_fpn(
    num_classes: int = 91,
    *,
    norm: Callable[..., nn.Module] = FrozenBatchNorm,
    conv: Callable[..., nn.Module] = Conv,
    remat: bool = False,
    dtype: jnp.dtype | None = None,
) -> RetinaNet:
    """torchvision's detector of that name, weight for weight.

    Pass norm=partial(FrozenBatchNorm, epsilon=0.0) for the released COCO_V1 weights, which torchvision runs so.
    """
    body = RESNETS["resnet50"](norm=norm, conv=conv, remat=remat, dtype=dtype)
    pyramid = BackboneWithFPN(body, FPN(top="p6p7", conv=conv, dtype=dtype), RETINA_LEVELS)
    return _resnet50_fpn(pyramid, num_classes, conv=conv, dtype=dtype)


def retinanet_resnet50_fpn_v2(
    num_classes: int = 91,
    *,
    norm: Callable[..., nn.Module] = BatchNorm,
    conv: Callable[..., nn.Module] = Conv,
    remat: bool = False,
    dtype: jnp.dtype | None = None,
) -> RetinaNet:
    """torchvision's detector of that name, weight for weight: live norms, P6 from C5, group norm in the towers, GIoU."""
    body = RESNETS["resnet50"](norm=norm, conv=conv, remat=remat, dtype=dtype)
    pyramid = BackboneWithFPN(body, FPN(top="p6p7_of_c5", conv=conv, dtype=dtype), RETINA_LEVELS)
    return _resnet50_fpn(pyramid, num_classes, norm=GroupNorm, box_loss="giou", conv=conv, dtype=dtype)


def _resnet50_fpn(pyramid: BackboneWithFPN, num_classes: int, **options) -> RetinaNet:
    levels = (*RETINA_LEVELS, "p6", "p7")
    return make_retinanet(backbone=pyramid, num_classes=num_classes, levels=levels, anchor_sizes=RETINA_ANCHOR_SIZES, **options)

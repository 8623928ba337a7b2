"""R-CNN, Fast R-CNN, Faster R-CNN and Mask R-CNN: one detector assembled from parts.

They differ in three places: where proposals come from (the batch, or a region proposal network), whether the crop of a
proposal is taken from the pixels or from feature maps that all proposals share, and whether a head draws the object's mask.

- R-CNN (Girshick et al. 2014, arXiv 1311.2524): proposals from the batch, crops from the pixels, the backbone once per
  crop. Trained end to end with a softmax and a joint loss; the paper's separate SVMs and regressors are not rebuilt.
- Fast R-CNN (Girshick 2015, arXiv 1504.08083): proposals from the batch, crops from shared features.
- Faster R-CNN (Ren et al. 2015, arXiv 1506.01497): proposals from an RPN on the shared features.
- Mask R-CNN (He et al. 2017, arXiv 1703.06870): Faster R-CNN, and a mask for each detection from a crop of its own.

Shape letters: B batch, H W C image, P proposals, K foreground classes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imgrec_jax.detection.roi_align import roi_align, roi_pool
from imgrec_jax.models.box_head import ConvFCHead, FastRCNNPredictor, MaskHead, MaskRCNNPredictor, RoIHeads, TwoMLPHead
from imgrec_jax.models.fpn import FPN, BackboneWithFPN
from imgrec_jax.models.layers import Conv
from imgrec_jax.models.norm import BatchNorm, FrozenBatchNorm
from imgrec_jax.models.resnet import RESNETS
from imgrec_jax.models.rpn import RPN, RPNHead, RPNOutput
from imgrec_jax.ops.settle import settled

KINDS = ("rcnn", "fast", "faster", "mask")
CROPS = ("roi_align", "roi_pool")


class RCNN(nn.Module):
    """A two-stage detector.

    Attributes:
      backbone: images -> {name: map}, with `strides`.
      roi_heads: crops -> class logits and box deltas.
      box_levels: maps that crops are taken from, fine to coarse; of crops from pixels, the one map of each crop that
        `roi_heads` sees.
      rpn: None when the batch brings the proposals.
      crop_from_pixels: R-CNN's way.
      crop: "roi_align", or "roi_pool" (one level only).
      output_size: (height, width) of a crop, in cells or, from pixels, in pixels.
      mask_size: (height, width) of the crop of the mask head, in cells; its masks have twice as many pixels a side.
      mask_levels: maps that the mask head's crops are taken from; () stands for `box_levels`.
      sampling_ratio, aligned: of `roi_align`.
      context: pixels of a crop from pixels that show what surrounds the proposal, on each side (16 of 227 in the
        paper).
    """

    backbone: nn.Module
    roi_heads: RoIHeads
    box_levels: tuple[str, ...]
    rpn: RPN | None = None
    crop_from_pixels: bool = False
    crop: str = "roi_align"
    output_size: tuple[int, int] = (7, 7)
    mask_size: tuple[int, int] = (14, 14)
    mask_levels: tuple[str, ...] = ()
    sampling_ratio: int = 2
    aligned: bool = False
    context: int = 0

    @property
    def num_classes(self) -> int:
        """K + 1, background included."""
        return self.roi_heads.box_predictor.num_classes

    @property
    def needs_proposals(self) -> bool:
        """Whether the batch must bring proposals."""
        return self.rpn is None

    @property
    def has_masks(self) -> bool:
        """Whether it draws the mask of each detection, and learns from the batch's."""
        return self.roi_heads.mask_head is not None

    def features(self, images: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """images [B, H, W, C], normalised -> the shared maps; none when crops come from pixels."""
        return {} if self.crop_from_pixels else self.backbone(images, train=train)

    def propose(self, features: Mapping[str, jax.Array], image_hw: Sequence[int]) -> RPNOutput:
        """The RPN's raw outputs; only for a detector that has one."""
        assert self.rpn is not None
        return self.rpn(features, image_hw)

    def classify(
        self,
        images: jax.Array,
        features: Mapping[str, jax.Array],
        rois: jax.Array,
        valid: jax.Array,
        *,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """rois [B, P, 4] in pixels, valid bool [B, P] -> class logits [B, P, K + 1], box deltas [B, P, K + 1, 4]."""
        if self.crop_from_pixels:
            crops = jax.vmap(self._crop_pixels)(images, rois)
            crops = crops.reshape(-1, *crops.shape[2:])
            crops = self.backbone(crops, train=train)[self.box_levels[-1]]
        else:
            crops = self._crop_features(features, self.box_levels, rois, self.output_size)
        outputs = self.roi_heads(crops, valid=valid.ravel(), train=train)
        return jax.tree.map(lambda x: x.reshape(*rois.shape[:2], *x.shape[1:]), outputs)

    def __call__(self, images: jax.Array, rois: jax.Array, valid: jax.Array, *, train: bool = False) -> tuple:
        """Every part once: what `init` needs."""
        features = self.features(images, train=train)
        rpn = None if self.rpn is None else self.propose(features, images.shape[1:3])
        masks = self.draw(features, rois, valid, train=train) if self.has_masks else None
        return rpn, self.classify(images, features, rois, valid, train=train), masks

    def draw(self, features: Mapping[str, jax.Array], rois: jax.Array, valid: jax.Array, *, train: bool = False) -> jax.Array:
        """rois [B, P, 4] in pixels, valid bool [B, P] -> mask logits [B, P, h, w, K + 1]; only where it has masks."""
        crops = self._crop_features(features, self.mask_levels or self.box_levels, rois, self.mask_size)
        logits = self.roi_heads.masks(crops, valid=valid.ravel(), train=train)
        return logits.reshape(*rois.shape[:2], *logits.shape[1:])

    def _crop_features(
        self, features: Mapping[str, jax.Array], levels: Sequence[str], rois: jax.Array, size: tuple[int, int]
    ) -> jax.Array:
        """rois [B, P, 4] -> [B * P, *size, C]."""
        strides = [self.backbone.strides[name] for name in levels]

        def one(maps: list[jax.Array], rois: jax.Array) -> jax.Array:
            if self.crop == "roi_pool":
                (only_map,), (stride,) = maps, strides
                return roi_pool(only_map, stride, rois, output_size=size)
            return roi_align(maps, strides, rois, output_size=size, sampling_ratio=self.sampling_ratio, aligned=self.aligned)

        crops = jax.vmap(one)([features[name] for name in levels], rois)
        return settled(crops.reshape(-1, *crops.shape[2:]))  # or the backward pass gathers them again, in another order

    def _crop_pixels(self, image: jax.Array, rois: jax.Array) -> jax.Array:
        """Each RoI [P, 4], grown by its context, warped to the crop's size; zeros (the mean) outside the image."""
        centre = jnp.tile((rois[:, :2] + rois[:, 2:]) / 2, 2)
        growth = jnp.asarray([size / (size - 2 * self.context) for size in self.output_size[::-1]] * 2)
        grown = centre + (rois - centre) * growth
        return roi_align([image], [1], grown, output_size=self.output_size, sampling_ratio=self.sampling_ratio, aligned=True)


def make_rcnn(
    kind: str,
    *,
    backbone: nn.Module,
    num_classes: int,
    box_levels: tuple[str, ...],
    box_head: nn.Module,
    rpn_levels: tuple[str, ...] = (),
    anchor_sizes: tuple[tuple[float, ...], ...] = (),
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
    rpn_conv_depth: int = 1,
    fixed_anchor_strides: bool = False,
    mask_head: MaskHead | None = None,
    conv: Callable[..., nn.Module] = Conv,
    dtype: jnp.dtype | None = None,
    **crop_options: Any,
) -> RCNN:
    """A detector of `kind` "rcnn", "fast", "faster" or "mask".

    Args:
      backbone: maps by name, with `strides`.
      num_classes: K + 1.
      box_levels: see `RCNN`.
      box_head: crops [M, h, w, C] -> [M, width].
      rpn_levels, anchor_sizes, aspect_ratios, rpn_conv_depth, fixed_anchor_strides: of "faster" and "mask" only, see
        `RPN`.
      mask_head: of "mask" only; its predictor is as wide as its last convolution.
      conv, dtype: of the RPN head and the predictor.
      **crop_options: fields of `RCNN` that say how crops are taken.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not a detector; choose one of {KINDS}")
    if crop_options.get("crop", "roi_align") not in CROPS:
        raise ValueError(f"crop={crop_options['crop']!r} is unknown; choose one of {CROPS}")
    if crop_options.get("crop") == "roi_pool" and len(box_levels) != 1:
        raise ValueError(f'crop="roi_pool" reads one level, got box_levels={box_levels}; use "roi_align" for several')
    if kind in ("faster", "mask") and (not rpn_levels or len(rpn_levels) != len(anchor_sizes)):
        raise ValueError(f"give one tuple of anchor_sizes per RPN level, got {rpn_levels=} and {anchor_sizes=}")
    if (kind == "mask") != (mask_head is not None):
        raise ValueError(f"kind={kind!r} with {mask_head=}: a mask head belongs to 'mask', and to no other kind")
    rpn = None
    if kind in ("faster", "mask"):
        rpn = RPN(
            head=RPNHead(len(anchor_sizes[0]) * len(aspect_ratios), rpn_conv_depth, conv=conv, dtype=dtype),
            levels=rpn_levels,
            anchor_sizes=anchor_sizes,
            aspect_ratios=aspect_ratios,
            fixed_strides={name: backbone.strides[name] for name in rpn_levels} if fixed_anchor_strides else None,
        )
    predictor = None
    if mask_head is not None:
        predictor = MaskRCNNPredictor(num_classes, mask_head.conv_widths[-1], conv=conv, dtype=dtype)
    return RCNN(
        backbone=backbone,
        roi_heads=RoIHeads(box_head, FastRCNNPredictor(num_classes, dtype=dtype), mask_head, predictor),
        box_levels=box_levels,
        rpn=rpn,
        crop_from_pixels=kind == "rcnn",
        **crop_options,
    )


FPN_LEVELS = ("layer1", "layer2", "layer3", "layer4")
FPN_ANCHOR_SIZES = ((32,), (64,), (128,), (256,), (512,))


def fasterrcnn_resnet50_fpn(
    num_classes: int = 91,
    *,
    norm: Callable[..., nn.Module] = FrozenBatchNorm,
    conv: Callable[..., nn.Module] = Conv,
    remat: bool = False,
    dtype: jnp.dtype | None = None,
) -> RCNN:
    """torchvision's detector of that name, weight for weight.

    Pass norm=partial(FrozenBatchNorm, epsilon=0.0) for the released COCO_V1 weights, which torchvision runs so.
    """
    body = RESNETS["resnet50"](norm=norm, conv=conv, remat=remat, dtype=dtype)
    return _resnet50_fpn(body, FPN(conv=conv, dtype=dtype), TwoMLPHead(dtype=dtype), 1, num_classes, conv, dtype)


def fasterrcnn_resnet50_fpn_v2(
    num_classes: int = 91,
    *,
    norm: Callable[..., nn.Module] = BatchNorm,
    conv: Callable[..., nn.Module] = Conv,
    remat: bool = False,
    dtype: jnp.dtype | None = None,
) -> RCNN:
    """torchvision's detector of that name, weight for weight: live norms everywhere, deeper RPN and box heads."""
    body = RESNETS["resnet50"](norm=norm, conv=conv, remat=remat, dtype=dtype)
    head = ConvFCHead(norm=norm, conv=conv, dtype=dtype)
    return _resnet50_fpn(body, FPN(norm=norm, conv=conv, dtype=dtype), head, 2, num_classes, conv, dtype)


def maskrcnn_resnet50_fpn(
    num_classes: int = 91,
    *,
    norm: Callable[..., nn.Module] = FrozenBatchNorm,
    conv: Callable[..., nn.Module] = Conv,
    remat: bool = False,
    dtype: jnp.dtype | None = None,
) -> RCNN:
    """torchvision's detector of that name, weight for weight; as `fasterrcnn_resnet50_fpn`."""
    body = RESNETS["resnet50"](norm=norm, conv=conv, remat=remat, dtype=dtype)
    masks = MaskHead(conv=conv, dtype=dtype)
    return _resnet50_fpn(body, FPN(conv=conv, dtype=dtype), TwoMLPHead(dtype=dtype), 1, num_classes, conv, dtype, masks)


def maskrcnn_resnet50_fpn_v2(
    num_classes: int = 91,
    *,
    norm: Callable[..., nn.Module] = BatchNorm,
    conv: Callable[..., nn.Module] = Conv,
    remat: bool = False,
    dtype: jnp.dtype | None = None,
) -> RCNN:
    """torchvision's detector of that name, weight for weight; as `fasterrcnn_resnet50_fpn_v2`."""
    body = RESNETS["resnet50"](norm=norm, conv=conv, remat=remat, dtype=dtype)
    head, masks = ConvFCHead(norm=norm, conv=conv, dtype=dtype), MaskHead(norm=norm, conv=conv, dtype=dtype)
    return _resnet50_fpn(body, FPN(norm=norm, conv=conv, dtype=dtype), head, 2, num_classes, conv, dtype, masks)


def _resnet50_fpn(body, fpn, box_head, rpn_conv_depth, num_classes, conv, dtype, mask_head=None) -> RCNN:
    return make_rcnn(
        "faster" if mask_head is None else "mask",
        mask_head=mask_head,
        backbone=BackboneWithFPN(body, fpn, FPN_LEVELS),
        num_classes=num_classes,
        box_levels=FPN_LEVELS,
        box_head=box_head,
        rpn_levels=(*FPN_LEVELS, "pool"),
        anchor_sizes=FPN_ANCHOR_SIZES,
        rpn_conv_depth=rpn_conv_depth,
        conv=conv,
        dtype=dtype,
    )

"""Detectors by name, with the options that a config may give."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp

from imgrec_jax.models import rcnn, retinanet
from imgrec_jax.models.backbones import backbone as find_backbone
from imgrec_jax.models.backbones import optional_norm
from imgrec_jax.models.box_head import MaskHead, TwoMLPHead
from imgrec_jax.models.fpn import FPN, BackboneWithFPN
from imgrec_jax.models.norm import make_norm
from imgrec_jax.models.resnet import RESNETS, small_resnet
from imgrec_jax.models.zoo import levels_by_stride


def make_small_detector(
    *,
    kind: str,
    num_classes: int,
    widths: tuple[int, ...] = (16, 32, 64, 96),
    blocks: int = 1,
    stem_stride: int = 2,
    fpn_width: int = 64,
    head_width: int = 128,
    anchor_sizes: tuple[tuple[float, ...], ...] = ((16,), (32,), (64,)),
    aspect_ratios: tuple[float, ...] = (1.0,),
    crop_size: int = 7,
    norm: str = "batch",
    neck_norm: str = "none",
    head_norm: str = "none",
    tower_depth: int = 2,
    mask_widths: tuple[int, ...] = (32, 32),
    mask_size: int = 7,
    mask_stage: int = 2,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> rcnn.RCNN | retinanet.RetinaNet:
    """A detector for images of a hundred pixels or so: a small ResNet, and for all but R-CNN an FPN.

    Args:
      kind: "rcnn", "fast", "faster", "mask", or "retina" for one stage.
      num_classes: K + 1.
      widths, blocks, stem_stride, norm: of the ResNet.
      fpn_width: channels of the feature pyramid over the stages after the first.
      head_width: of the two fully connected layers; RetinaNet has none.
      anchor_sizes: one tuple per stage after the first; aspect_ratios: height / width.
      neck_norm, head_norm: of the feature pyramid and of the fully connected layers and the mask head, or of RetinaNet's
        towers; "none" as in torchvision's first detectors.
      crop_size: side of a crop, in cells, or in pixels for "rcnn".
      tower_depth: convolutions of each of RetinaNet's towers before the last.
      mask_widths: of the convolutions of the mask head; mask_size: cells a side of its crops, half the side of its masks.
      mask_stage: 1 begins the pyramid with a map of the first stage's stride, from which the crops of small objects are taken
        (below 28 cells of it, see `roi_level`); 2 takes them from the maps of the boxes.
    """
    body = small_resnet(widths, blocks, stem_stride, norm=make_norm(norm, axis_name=axis_name), dtype=dtype)
    after_neck, after_dense = (optional_norm(name, axis_name) for name in (neck_norm, head_norm))
    head = TwoMLPHead(width=head_width, norm=after_dense, dtype=dtype)
    levels = tuple(f"layer{i}" for i in range(2, len(widths) + 1))
    crops = {"box_head": head, "num_classes": num_classes, "output_size": (crop_size, crop_size), "dtype": dtype}
    if kind == "rcnn":
        return rcnn.make_rcnn(kind, backbone=body, box_levels=levels[-1:], context=2, **crops)
    if len(anchor_sizes) != len(levels):
        raise ValueError(f"anchor_sizes={anchor_sizes}: expected one tuple for each of {levels}")
    if mask_stage not in (1, 2):
        raise ValueError(f"mask_stage={mask_stage}: expected 1 or 2, the stage of the finest map that masks are drawn from")
    finest = ("layer1",) if kind == "mask" and mask_stage == 1 else ()
    pyramid = BackboneWithFPN(body, FPN(fpn_width, norm=after_neck, dtype=dtype), (*finest, *levels))
    if kind == "retina":
        return retinanet.make_retinanet(
            backbone=pyramid, num_classes=num_classes, levels=levels, anchor_sizes=anchor_sizes,
            aspect_ratios=aspect_ratios, depth=tower_depth, norm=after_dense, dtype=dtype,
        )  # fmt: skip
    if kind == "mask":
        mask_head = MaskHead(mask_widths, norm=after_dense, dtype=dtype)
        crops |= {"mask_head": mask_head, "mask_size": (mask_size, mask_size), "mask_levels": (*finest, *levels)}
    return rcnn.make_rcnn(
        kind, backbone=pyramid, box_levels=levels, rpn_levels=levels, anchor_sizes=anchor_sizes,
        aspect_ratios=aspect_ratios, **crops,
    )  # fmt: skip


def make_resnet_fpn(
    *,
    kind: str = "faster",
    num_classes: int = 91,
    backbone: str = "resnet50",
    norm: str = "frozen",
    norm_epsilon: float = 1e-5,
    remat: bool = False,
    trunk: Mapping[str, Any] = MappingProxyType({}),
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> rcnn.RCNN | retinanet.RetinaNet:
    """torchvision's FPN detector over any backbone of the zoo; with "resnet50", "faster" is fasterrcnn_resnet50_fpn,
    "mask" maskrcnn_resnet50_fpn and "retina" retinanet_resnet50_fpn.

    norm_epsilon: of a ResNet; 0.0 for the released weights of that detector (COCO_V1), which torchvision runs so. Other
    architectures have their own. trunk: further options of the backbone.
    """
    common = {"norm_epsilon": norm_epsilon} if backbone in RESNETS else {}
    body = find_backbone(backbone, trunk=trunk, norm=norm, axis_name=axis_name, remat=remat, dtype=dtype, **common)
    levels = levels_by_stride(body.strides, (4, 8, 16, 32))
    if kind == "rcnn":
        return rcnn.make_rcnn(
            kind, backbone=body, box_levels=levels[-1:], box_head=TwoMLPHead(dtype=dtype), num_classes=num_classes,
            output_size=(224, 224), context=16, dtype=dtype,
        )  # fmt: skip
    if kind == "retina":
        pyramid = BackboneWithFPN(body, FPN(top="p6p7", dtype=dtype), levels[1:])
        return retinanet.make_retinanet(
            backbone=pyramid, num_classes=num_classes, levels=(*levels[1:], "p6", "p7"),
            anchor_sizes=retinanet.RETINA_ANCHOR_SIZES, dtype=dtype,
        )  # fmt: skip
    return rcnn.make_rcnn(
        kind, backbone=BackboneWithFPN(body, FPN(dtype=dtype), levels), num_classes=num_classes, box_levels=levels,
        box_head=TwoMLPHead(dtype=dtype), rpn_levels=(*levels, "pool"), anchor_sizes=rcnn.FPN_ANCHOR_SIZES,
        mask_head=MaskHead(dtype=dtype) if kind == "mask" else None, dtype=dtype,
    )  # fmt: skip


def make_resnet50_fpn_v2(
    build: Callable[..., rcnn.RCNN | retinanet.RetinaNet],
    *,
    num_classes: int = 91,
    norm: str = "batch",
    remat: bool = False,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> rcnn.RCNN | retinanet.RetinaNet:
    """build: torchvision's second version of a detector, which has live norms."""
    return build(num_classes, norm=make_norm(norm, axis_name=axis_name), remat=remat, dtype=dtype)


DETECTORS: dict[str, Callable] = {
    "small_detector": make_small_detector,
    "resnet_fpn_detector": make_resnet_fpn,
    "fasterrcnn_resnet50_fpn_v2": functools.partial(make_resnet50_fpn_v2, rcnn.fasterrcnn_resnet50_fpn_v2),
    "maskrcnn_resnet50_fpn_v2": functools.partial(make_resnet50_fpn_v2, rcnn.maskrcnn_resnet50_fpn_v2),
    "retinanet_resnet50_fpn_v2": functools.partial(make_resnet50_fpn_v2, retinanet.retinanet_resnet50_fpn_v2),
}


def is_one_stage(options: Mapping[str, Any]) -> bool:
    """Whether the options of a model, with its name, make a detector of one stage."""
    return options.get("kind") == "retina" or options.get("name") == "retinanet_resnet50_fpn_v2"


def learns_masks(options: Mapping[str, Any]) -> bool:
    """Whether the options of a model, with its name, make a detector that learns the masks of objects."""
    return options.get("kind") == "mask" or options.get("name") == "maskrcnn_resnet50_fpn_v2"

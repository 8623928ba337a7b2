"""torchvision's state dicts under our parameter names, written by hand: what `pretrained.names` must agree with.

The naming rule. A torchvision name is split at its dots; a component that is a number is glued to the component
before it with "_"; the rest nest as Flax modules. The last component changes to Flax's word:

    torchvision                                        ours (a "/"-joined path, without its collection)
    backbone.body.layer1.0.conv1.weight                backbone/body/layer1_0/conv1/kernel
    backbone.body.layer1.0.downsample.0.weight         backbone/body/layer1_0/downsample_0/kernel
    backbone.body.layer1.0.bn1.{weight,bias}           backbone/body/layer1_0/bn1/{scale,bias}
    backbone.body.layer1.0.bn1.running_{mean,var}      backbone/body/layer1_0/bn1/{mean,var}
    backbone.fpn.inner_blocks.0.0.weight               backbone/fpn/inner_blocks_0_0/kernel  (.0.1: its norm, v2)
    rpn.head.conv.0.0.weight                           rpn/head/conv_0_0/kernel              (.1.0: second conv, v2)
    rpn.head.{cls_logits,bbox_pred}.weight             rpn/head/{cls_logits,bbox_pred}/kernel
    roi_heads.box_head.{fc6,fc7}.weight                roi_heads/box_head/{fc6,fc7}/kernel
    roi_heads.box_predictor.{cls_score,bbox_pred}      roi_heads/box_predictor/{cls_score,bbox_pred}
    backbone.fpn.extra_blocks.p6.weight                backbone/fpn/extra_blocks_p6/kernel   (RetinaNet)
    head.classification_head.conv.0.0.weight           head/classification_head/conv_0_0/kernel  (.0.1: group norm, v2)
    head.{classification_head.cls_logits,regression_head.bbox_reg}   head/{classification_head/cls_logits,...}
    roi_heads.mask_head.0.{0,1}, mask_predictor.conv5_mask   roi_heads/mask_head/{conv_0,norm_0}, .../conv5_mask/kernel
    classifier.4.weight (FCN)                          classifier_4/kernel

Exceptions, all in `RENAME_*` below: the v2 box head is an `nn.Sequential`, so its members get words
(box_head.{i}.0 -> box_head/conv_{i}, box_head.{i}.1 -> box_head/norm_{i}, box_head.5 -> box_head/fc); files from
before torchvision 0.15 lack one ".0" in FPN and RPN names; a classification network's trunk goes under "backbone".
A path does not name its collection: a batch norm's scale and bias live in "params", a frozen one's in
"batch_stats", and `merge.merge` looks up which.

Layouts. Convolutions OIHW -> HWIO; linear (out, in) -> (in, out); the linear that follows a flattened
(C, 7, 7) map has its inputs permuted to our (7, 7, C) order. `num_batches_tracked` is dropped.

Frozen batch norm uses eps 1e-5, except in the detector whose released weights (COCO_V1) torchvision runs with
eps 0.0 (torchvision/models/detection/_utils.py, `overwrite_eps`).
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

Rename = Sequence[tuple[str, str]]  # (regex, replacement), applied in order to the source's dotted name

RENAME_CLASSIFIER: Rename = (
    (r"^features\.", "backbone.features."),
    (r"^classifier\.0\.", "embedding.fc6."),
    (r"^classifier\.3\.", "embedding.fc7."),
    (r"^classifier\.6\.", "fc."),
)
RENAME_VGG_DETECTOR: Rename = (
    (r"^features\.", "backbone.features."),
    (r"^classifier\.0\.", "roi_heads.box_head.fc6."),
    (r"^classifier\.3\.", "roi_heads.box_head.fc7."),
)
RENAME_VGG_FCN: Rename = (
    (r"^features\.", "backbone.features."),
    (r"^classifier\.0\.", "fc6."),
    (r"^classifier\.3\.", "fc7."),
)
RENAME_DETECTOR: Rename = (
    (r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2"),
    (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
    (r"(box|mask)_head\.(\d)\.0\.", r"\1_head.conv_\2."),
    (r"(box|mask)_head\.(\d)\.1\.", r"\1_head.norm_\2."),
    (r"box_head\.5\.", "box_head.fc."),
    (r"extra_blocks\.(p\d)\.", r"extra_blocks_\1."),
    (r"(_head\.conv\.\d\.1)\.", r"\1.group."),
)

_LEAF = {"running_mean": "mean", "running_var": "var", "bias": "bias"}
_AFTER_FLATTEN = re.compile(r"(embedding\.fc6|box_head\.fc6|box_head\.fc)\.weight$")
_FLATTENED_SIDE = 7  # torchvision pools to 7x7 before every flatten: vgg.py:42, faster_rcnn.py:251


class Converted(NamedTuple):
    """Tensors in our layout by our path, and for each the name it had in the file."""

    tensors: dict[str, np.ndarray]
    source_names: dict[str, str]


def our_path(name: str, ndim: int) -> str:
    """`layer1.0.conv1.weight` with 4 axes -> `layer1_0/conv1/kernel`; one axis means a norm's scale."""
    *modules, last = re.sub(r"\.(?=\d+(\.|$))", "_", name).split(".")
    leaf = ("kernel" if ndim > 1 else "scale") if last == "weight" else _LEAF.get(last)
    if leaf is None:
        raise ValueError(f"{name}: expected a name that ends in weight, bias, running_mean or running_var")
    return "/".join([*modules, leaf])


def _our_layout(name: str, value: np.ndarray) -> np.ndarray:
    if name.endswith("conv5_mask.weight"):  # of a transposed convolution: (in, out, h, w)
        return value.transpose(2, 3, 0, 1)
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    if value.ndim == 2 and _AFTER_FLATTEN.search(name):
        side = _FLATTENED_SIDE
        if value.shape[1] % side**2:
            raise ValueError(f"{name}: {value.shape[1]} inputs are not a flattened (C, {side}, {side}) map")
        per_position = value.reshape(value.shape[0], -1, side, side)
        return per_position.transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
    return value.T if value.ndim == 2 else value


def convert(state_dict: Mapping[str, np.ndarray], rename: Rename = ()) -> Converted:
    """Renames (by `rename`, then by the rule above) and re-lays every tensor of `state_dict`."""
    tensors: dict[str, np.ndarray] = {}
    source_names: dict[str, str] = {}
    for source, value in state_dict.items():
        if source.endswith("num_batches_tracked"):
            continue
        name = source
        for pattern, replacement in rename:
            name = re.sub(pattern, replacement, name)
        path = our_path(name, value.ndim)
        if path in tensors:
            raise ValueError(f"{source} and {source_names[path]} both become {path}; the file mixes two naming schemes")
        tensors[path] = _our_layout(name, value)
        source_names[path] = source
    return Converted(tensors, source_names)


def resnet(state_dict: Mapping[str, np.ndarray], trunk: str = "backbone") -> Converted:
    """resnet18/34/50/101: everything but `fc` goes under `trunk` ("backbone.body" in a detector with an FPN)."""
    return convert(state_dict, ((r"^(?!fc\.)", f"{trunk}."),))


def vgg16(state_dict: Mapping[str, np.ndarray]) -> Converted:
    """vgg16 as a classifier: `features` go under "backbone"; its `classifier` stays at the top."""
    return convert(state_dict, RENAME_CLASSIFIER)


def vgg16_detector(state_dict: Mapping[str, np.ndarray]) -> Converted:
    """vgg16 as (Fast) R-CNN starts from it: classifier.0 and .3 become the box head's fc6 and fc7."""
    return convert(state_dict, RENAME_VGG_DETECTOR)


def vgg16_fcn(state_dict: Mapping[str, np.ndarray]) -> Converted:
    """vgg16 as FCN-32s/16s/8s start from it: classifier.0 and .3 become the convolutions fc6 (7x7) and fc7 (1x1)."""
    kernel_side = {"classifier.0.weight": _FLATTENED_SIDE, "classifier.3.weight": 1}
    reshaped = {
        name: value.reshape(len(value), -1, side, side) if (side := kernel_side.get(name)) else value
        for name, value in state_dict.items()
    }
    return convert(reshaped, RENAME_VGG_FCN)


def detector(state_dict: Mapping[str, np.ndarray]) -> Converted:
    """fasterrcnn_resnet50_fpn, current and older names, and the other detectors, v2 of all."""
    return convert(state_dict, RENAME_DETECTOR)


def fcn_resnet(state_dict: Mapping[str, np.ndarray]) -> Converted:
    """fcn_resnet50 and fcn_resnet101, with or without `aux_classifier`."""
    return convert(state_dict)

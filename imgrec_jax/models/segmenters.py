"""Segmentation networks by name, with the options that a config may give."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp

from imgrec_jax.models import fcn, unet, vgg
from imgrec_jax.models.backbones import backbone as find_backbone
from imgrec_jax.models.backbones import optional_norm
from imgrec_jax.models.norm import make_norm
from imgrec_jax.models.zoo import levels_by_stride

UPSAMPLE = ("bilinear", "transposed")


def _check_upsample(name: str) -> None:
    if name not in UPSAMPLE:
        raise ValueError(f"model.upsample={name!r} is unknown; choose one of {sorted(UPSAMPLE)}")


def make_unet(
    *,
    num_classes: int,
    depth: int = 4,
    width: int = 64,
    widths: tuple[int, ...] = (),
    padding: str = "same",
    upsample: str = "transposed",
    dropout: float = 0.0,
    score_levels: bool = False,
    norm: str = "batch",
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> unet.UNet:
    _check_upsample(upsample)
    return unet.UNet(
        num_classes,
        depth,
        width,
        tuple(widths),
        padding,
        upsample,
        dropout,
        score_levels,
        norm=optional_norm(norm, axis_name),
        dtype=dtype,
    )


def make_backbone_unet(
    *,
    num_classes: int,
    backbone: str = "resnet18",
    trunk: Mapping[str, Any] = MappingProxyType({}),
    levels: tuple[str, ...] = unet.BackboneUNet.levels,
    widths: tuple[int, ...] = unet.BackboneUNet.widths,
    upsample: str = "bilinear",
    score_levels: bool = False,
    norm: str = "batch",
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> unet.BackboneUNet:
    """backbone: a name of `backbones.BACKBONES`; trunk: its options.

    levels, widths: as `BackboneUNet`; where the backbone has no maps of the names that are the default, its deepest map of each
    stride, and widths that halve from one to the next.
    """
    _check_upsample(upsample)
    body = find_backbone(backbone, trunk=trunk, norm=norm, axis_name=axis_name, dtype=dtype)
    if levels == unet.BackboneUNet.levels and levels[-2] not in body.strides:
        levels = levels_by_stride(body.strides)[::-1]
        if widths == unet.BackboneUNet.widths:
            widths = tuple(max(widths[0] >> i, 16) for i in range(len(levels) - 1))
    made = optional_norm(norm, axis_name)
    unknown = sorted(set(levels) - set(body.strides))
    if unknown:
        raise ValueError(f"levels: {backbone} has no {unknown}; it has {list(body.strides)}")
    return unet.BackboneUNet(body, num_classes, levels, widths, upsample, score_levels, norm=made, dtype=dtype)


def make_fcn(
    *,
    num_classes: int,
    levels: tuple[str, ...] = ("pool5", "pool4", "pool3"),
    scales: tuple[float, ...] = (1.0, 1.0),
    stages: tuple = vgg.VGG16_STAGES,
    norm: str = "none",
    hidden: int = 4096,
    head_kernel: int = 7,
    dropout: float = 0.5,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> fcn.FCN:
    trunk = vgg.VGG(stages=stages, norm=optional_norm(norm, axis_name), dtype=dtype)
    return fcn.FCN(trunk, num_classes, levels, scales, hidden, head_kernel, dropout, dtype=dtype)


def _fcn_resnet(name: str) -> Callable:
    def make(
        *,
        num_classes: int,
        aux: bool = True,
        dropout: float = 0.1,
        norm: str = "batch",
        axis_name: str | None = None,
        dtype: Any = jnp.float32,
    ) -> Any:
        return fcn.fcn_resnet(name, num_classes, aux, dropout, norm=make_norm(norm, axis_name=axis_name), dtype=dtype)

    return make


SEGMENTERS: dict[str, Callable] = {
    "unet": make_unet,
    "backbone_unet": make_backbone_unet,
    "fcn": make_fcn,
    "fcn_resnet50": _fcn_resnet("resnet50"),
    "fcn_resnet101": _fcn_resnet("resnet101"),
}

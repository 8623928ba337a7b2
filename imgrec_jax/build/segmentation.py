"""Segmentation: names to models, losses and sources."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from imgrec_jax import metrics
from imgrec_jax.build.lookup import ConfigError, Parts, check_options, choice, make_model, open_splits, options_of
from imgrec_jax.data import segmentation_batch, segmentation_tfds
from imgrec_jax.data.pipeline import sequential_order, shuffled_order
from imgrec_jax.models import fcn, resnet, unet, vgg
from imgrec_jax.models.norm import make_norm
from imgrec_jax.segmentation.losses import segmentation_loss
from imgrec_jax.tasks import segment


def _norm(name: str, axis_name: str | None) -> Any:
    """None for "none": convolutions then have a bias."""
    return None if name == "none" else make_norm(name, axis_name=axis_name)


UPSAMPLE = ("bilinear", "transposed")


def make_unet(
    *,
    classes: int,
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
    choice("model.upsample", upsample, UPSAMPLE)
    return unet.UNet(
        classes, depth, width, tuple(widths), padding, upsample, dropout, score_levels, norm=_norm(norm, axis_name), dtype=dtype
    )


BACKBONES: dict[str, Callable] = {**resnet.RESNETS, "small_resnet": resnet.small_resnet, "vgg": vgg.VGG}


def make_backbone_unet(
    *,
    classes: int,
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
    """backbone: a name of BACKBONES; trunk: its options."""
    factory = BACKBONES[choice("model.backbone", backbone, BACKBONES)]
    choice("model.upsample", upsample, UPSAMPLE)
    norm = _norm(norm, axis_name)
    body = factory(**trunk, norm=norm or make_norm("none"), dtype=dtype)
    unknown = sorted(set(levels) - set(body.strides))
    if unknown:
        raise ConfigError(f"config.model.levels: {backbone} has no {unknown}; it has {list(body.strides)}")
    return unet.BackboneUNet(body, classes, levels, widths, upsample, score_levels, norm=norm, dtype=dtype)


def make_fcn(
    *,
    classes: int,
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
    trunk = vgg.VGG(stages=stages, norm=_norm(norm, axis_name), dtype=dtype)
    return fcn.FCN(trunk, classes, levels, scales, hidden, head_kernel, dropout, dtype=dtype)


def _fcn_resnet(name: str) -> Callable:
    def make(
        *,
        classes: int,
        aux: bool = True,
        dropout: float = 0.1,
        norm: str = "batch",
        axis_name: str | None = None,
        dtype: Any = jnp.float32,
    ) -> Any:
        return fcn.fcn_resnet(name, classes, aux, dropout, norm=make_norm(norm, axis_name=axis_name), dtype=dtype)

    return make


MODELS: dict[str, Callable] = {
    "unet": make_unet,
    "backbone_unet": make_backbone_unet,
    "fcn": make_fcn,
    "fcn_resnet50": _fcn_resnet("resnet50"),
    "fcn_resnet101": _fcn_resnet("resnet101"),
}


def check(config: ConfigDict) -> None:
    make_model(config, MODELS)
    make_loss(config)
    if config.eval.window and len(config.eval.window) != 2:
        raise ConfigError(f"config.eval.window={config.eval.window}; expected (height, width), or () to predict whole images")


def parts(config: ConfigDict, eval_batch_size: Callable[[dict], int], axis_name: str | None) -> Parts:
    data = config.data
    open_split = functools.partial(
        segmentation_tfds.open_segmentation,
        data.name,
        data_dir=data.data_dir,
        manual_dir=data.manual_dir,
        in_memory=data.in_memory,
        **options_of(data.options),
    )
    train, evals = open_splits(config, open_split)
    classes, names = config.model.classes, train.info.class_names
    if names and len(names) != classes:
        raise ConfigError(f"model.classes={classes}, but {train.info.name} has {len(names)} classes: {list(names)}")
    task = segment.make_task(
        model=make_model(config, MODELS, axis_name),
        loss_fn=make_loss(config),
        classes=classes,
        mean=data.mean,
        std=data.std,
        aux_weight=options_of(config.loss).get("aux_weight", 0.5),
        window=tuple(config.eval.window) or None,
        overlap=config.eval.overlap,
        test_time=config.eval.test_time,
        axis_name=axis_name,
    )
    collate = segmentation_batch.collate(multiple=data.pad_multiple, size=tuple(data.pad_to) or None)
    eval_batch = eval_batch_size(evals)
    return Parts(
        task=task,
        train=train,
        evals=evals,
        train_order=lambda source: shuffled_order(len(source), data.batch_size, config.seed, data.remainder),
        eval_order=lambda source: sequential_order(len(source), eval_batch),
        train_ops=[],
        eval_ops=[],
        train_collate=collate,
        eval_collate=collate,
        summarise=dict.fromkeys(evals, metrics.compute),
    )


def make_loss(config: ConfigDict) -> Callable:
    options = options_of(config.loss)
    choice("loss.name", options.pop("name"), ("segmentation",))
    options.pop("aux_weight", None)
    check_options("loss", options, segmentation_loss, skip=4)
    return functools.partial(segmentation_loss, **options)

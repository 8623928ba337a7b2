"""Backbones by name: factory(norm=, dtype=, ...) -> a module that returns named maps and knows their `strides`."""

from collections.abc import Callable
from typing import Any

from imgrec_jax.models.norm import make_norm
from imgrec_jax.models.resnet import RESNETS, small_resnet
from imgrec_jax.models.vgg import VGG

BACKBONES: dict[str, Callable] = {**RESNETS, "small_resnet": small_resnet, "vgg": VGG}


def backbone(name: str, known: dict[str, Callable] = BACKBONES) -> Callable:
    """The factory of that name; ValueError, with those that exist, for an unknown one."""
    if name not in known:
        raise ValueError(f"model.backbone={name!r} is unknown; choose one of {sorted(known)}")
    return known[name]


def optional_norm(name: str, axis_name: str | None) -> Any:
    """A norm's factory; None for "none": convolutions then have a bias."""
    return None if name == "none" else make_norm(name, axis_name=axis_name)

"""Backbones by name: modules that return named maps and know the `strides` and `channels` of these."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp

from imgrec_jax.models import zoo
from imgrec_jax.models.norm import make_norm
from imgrec_jax.models.resnet import small_resnet
from imgrec_jax.models.vgg import VGG

# Those that are no published architecture: (norm=, dtype=, **options) -> module.
OWN: dict[str, Callable] = {"small_resnet": small_resnet, "vgg": VGG}
BACKBONES: tuple[str, ...] = (*zoo.ARCHITECTURES, *OWN)


def backbone(
    name: str,
    *,
    trunk: Mapping[str, Any] = MappingProxyType({}),
    norm: str = "batch",
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
    **common: Any,
) -> Any:
    """The backbone of that name.

    Args:
      trunk: its own options.
      norm: a name of `norm.NORMS`, where the architecture has a choice.
      common: further options, for those architectures of the zoo that have them: remat, norm_epsilon.

    Raises:
      ValueError: for an unknown name or option, with those that exist.
    """
    if name not in BACKBONES:
        raise ValueError(f"model.backbone={name!r} is unknown; choose one of {sorted(BACKBONES)}")
    if name in OWN:
        try:
            return OWN[name](**trunk, norm=make_norm(norm, axis_name=axis_name), dtype=dtype)
        except TypeError as error:
            raise ValueError(f"trunk: {error}") from error
    return zoo.make_backbone(name, trunk=trunk, norm=norm, axis_name=axis_name, dtype=dtype, **common)


def optional_norm(name: str, axis_name: str | None) -> Any:
    """A norm's factory; None for "none": convolutions then have a bias."""
    return None if name == "none" else make_norm(name, axis_name=axis_name)

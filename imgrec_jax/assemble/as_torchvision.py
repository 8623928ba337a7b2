"""Which models are networks that torchvision has, by their names and options."""

import inspect
from typing import Any

from ml_collections import ConfigDict

from imgrec_jax.assemble.pretrained import backbone_options
from imgrec_jax.models.detectors import DETECTORS
from imgrec_jax.models.resnet import RESNETS
from imgrec_jax.models.zoo import ARCHITECTURES

_ONLY_HERE = ("small_detector", "vit_s_16")  # whose weights have names that torchvision has, too
_KINDS = ("faster", "mask", "retina")
_OF_TRAINING = ("norm", "drop_path", "remat", "axis_name", "dtype")


def check(model: ConfigDict) -> None:
    """Raises ValueError for a network that torchvision has not, by its name and options: its weights would not load there, or
    compute something else.

    That they have names there is for `torchvision_state` to say.
    """
    if model.name not in (*ARCHITECTURES, *DETECTORS, "fcn_resnet50", "fcn_resnet101"):
        return
    name, options = backbone_options(model)
    others: dict[str, Any] = {}
    if model.name in DETECTORS and name != model.name:
        others = {"kind": model.kind} if model.kind not in _KINDS else {}
        others |= {"backbone": name} if name not in RESNETS else {}
    if options.get("norm", "batch") not in ("batch", "frozen"):
        others["norm"] = options["norm"]
    if name in ARCHITECTURES:  # whose defaults are torchvision's
        own = inspect.signature(ARCHITECTURES[name].make).parameters
        others |= {k: v for k, v in options.items() if k not in _OF_TRAINING and v != own[k].default}
    if is_without_epsilon(model):
        del others["norm_epsilon"]
    if others or model.name in _ONLY_HERE:
        given = f" with {', '.join(f'{key}={value!r}' for key, value in others.items())}" if others else ""
        raise ValueError(f"torchvision has no {model.name}{given}; --format=stablehlo and --format=onnx write what it computes")


def is_without_epsilon(model: ConfigDict) -> bool:
    """Whether it is a detector as torchvision runs its first released ones, by `overwrite_eps`."""
    name, options = backbone_options(model)
    return model.name in DETECTORS and name in RESNETS and options["norm_epsilon"] == 0

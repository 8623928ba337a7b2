"""Trained weights as files that other frameworks read."""

import inspect
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from safetensors.numpy import save_file

from imgrec_jax.assemble.pretrained import backbone_options
from imgrec_jax.config import to_plain
from imgrec_jax.data.files import write_whole
from imgrec_jax.inference.predictor import Predictor
from imgrec_jax.models.detectors import DETECTORS
from imgrec_jax.models.resnet import RESNETS
from imgrec_jax.models.zoo import ARCHITECTURES
from imgrec_jax.pretrained.export import torchvision_state

_ONLY_HERE = ("small_detector", "vit_s_16")  # whose weights have names that torchvision has, too
_KINDS = ("faster", "mask", "retina")
_OF_TRAINING = ("norm", "drop_path", "remat", "axis_name", "dtype")


def _refuse_other_networks(model: ConfigDict) -> None:
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
    if _without_epsilon(model):
        del others["norm_epsilon"]
    if others or model.name in _ONLY_HERE:
        given = f" with {', '.join(f'{key}={value!r}' for key, value in others.items())}" if others else ""
        raise ValueError(f"torchvision has no {model.name}{given}; --format=stablehlo and --format=onnx write what it computes")


def _without_epsilon(model: ConfigDict) -> bool:
    """Whether it is a detector as torchvision runs its first released ones, by `overwrite_eps`."""
    name, options = backbone_options(model)
    return model.name in DETECTORS and name in RESNETS and options["norm_epsilon"] == 0


def _side(run: Predictor) -> int | None:
    """Of a classifier's images, where they are square."""
    height, width = run.image_size or (0, 0)
    return height if run.config.task == "classification" and height == width and height else None


def write_torchvision(run: Predictor, out: Path) -> str:
    """Writes a run's weights under torchvision's names; returns what to say of it.

    The file's metadata keep what a run that begins with it asks for: the class names, the normalisation, the size of a
    classifier's images, the options of the model, and where the weights that the run started from came from, and their licence.

    Raises:
      ValueError: for an architecture that torchvision does not have; for the name of a file of another kind.
    """
    if out.suffix != ".safetensors":
        raise ValueError(f"{out} would be a safetensors file, which programs know by its name; expected NAME.safetensors")
    _refuse_other_networks(run.config.model)
    tensors = torchvision_state(run.variables)
    metadata = {
        "format": "pt",
        "model": str(run.config.model.name),
        "options": json.dumps(to_plain(run.config.model)),
        "image_side": json.dumps(_side(run)),
        "class_names": json.dumps(list(run.class_names)),
        "mean": json.dumps(list(run.config.data.mean)),
        "std": json.dumps(list(run.config.data.std)),
        "pretrained": json.dumps(run.started_from),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, lambda partial: save_file(tensors, partial, metadata=metadata))
    first = "torchvision.models._utils.overwrite_eps(model, 0.0) and " if _without_epsilon(run.config.model) else ""
    return (
        f"wrote {out}: {len(tensors)} tensors of step {run.step}; in torch: {first}"
        f'model.load_state_dict(safetensors.torch.load_file("{out}"), strict=True)'
    )

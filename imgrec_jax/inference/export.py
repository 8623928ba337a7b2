"""Trained weights as files that other frameworks read."""

import json
from pathlib import Path

from ml_collections import ConfigDict
from safetensors.numpy import save_file

from imgrec_jax.data.files import write_whole
from imgrec_jax.inference.predictor import Predictor
from imgrec_jax.pretrained.export import torchvision_state

# Options of a model with which torchvision has no such network: its weights would not load, or compute something else.
_TORCHVISIONS = {
    "stem": "imagenet", "stem_abs": False, "shortcut": "projection", "padding": "torch", "pool_only": False, "hidden": 4096,
}  # fmt: skip


def _refuse_other_networks(model: ConfigDict) -> None:
    """Raises ValueError for a network that torchvision has not, by its options."""
    options = {"norm_epsilon": _epsilon(model), **_TORCHVISIONS}
    for key, wanted in options.items():
        given = model.get(key, wanted)
        if given is not None and given != wanted and not (key == "hidden" and not model.name.startswith("vgg")):
            raise ValueError(
                f"torchvision has no {model.name} with {key}={given!r}, only with {wanted!r}; export it as another format"
            )
    if model.get("norm", "batch") not in ("batch", "frozen"):
        raise ValueError(f"torchvision has no {model.name} with norm={model.norm!r}; export it as another format")


def _epsilon(model: ConfigDict) -> float:
    """Of the batch norms of torchvision's network."""
    if model.name.startswith("mobilenet_v3"):
        return 1e-3
    if model.name.startswith("fasterrcnn") or "fpn" in model.name:
        return model.get("norm_epsilon", 1e-5)  # 0 and 1e-5 are both torchvision's
    return 1e-5


def write_torchvision(run: Predictor, out: Path) -> str:
    """Writes a run's weights under torchvision's names; returns what to say of it.

    The file's metadata keep the class names, the normalisation, and where the weights that the run started from came from, with
    their licence.

    Raises:
      ValueError: for an architecture that torchvision does not have.
    """
    _refuse_other_networks(run.config.model)
    tensors = torchvision_state(run.variables)
    metadata = {
        "format": "pt",
        "model": str(run.config.model.name),
        "class_names": json.dumps(list(run.class_names)),
        "mean": json.dumps(list(run.config.data.mean)),
        "std": json.dumps(list(run.config.data.std)),
        "pretrained": json.dumps(run.started_from),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, lambda partial: save_file(tensors, partial, metadata=metadata))
    return (
        f"wrote {out}: {len(tensors)} tensors of step {run.step}; in torch: "
        f'model.load_state_dict(safetensors.torch.load_file("{out}"), strict=True)'
    )

"""Trained weights as files that other frameworks read."""

import json
from pathlib import Path

from safetensors.numpy import save_file

from imgrec_jax.assemble import as_torchvision
from imgrec_jax.data.files import write_whole
from imgrec_jax.inference.predictor import Predictor
from imgrec_jax.pretrained.export import torchvision_state


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
    model = run.config.model
    as_torchvision.check(model)
    tensors = torchvision_state(run.variables)
    metadata = {
        "format": "pt",
        "model": str(model.name),
        "options": json.dumps(model.to_dict()),
        "image_side": json.dumps(_side(run)),
        "class_names": json.dumps(list(run.class_names)),
        "mean": json.dumps(list(run.config.data.mean)),
        "std": json.dumps(list(run.config.data.std)),
        "pretrained": json.dumps(run.started_from),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, lambda partial: save_file(tensors, partial, metadata=metadata))
    first = "torchvision.models._utils.overwrite_eps(model, 0.0) and " if as_torchvision.is_without_epsilon(model) else ""
    return (
        f"wrote {out}: {len(tensors)} tensors of step {run.step}; in torch: {first}"
        f'model.load_state_dict(safetensors.torch.load_file("{out}"), strict=True)'
    )

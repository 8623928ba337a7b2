"""Trained weights as files that other frameworks read."""

import json
from pathlib import Path

from safetensors.numpy import save_file

from imgrec_jax.data.files import write_whole
from imgrec_jax.inference.predictor import Predictor
from imgrec_jax.pretrained.export import torchvision_state


def write_torchvision(run: Predictor, out: Path) -> str:
    """Writes a run's weights under torchvision's names; returns what to say of it.

    The file's metadata keep the class names, the normalisation, and where the weights that the run started from came from, with
    their licence.

    Raises:
      ValueError: for an architecture that torchvision does not have.
    """
    tensors = torchvision_state(run.variables)
    metadata = {
        "format": "pt",
        "model": str(run.config.model.name),
        "class_names": json.dumps(list(run.class_names)),
        "mean": json.dumps(list(run.config.data.mean)),
        "std": json.dumps(list(run.config.data.std)),
        "pretrained": json.dumps(run.started_from),
    }
    write_whole(out, lambda partial: save_file(tensors, partial, metadata=metadata))
    return (
        f"wrote {out}: {len(tensors)} tensors of step {run.step}; in torch: "
        f'model.load_state_dict(safetensors.torch.load_file("{out}"), strict=True)'
    )

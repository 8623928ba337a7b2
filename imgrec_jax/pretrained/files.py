"""Reads weights files of any kind that is known here, told by their names."""

from pathlib import Path

import numpy as np

from imgrec_jax.pretrained import keras_file, onnx_file, torch_file

_KERAS = {".keras": keras_file.read_keras, ".h5": keras_file.read_h5, ".hdf5": keras_file.read_h5, ".onnx": onnx_file.read_onnx}


def file_in(path: Path) -> Path:
    """The file to read: `path`, or the model.json in the folder that it is."""
    return path / "model.json" if (path / "model.json").is_file() else path


def parts(path: Path) -> list[Path]:
    """The file and, of a TensorFlow.js model, its shards."""
    return [path, *keras_file.shards(path)] if path.name == "model.json" else [path]


def read(path: Path) -> dict[str, np.ndarray]:
    """{name: array} of a .pth, .safetensors, .keras, .h5 or .onnx file, or of a TensorFlow.js model's folder.

    Raises:
      WeightsFileError: when it cannot be read, naming the file.
    """
    path = file_in(path)
    reader = keras_file.read_tfjs if path.name == "model.json" else _KERAS.get(path.suffix.lower())
    if reader is None:
        return torch_file.read_tensors(path)
    with torch_file.naming(path):
        return reader(path)

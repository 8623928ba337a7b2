"""Reads the tensors of Keras files and of TensorFlow.js models, without Keras or TensorFlow.

  .keras        a zip archive of config.json and model.weights.h5 (Keras 3)
  .h5, .hdf5    what Keras 2 and 3 save by that name (a whole model or its weights), and `.weights.h5` of Keras 3
  model.json    a TensorFlow.js model: a manifest, and shards of raw bytes beside it; also an address's folder of these. Of a
                graph model the nodes' names say the layers, where it was converted from Keras

Names are `layer/variable`: `block1_conv1/kernel`. HDF5 files need h5py (`pip install 'imgrec-jax[keras]'`).
"""

import io
import json
import math
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from imgrec_jax.pretrained.torch_file import TruncatedFileError, WeightsFileError

# What a layer saves as "0", "1", ..., by what else it has.
_VARIABLES = {1: ("kernel",), 2: ("kernel", "bias"), 3: ("mean", "variance", "count")}
_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
_TFJS_DTYPES = {
    "float32": np.float32, "int32": np.int32, "bool": np.uint8, "uint8": np.uint8, "uint16": np.uint16, "float16": np.float16,
}  # fmt: skip
# Of a graph model: how the name of a node ends -> the variable of the layer that comes before. Its converter multiplies batch
# norms into the convolutions (tensorflowjs/converters/fold_batch_norms.py), which leaves an offset; `fit.unfold` takes it.
FOLDED = "folded_bias"
_NODES = (
    (r"/(?:Conv2D|depthwise|MatMul)(?:/ReadVariableOp|_weights)$", "/kernel"),
    (r"/(?:Conv2D|depthwise)_bn_offset$", f"/{FOLDED}"),
    (r"/BiasAdd/ReadVariableOp$", "/bias"),
    (r"/FusedBatchNormV3/ReadVariableOp$", "/moving_mean"),
    (r"/FusedBatchNormV3/ReadVariableOp_1$", "/moving_variance"),
    (r"/ReadVariableOp$", "/gamma"),
    (r"/ReadVariableOp_1$", "/beta"),
)
_MOST_UNPACKED = 20  # times the size of the archive


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise WeightsFileError("reading HDF5 needs h5py: pip install 'imgrec-jax[keras]'") from error
    return h5py


def read_keras(path: Path) -> dict[str, np.ndarray]:
    """{`layer/variable`: array} of a .keras archive."""
    with zipfile.ZipFile(path) as archive:
        if "model.weights.h5" not in archive.namelist():
            raise WeightsFileError("a zip archive without model.weights.h5; not a Keras file")
        declared, there = archive.getinfo("model.weights.h5").file_size, path.stat().st_size
        if declared > _MOST_UNPACKED * there:  # Keras stores it as it is
            raise WeightsFileError(f"model.weights.h5 would unpack to {declared:,} bytes from a file of {there:,}")
        return read_h5(io.BytesIO(archive.read("model.weights.h5")))


def read_h5(file: Any) -> dict[str, np.ndarray]:
    """{`layer/variable`: array} of an HDF5 file or its content."""
    with _h5py().File(file, "r") as opened:
        _refuse_links(opened)
        root = opened.get("model_weights", opened)
        return _read_by_layer(root) if "layer_names" in root.attrs else _read_by_vars(opened)


def _refuse_links(group: Any) -> None:
    """Raises WeightsFileError where a file has its arrays in other files."""
    for key in group:
        if isinstance(group.get(key, getlink=True), _h5py().ExternalLink):
            raise WeightsFileError(f"{group.name}/{key} is a link to another file; save the weights in one file")
        member = group[key]
        if hasattr(member, "items"):
            _refuse_links(member)
        elif member.external:
            raise WeightsFileError(f"{member.name} is stored in another file; save the weights in one file")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _read_by_layer(root: Any) -> dict[str, np.ndarray]:
    """Keras 2's way: a group a layer, which lists its variables (`conv1/kernel:0`)."""
    tensors = {}
    for layer in map(_text, root.attrs["layer_names"]):
        for name in map(_text, root[layer].attrs["weight_names"]):
            variable = name.rpartition("/")[2].partition(":")[0]
            tensors[f"{layer}/{variable}"] = np.asarray(root[layer][name])
    return tensors


def _read_by_vars(root: Any) -> dict[str, np.ndarray]:
    """Keras 3's way: `layers/conv2d_1/vars/0`, where the group of `vars` says the layer's name."""
    tensors = {}

    def visit(group: Any) -> None:
        for key, member in group.items():
            if not hasattr(member, "items"):
                continue
            if key == "vars" and len(member):
                layer = _text(member.attrs.get("name") or group.attrs.get("name") or group.name.rpartition("/")[2])
                arrays = [np.asarray(member[str(i)]) for i in range(len(member))]
                names = _NORM if len(arrays) == 4 else _VARIABLES.get(len(arrays), tuple(map(str, range(len(arrays)))))
                tensors.update({f"{layer}/{name}": array for name, array in zip(names, arrays, strict=True)})
            else:
                visit(member)

    visit(root)
    return tensors


def shards(path: Path) -> list[Path]:
    """The files beside a model.json that hold its weights."""
    manifest = json.loads(path.read_text()).get("weightsManifest") or []
    return [path.parent / name for group in manifest for name in group["paths"]]


def read_tfjs(path: Path) -> dict[str, np.ndarray]:
    """{`layer/variable`: array} of a layers model or a graph model; path: its model.json."""
    model = json.loads(path.read_text())
    manifest = model.get("weightsManifest")
    if not manifest:
        raise WeightsFileError("a JSON without weightsManifest; expected the model.json of a TensorFlow.js model")
    tensors = {}
    for group in manifest:
        shards = []
        for name in group["paths"]:
            shard = path.parent / name
            if Path(name).name != name or not shard.is_file():
                raise WeightsFileError(f"its shard {name} is not beside it; get all files of the model's folder")
            shards.append(shard.read_bytes())
        data, offset = b"".join(shards), 0
        for entry in group["weights"]:
            array, offset = _tfjs_tensor(entry, data, offset)
            tensors[re.sub(r":0$", "", entry["name"])] = array
    return _by_layer(tensors) if "node" in (model.get("modelTopology") or {}) else tensors


def _by_layer(nodes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Constants of a graph by the names of Keras's layers; integers, which are shapes and axes, are left out.

    Raises:
      WeightsFileError: for two of one name.
    """
    tensors = {}
    for node, value in nodes.items():
        if np.issubdtype(value.dtype, np.floating):
            for end, variable in _NODES:
                if re.search(end, node):
                    node = re.sub(end, "", node).rpartition("/")[2] + variable
                    break
            if node in tensors:
                raise WeightsFileError(f"two layers of the graph are called {node}; the weights cannot be told apart by name")
            tensors[node] = value
    return tensors


def _tfjs_tensor(entry: dict[str, Any], data: bytes, offset: int) -> tuple[np.ndarray, int]:
    quantised = entry.get("quantization")
    stored = (quantised or entry)["dtype"]
    if stored not in _TFJS_DTYPES:
        raise WeightsFileError(f"{entry['name']}: dtype {stored} is not read; expected one of {sorted(_TFJS_DTYPES)}")
    dtype, size = np.dtype(_TFJS_DTYPES[stored]), math.prod(entry["shape"])
    end = offset + size * dtype.itemsize
    if size < 0 or end > len(data):
        raise TruncatedFileError(f"{entry['name']}: bytes {offset} to {end} of {len(data)}; download the shards again")
    array = np.frombuffer(data, dtype, size, offset).reshape(entry["shape"])
    if quantised and "scale" in quantised:
        array = array.astype(np.float32) * np.float32(quantised["scale"]) + np.float32(quantised["min"])
    return array.copy(), end

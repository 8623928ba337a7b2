"""Reads the tensors of Keras files and of TensorFlow.js models, without Keras or TensorFlow.

  .keras        a zip archive of config.json and model.weights.h5 (Keras 3)
  .h5, .hdf5    what Keras 2 and 3 save by that name (a whole model or its weights), and `.weights.h5` of Keras 3
  model.json    a TensorFlow.js model: a manifest, and shards of raw bytes beside it; also an address's folder of these. Of a
                graph model the nodes' names say the layers, where it was converted from Keras

Names are `layer/variable`: `block1_conv1/kernel`. HDF5 files need h5py (`pip install 'imgrec-jax[keras]'`).
"""

import io
import itertools
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
    there = len(file.getbuffer()) if isinstance(file, io.BytesIO) else Path(file).stat().st_size
    with _h5py().File(file, "r") as opened:
        declared = _bytes_of(opened)
        if declared > _MOST_UNPACKED * there:  # Keras compresses nothing
            raise WeightsFileError(f"its arrays would unpack to {declared:,} bytes from a file of {there:,}")
        root = opened.get("model_weights", opened)
        return _read_by_layer(root) if _listed(root, "layer_names") is not None else _read_by_vars(opened)


def _bytes_of(group: Any) -> int:
    """How many the arrays of a file declare; WeightsFileError where it has some in other files."""
    declared = 0
    for key in group:
        if isinstance(group.get(key, getlink=True), _h5py().ExternalLink):
            raise WeightsFileError(f"{group.name}/{key} is a link to another file; save the weights in one file")
        member = group[key]
        if hasattr(member, "items"):
            declared += _bytes_of(member)
        elif member.external or member.is_virtual:
            raise WeightsFileError(f"{member.name} is stored in another file; save the weights in one file")
        else:
            declared += member.nbytes
    return declared


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _listed(group: Any, key: str) -> list[str] | None:
    """The names in an attribute, or in "KEY0", "KEY1", ..., as which Keras writes a long one; None where there is neither."""
    if key in group.attrs:
        return [_text(name) for name in group.attrs[key]]
    if f"{key}0" not in group.attrs:
        return None
    parts = (group.attrs[f"{key}{n}"] for n in itertools.takewhile(lambda n: f"{key}{n}" in group.attrs, itertools.count()))
    return [_text(name) for part in parts for name in part]


def _read_by_layer(root: Any) -> dict[str, np.ndarray]:
    """Keras 2's way: a group a layer, which lists its variables (`conv1/kernel:0`), or those of all layers of a model in it."""
    tensors: dict[str, np.ndarray] = {}
    for layer in _listed(root, "layer_names") or []:
        names = _listed(root[layer], "weight_names") or []
        owners = [name.rpartition("/")[0].rpartition("/")[2] for name in names]
        for name, owner in zip(names, owners, strict=True):
            variable = name.rpartition("/")[2].partition(":")[0]
            _add(tensors, f"{owner if len(set(owners)) > 1 else layer}/{variable}", np.asarray(root[layer][name]))
    return tensors


def _add(tensors: dict[str, np.ndarray], name: str, value: np.ndarray) -> None:
    """Raises WeightsFileError for a second one of a name."""
    if name in tensors:
        raise WeightsFileError(f"two of its layers have a {name}; the weights cannot be told apart by name")
    tensors[name] = value


def _read_by_vars(root: Any) -> dict[str, np.ndarray]:
    """Keras 3's way: `layers/conv2d_1/vars/0`, where the group of `vars` says the layer's name."""
    tensors: dict[str, np.ndarray] = {}

    def visit(group: Any) -> None:
        for key, member in group.items():
            if not hasattr(member, "items") or member.name == "/optimizer" or key == "seed_generator":  # states of training
                continue
            if key == "vars" and len(member):
                layer = _text(member.attrs.get("name") or group.attrs.get("name") or group.name.rpartition("/")[2])
                arrays = [np.asarray(member[str(i)]) for i in range(len(member))]
                names = _NORM if len(arrays) == 4 else _VARIABLES.get(len(arrays), tuple(map(str, range(len(arrays)))))
                for name, array in zip(names, arrays, strict=True):
                    _add(tensors, f"{layer}/{name}", array)
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
    tensors: dict[str, np.ndarray] = {}
    for node, value in nodes.items():
        if np.issubdtype(value.dtype, np.floating):
            for end, variable in _NODES:
                if re.search(end, node):
                    node = re.sub(end, "", node).rpartition("/")[2] + variable
                    break
            _add(tensors, node, value)
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

"""Keras, TensorFlow.js and ONNX files, read without their frameworks: exact values, and one line for what is damaged."""

import json
import struct
import zipfile
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util

from imgrec_jax import assemble
from imgrec_jax.assemble import pretrained
from imgrec_jax.assemble.model import make_model
from imgrec_jax.config import base
from imgrec_jax.pretrained import files, names
from imgrec_jax.pretrained.torch_file import WeightsFileError

TENSORS = {
    "conv1/kernel": np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3),
    "conv1/bias": np.arange(3, dtype=np.float32),
    "bn/gamma": np.full(3, 2.0, np.float32),
    "bn/beta": np.full(3, 3.0, np.float32),
    "bn/moving_mean": np.full(3, 4.0, np.float32),
    "bn/moving_variance": np.full(3, 5.0, np.float32),
}


def assert_read(path: Path, tensors=TENSORS) -> None:
    read = files.read(path)
    assert read.keys() == tensors.keys()
    assert all(np.array_equal(read[name], value) for name, value in tensors.items())


def layers() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in TENSORS:
        found.setdefault(name.partition("/")[0], []).append(name)
    return found


def test_keras_2_h5(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [layer.encode() for layer in layers()]
        for layer, members in layers().items():
            names = [f"{name}:0" for name in members]
            group.create_group(layer).attrs["weight_names"] = [name.encode() for name in names]
            for name, member in zip(names, members, strict=True):
                group[layer][name] = TENSORS[member]
    assert_read(tmp_path / "a.h5")


def write_by_layer(path, layers, chunked=False):
    """layers: {layer: {weight name: array}}; chunked: lists of names in two attributes, as Keras writes long ones."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        group = file.create_group("model_weights")
        for holder, key, names in (
            (group, "layer_names", list(layers)),
            *((group.create_group(layer), "weight_names", list(weights)) for layer, weights in layers.items()),
        ):
            coded = [name.encode() for name in names]
            if chunked:
                holder.attrs[f"{key}0"], holder.attrs[f"{key}1"] = coded[:1], coded[1:]
            else:
                holder.attrs[key] = coded
        for layer, weights in layers.items():
            for name, value in weights.items():
                group[layer][name] = value


@pytest.mark.parametrize("chunked", [False, True])
def test_a_model_within_a_keras_model(tmp_path, chunked):
    """Keras 2 and 3 list its layers' variables in one group; one layer's own name may differ from its group's."""
    base = {f"{name}:0": value for name, value in TENSORS.items()}
    write_by_layer(tmp_path / "a.h5", {"base": base, "head": {"head_1/kernel:0": np.ones((3, 2))}}, chunked)
    assert_read(tmp_path / "a.h5", {**TENSORS, "head/kernel": np.ones((3, 2))})
    write_by_layer(tmp_path / "b.h5", {"base": base, "conv1": {"conv1/kernel:0": np.ones((3, 2))}})
    with pytest.raises(WeightsFileError, match=r"b\.h5: two of its layers have a conv1/kernel"):
        files.read(tmp_path / "b.h5")


def test_states_of_training_in_a_keras_file_are_no_weights(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        file["layers/conv1/vars/0"] = TENSORS["conv1/kernel"]
        file["optimizer/vars/0"] = np.zeros(3)
        file["layers/dropout/seed_generator/vars/0"] = file["layers/dropout_1/seed_generator/vars/0"] = np.zeros(2)
    assert_read(tmp_path / "a.weights.h5", {"conv1/kernel": TENSORS["conv1/kernel"]})


def test_arrays_far_larger_than_their_file_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        vars_of = file.create_group("l/vars")
        vars_of.create_dataset("0", shape=(1000, 1000, 500), chunks=(100, 100, 100), dtype="f4", compression="gzip")
    with pytest.raises(WeightsFileError, match=r"a\.h5: its arrays would unpack to 2,000,000,000 bytes from a file of"):
        files.read(tmp_path / "a.h5")


def test_keras_3_archive_and_its_damage(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        for number, (layer, members) in enumerate(layers().items()):
            group = file.create_group(f"layers/some_{number}/vars")
            group.attrs["name"] = layer
            for i, member in enumerate(members):
                group[str(i)] = TENSORS[member]
    assert_read(tmp_path / "model.weights.h5")
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.write(tmp_path / "model.weights.h5", "model.weights.h5")
        archive.writestr("config.json", "{}")
    assert_read(tmp_path / "a.keras")
    data = (tmp_path / "a.keras").read_bytes()
    (tmp_path / "b.keras").write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsFileError, match="b.keras: damaged"):
        files.read(tmp_path / "b.keras")


def tfjs(folder: Path) -> dict:
    """The model.json of TENSORS in two shards, the last tensor quantised to bytes."""
    folder.mkdir()
    parts, entries = [], []
    for name, value in TENSORS.items():
        entry = {"name": name, "shape": list(value.shape), "dtype": "float32"}
        if name == "bn/moving_variance":
            entry["quantization"] = {"dtype": "uint8", "scale": 0.5, "min": 1.0}
            value = np.full(3, 8, np.uint8)  # 8 * 0.5 + 1
        entries.append(entry)
        parts.append(value.tobytes())
    data = b"".join(parts)
    (folder / "group1-shard1of2").write_bytes(data[:20])
    (folder / "group1-shard2of2").write_bytes(data[20:])
    return {"weightsManifest": [{"paths": ["group1-shard1of2", "group1-shard2of2"], "weights": entries}]}


def test_tfjs_folder_and_missing_shards(tmp_path):
    model = tfjs(tmp_path / "m")
    (tmp_path / "m" / "model.json").write_text(json.dumps(model))
    assert_read(tmp_path / "m")
    assert len(files.parts(tmp_path / "m" / "model.json")) == 3
    (tmp_path / "m" / "group1-shard2of2").unlink()
    with pytest.raises(WeightsFileError, match="model.json: its shard group1-shard2of2 is not beside it"):
        files.read(tmp_path / "m")
    model["weightsManifest"][0]["paths"] = ["../m/group1-shard1of2"]
    (tmp_path / "m" / "model.json").write_text(json.dumps(model))
    with pytest.raises(WeightsFileError, match="is not beside it"):
        files.read(tmp_path / "m")


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def onnx_bytes() -> bytes:
    """By the field numbers of onnx.proto: raw, packed and float data, among other fields."""
    raw = b"".join([_varint(1 << 3) + _varint(2), _varint(1 << 3) + _varint(3), _varint(2 << 3) + _varint(1)])
    raw += _field(8, b"a.weight") + _field(9, np.arange(6, dtype=np.float32).tobytes())
    floats = _field(1, _varint(2)) + _varint(2 << 3) + _varint(1) + _field(8, b"b") + _field(4, struct.pack("<2f", 1.5, -2))
    whole = _field(1, _varint(1)) + _varint(2 << 3) + _varint(7) + _field(8, b"c") + _field(7, _varint(300))
    graph = _field(2, b"graph") + _field(5, raw) + _field(5, floats) + _field(5, whole)
    return _varint(1 << 3) + _varint(8) + _field(2, b"maker") + _field(7, graph)


def test_onnx_initialisers(tmp_path):
    (tmp_path / "a.onnx").write_bytes(onnx_bytes())
    expected = {
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([1.5, -2], np.float32),
        "c": np.array([300]),
    }
    assert_read(tmp_path / "a.onnx", expected)
    (tmp_path / "b.onnx").write_bytes(onnx_bytes()[:-9])
    with pytest.raises(WeightsFileError, match=r"b\.onnx"):
        files.read(tmp_path / "b.onnx")
    (tmp_path / "c.onnx").write_bytes(b"not at all")
    with pytest.raises(WeightsFileError, match=r"c\.onnx"):
        files.read(tmp_path / "c.onnx")


@pytest.mark.parametrize(("code", "dtype"), [(10, np.float16), (16, ml_dtypes.bfloat16), (6, np.int32), (3, np.int8)])
def test_onnx_int32_data(tmp_path, code, dtype):
    """Which holds the bits of half floats, and numbers of everything else (onnx.proto, TensorProto.int32_data)."""
    values = np.array([1.0, -2.0, 5.0]).astype(dtype)
    numbers = values.view(np.uint16) if values.dtype.itemsize == 2 else values
    packed = b"".join(_varint(int(number) % (1 << 64)) for number in numbers)
    tensor = _field(1, _varint(3)) + _varint(2 << 3) + _varint(code) + _field(8, b"w") + _field(5, packed)
    (tmp_path / "a.onnx").write_bytes(_field(7, _field(5, tensor)))
    assert files.read(tmp_path / "a.onnx")["w"].dtype == dtype
    assert_read(tmp_path / "a.onnx", {"w": values})


def test_onnx_as_its_own_library_writes_it(tmp_path):
    onnx = pytest.importorskip("onnx")
    tensors = {"w": np.arange(6, dtype=np.float16).reshape(3, 2), "i": np.arange(4)}
    made = [onnx.numpy_helper.from_array(value, name) for name, value in tensors.items()]
    graph = onnx.helper.make_graph([], "g", [], [], made)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "a.onnx")
    assert_read(tmp_path / "a.onnx", tensors)


@pytest.mark.parametrize("folds", [pytest.param(True, marks=pytest.mark.slow), False], ids=["folded", "as variables"])
def test_a_graph_model_is_the_network_it_was_converted_from(tmp_path, folds):
    """MobileNetV1's nodes as tensorflowjs_converter names them, its batch norms folded or not: equal logits."""
    config = base()
    with config.unlocked():
        config.model.name, config.model.num_classes = "mobilenet_v1_025", 5
        config.pretrained.path = str(tmp_path)
    config = assemble.complete(config)
    model = make_model(config)
    image = np.random.default_rng(0).standard_normal((1, 32, 32, 3)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    truth = jax.tree.map(lambda x: np.random.default_rng(x.size).uniform(0.5, 1.5, x.shape).astype(np.float32) / 9, shapes)
    flat = {"/".join(key[1:]): value for key, value in traverse_util.flatten_dict(truth).items()}
    table = names.of_classifier("mobilenet_v1", "keras", flat, "backbone/")
    keras = {name: names.to_theirs(flat[path], path, name, "keras") for path, name in table.items()}
    write_graph(tmp_path, graph_nodes(keras, 1e-3 if folds else None))
    fresh = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    found, _ = pretrained.make_initialise(config)(fresh)
    expected = model.apply(truth, image)
    np.testing.assert_allclose(model.apply(found, image), expected, atol=1e-5 * np.abs(expected).max())


def graph_nodes(tensors: dict, epsilon: float | None) -> dict[str, np.ndarray]:
    """epsilon: batch norms are folded with it; None leaves them."""
    at = "StatefulPartitionedCall/mobilenet"
    nodes: dict[str, np.ndarray] = {f"{at}/reshape/Reshape/shape": np.arange(4, dtype=np.int32)}
    ends = {"gamma": "ReadVariableOp", "beta": "ReadVariableOp_1", "moving_mean": "FusedBatchNormV3/ReadVariableOp",
            "moving_variance": "FusedBatchNormV3/ReadVariableOp_1", "bias": "BiasAdd/ReadVariableOp"}  # fmt: skip
    for name, value in tensors.items():
        layer, _, variable = name.partition("/")
        op = "depthwise" if "_dw_" in layer else "Conv2D"
        if variable != "kernel":
            if epsilon is None or not layer.endswith("_bn"):
                nodes[f"{at}/{layer}/{ends[variable]}"] = value
        elif epsilon is None or f"{layer}_bn/gamma" not in tensors:
            nodes[f"{at}/{layer}/{op}/ReadVariableOp"] = value
        else:
            gamma, beta, mean, var = (tensors[f"{layer}_bn/{end}"] for end in list(ends)[:4])
            factor = gamma / np.sqrt(var + epsilon)
            nodes[f"{at}/{layer}/{op}_weights"] = value * (factor[:, None] if op == "depthwise" else factor)
            nodes[f"{at}/{layer}/{op}_bn_offset"] = beta - mean * factor
    return nodes


def write_graph(folder: Path, nodes: dict[str, np.ndarray]) -> None:
    entries = [{"name": name, "shape": list(value.shape), "dtype": value.dtype.name} for name, value in nodes.items()]
    (folder / "group1-shard1of1").write_bytes(b"".join(np.ascontiguousarray(value).tobytes() for value in nodes.values()))
    manifest = [{"paths": ["group1-shard1of1"], "weights": entries}]
    model = {"format": "graph-model", "modelTopology": {"node": []}, "weightsManifest": manifest}
    (folder / "model.json").write_text(json.dumps(model))

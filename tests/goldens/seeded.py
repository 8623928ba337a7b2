"""Weights and images that a name and a seed determine, so that golden files need not store them."""

import importlib
import importlib.util
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest


def weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """A torch-named state dict: He-scaled kernels, non-trivial norms, biases and running statistics."""
    return {name: _tensor(name, tuple(shape)) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if name.endswith("weight") and len(shape) == 1:  # below 1, so that the sums of residual blocks stay moderate
        return rng.uniform(0.5, 1.0, shape).astype(np.float32)
    values = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) == 1 or name.endswith("layer_scale"):
        return values * np.float32(0.1)
    return values * np.float32((2 / np.prod(shape[1:])) ** 0.5)


def keras_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """The same for Keras's names, `layer/gamma`, and layouts."""
    words = {"gamma": "weight", "moving_variance": "running_var"}
    out = {}
    for name, shape in shapes.items():
        layer, _, leaf = name.rpartition("/")
        if len(shape) < 2:
            out[name] = _tensor(f"{layer}/{words.get(leaf, leaf)}", tuple(shape))
            continue
        fan_in = np.prod(shape[:2]) if len(shape) == 4 and shape[3] == 1 else np.prod(shape[:-1])
        values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
        out[name] = values * np.float32((2 / fan_in) ** 0.5)
    return out


def variables(model, *args, **kwargs) -> dict:
    """The variables of a Flax module for these arguments, filled by path without running or compiling its init."""
    import jax

    def fill(path, abstract):
        *_, leaf = names = [part.key for part in path]
        rng = np.random.default_rng(zlib.crc32("/".join(names).encode()))
        if leaf in ("scale", "var"):
            values = rng.uniform(0.5, 1.5, abstract.shape)
        else:
            fan_in = np.prod(abstract.shape[:-1]) if leaf == "kernel" else 200
            values = rng.standard_normal(abstract.shape) * (2 / fan_in) ** 0.5
        return values.astype(abstract.dtype)

    abstract = jax.eval_shape(lambda key: model.init(key, *args, **kwargs), jax.random.key(0))
    return jax.tree_util.tree_map_with_path(fill, abstract)


def image(*shape: int, seed: int = 0) -> np.ndarray:
    """A float32 array of standard normal values, in our layout [B, H, W, C]."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def subsample(values: np.ndarray, count: int = 200) -> np.ndarray:
    """At most about `count` evenly strided elements, to be kept in a golden file."""
    flat = np.asarray(values).reshape(-1)
    # an odd stride visits all rows, columns and channels of the (mostly even-sized) maps
    return flat[:: max(1, flat.size // count) | 1]


def shapes_to_text(shapes: Mapping[str, Sequence[int]]) -> np.ndarray:
    """{name: shape} as an array of "name 3 4" strings, which a golden file can hold without pickling."""
    return np.array([" ".join([name, *map(str, shape)]) for name, shape in shapes.items()])


def shapes_from_text(lines: np.ndarray) -> dict[str, tuple[int, ...]]:
    """The inverse of `shapes_to_text`."""
    fields = [str(line).split(" ") for line in lines]
    return {name: tuple(map(int, shape)) for name, *shape in fields}


def read_golden(path: Path, case: str) -> tuple[dict[str, tuple[int, ...]], dict[str, np.ndarray]]:
    """({name: shape} of the weights, {output: its subsample}) of one case of a golden file."""
    with np.load(path) as file:
        arrays = {name.removeprefix(f"{case}/"): file[name] for name in file.files if name.startswith(f"{case}/")}
    return shapes_from_text(arrays.pop("shapes")), arrays


def assert_matches(outputs: Mapping[str, np.ndarray], golden: Mapping[str, np.ndarray], atol: float = 1e-5) -> None:
    """Every golden output equals the subsample of ours, to `atol` of its largest value."""
    for name, expected in golden.items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(subsample(outputs[name]) / scale, expected / scale, rtol=0, atol=atol, err_msg=name)


def import_torchvision():
    """torchvision, with its missing CPU operators registered first where the tool for that is at hand; else a skip."""
    pytest.importorskip("torch")
    tools = Path(__file__).parents[3] / "shared" / "tools"
    if tools.exists() and str(tools) not in sys.path:
        sys.path.append(str(tools))
    try:
        if importlib.util.find_spec("torchvision_on_cpu"):
            importlib.import_module("torchvision_on_cpu")
        return importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:  # a torchvision built for another torch raises RuntimeError
        pytest.skip(f"torchvision cannot be imported: {error}")

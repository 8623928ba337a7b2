"""Reading torch and safetensors files without torch: exact values, and a named error for everything else."""

import argparse
import collections
import io
import json
import os
import pathlib
import pickle
import re
import resource
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from imgrec_jax.pretrained.torch_file import (
    _LEGACY_MAGIC,
    _LEGACY_PROTOCOL,
    ForbiddenPickleError,
    TruncatedFileError,
    WeightsFileError,
    read_tensors,
)
from tests.goldens import make_backbones

GOLDENS = Path(__file__).parents[1] / "goldens"
CIFAR = Path(__file__).parents[3] / "shared/data/weights/resnet_cifar10"
DTYPES = ["float16", "float32", "float64", "bfloat16", "int8", "uint8", "int16", "int32", "int64", "bool"]


def assert_same(actual: dict, expected: dict) -> None:
    assert list(actual) == list(expected)
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


@pytest.mark.parametrize("file", ["tiny_zip.pth", "tiny_legacy.pth"])
def test_reads_both_torch_formats(file):
    """Five dtypes, a transposed view, two views of one storage, a Parameter; beside them an epoch, left out."""
    assert_same(read_tensors(GOLDENS / file), make_backbones.tiny_tensors())


@pytest.mark.parametrize("zipped", [True, False])
def test_reads_what_torch_writes(zipped, tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.arange(-3, 3).reshape(1, 3, 2).to(getattr(torch, name)) for name in DTYPES}
    tensors |= {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "strided": torch.arange(24.0).reshape(4, 6)[1::2, ::3],
    }
    torch.save(tensors, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    expected = {
        name: value.float().numpy().astype(ml_dtypes.bfloat16) if name == "bfloat16" else value.numpy()
        for name, value in tensors.items()
    }
    assert_same(read_tensors(tmp_path / "a.pth"), expected)


def test_reads_safetensors(tmp_path):
    dtypes = {name: getattr(ml_dtypes, name, name) for name in DTYPES}
    tensors = {name: np.arange(-3, 3).reshape(1, 3, 2).astype(dtype) for name, dtype in dtypes.items()}
    tensors |= {"scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 3), np.float32)}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    read = read_tensors(tmp_path / "a.safetensors")
    assert_same({name: read[name] for name in tensors}, tensors)
    assert len(read) == len(tensors)


def test_data_parallel_prefix_is_removed(tmp_path):
    save_file({"module.a.weight": np.ones(2)}, tmp_path / "a.safetensors")
    assert list(read_tensors(tmp_path / "a.safetensors")) == ["a.weight"]
    save_file({"module.a.weight": np.ones(2), "b.weight": np.ones(2)}, tmp_path / "b.safetensors")
    assert set(read_tensors(tmp_path / "b.safetensors")) == {"module.a.weight", "b.weight"}


def test_what_training_scripts_put_beside_the_weights_is_passed_over(tmp_path):
    """As references/detection/train.py saves: arguments, numbers of NumPy, sets; under prefixes of DataParallel and compile."""
    tensor = {"module._orig_mod.a.weight": _Call(_rebuilt, 2.0)}
    beside = {
        "args": argparse.Namespace(lr=0.1, output_dir=pathlib.PosixPath("x"), aspect=np.float64(1.5), seen={1, 2}),
        "counts": collections.defaultdict(list, a=[1]),
        "lr_scheduler": {"milestones": collections.Counter([16, 22]), "last_epoch": 3, "recent": collections.deque([1.0])},
        "sampler": np.arange(3),
    }
    write_zip(tmp_path / "a.pth", {"model": tensor, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, **beside})
    with pytest.raises(ForbiddenPickleError, match="_rebuilt"):  # all of the others are met before it, or after
        read_tensors(tmp_path / "a.pth")
    write_zip(tmp_path / "b.pth", {**beside, "model": {}})
    with pytest.raises(WeightsFileError, match=r"b\.pth: no tensors by name"):
        read_tensors(tmp_path / "b.pth")
    save_file({"module._orig_mod.a.weight": np.ones(2), "module._orig_mod.b": np.ones(1)}, tmp_path / "a.safetensors")
    assert set(read_tensors(tmp_path / "a.safetensors")) == {"a.weight", "b"}


def _rebuilt(value: float) -> float:
    return value


class _Call:
    """Pickles as a call of `function`, which an ordinary unpickler would make."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def write_zip(path: Path, content: object) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))


def write_legacy(path: Path, content: object) -> None:
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, content, [])
    path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.mkdir, "mkdir"),
        (eval, "eval"),
        (getattr, "getattr"),
        (collections.ChainMap, "ChainMap"),
        (io.BytesIO, "BytesIO"),
    ],
)
def test_a_pickle_that_calls_anything_else_is_refused(write, function, name, tmp_path):
    target = tmp_path / "made"
    write(tmp_path / "a.pth", {"weight": _Call(function, str(target))})
    with pytest.raises(ForbiddenPickleError, match=rf"a\.pth.*{name}"):
        read_tensors(tmp_path / "a.pth")
    assert not target.exists()


@pytest.mark.parametrize("file", ["tiny_zip.pth", "tiny_legacy.pth"])
def test_every_truncation_is_a_named_error(file, tmp_path):
    data = (GOLDENS / file).read_bytes()
    for size in range(0, len(data), 7):
        (tmp_path / "a.pth").write_bytes(data[:size])
        with pytest.raises(WeightsFileError, match=r"a\.pth"):
            read_tensors(tmp_path / "a.pth")
    for size in (len(data) // 2, len(data) - 1):
        (tmp_path / "a.pth").write_bytes(data[:size])
        with pytest.raises(TruncatedFileError):
            read_tensors(tmp_path / "a.pth")


def test_every_safetensors_truncation_is_a_named_error(tmp_path):
    save_file({"a": np.ones((2, 3)), "b": np.ones(5, np.int8)}, tmp_path / "whole.safetensors")
    data = (tmp_path / "whole.safetensors").read_bytes()
    for size in range(len(data)):
        (tmp_path / "a.safetensors").write_bytes(data[:size])
        with pytest.raises(TruncatedFileError, match=r"a\.safetensors"):
            read_tensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (3, 3), (3, 1)), (5, (2,), (1,)), (-1, (2,), (1,)), (0, (2,), (-1,)), (0, (2, 3), (3,))],
)
def test_a_tensor_that_leaves_its_storage_is_refused(offset, shape, strides, tmp_path):
    """Six elements are stored; none of these windows lies inside them."""
    window = "".join(f"I{n}\n" for n in shape), "".join(f"I{n}\n" for n in strides)
    text = (
        "(dVweight\nctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI6\ntQ"
        f"I{offset}\n({window[0]}t({window[1]}tI00\nNtRs."
    )
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/data.pkl", text)
        archive.writestr("archive/data/0", np.arange(6, dtype=np.float32).tobytes())
    with pytest.raises(WeightsFileError, match=r"a\.pth.*a tensor"):
        read_tensors(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.pth", b"", "ends inside"),
        ("a.pth", b"not a pickle", "not a torch pickle"),
        ("a.pth", pickle.dumps([1, 2]), "neither a zip archive nor a torch stream"),
        ("a.safetensors", struct.pack("<Q", 2) + b"[[", "not JSON"),
        ("a.safetensors", struct.pack("<Q", 2) + b"[]", "damaged"),
        ("a.safetensors", struct.pack("<Q", 14) + b'{"a":{"b": 1}}', "damaged"),
    ],
)
def test_other_files_are_named_errors(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(WeightsFileError, match=message):
        read_tensors(tmp_path / name)


def test_a_zip_that_is_no_torch_file_and_a_file_that_is_no_state_dict(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(WeightsFileError, match="without data.pkl"):
        read_tensors(tmp_path / "a.pth")
    write_legacy(tmp_path / "b.pth", [1, 2])
    with pytest.raises(WeightsFileError, match="holds a list"):
        read_tensors(tmp_path / "b.pth")


@pytest.mark.skipif(not CIFAR.exists(), reason=f"{CIFAR} is absent")
@pytest.mark.parametrize(("file", "count"), [("resnet20-12fca82f.th", 269_722), ("resnet56-4bfd9763.th", 853_018)])
def test_published_legacy_files(file, count):
    """He et al. 2015, table 6: 0.27 M and 0.85 M parameters (running statistics not counted)."""
    tensors = read_tensors(CIFAR / file)
    assert not any(name.startswith("module.") for name in tensors)
    assert sum(value.size for name, value in tensors.items() if "running" not in name) == count
    torch = pytest.importorskip("torch")
    reference = torch.load(CIFAR / file, map_location="cpu", weights_only=True)["state_dict"]
    assert_same(tensors, {name.removeprefix("module."): value.numpy() for name, value in reference.items()})


def pickled(size: int, shape: tuple[int, ...], strides: tuple[int, ...], names: int = 1) -> bytes:
    """Tensors w0, w1, ... of one float storage that is declared to have `size` elements."""
    numbers = lambda values: "".join(f"I{n}\n" for n in values)  # noqa: E731
    tensor = (
        f"ctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI{size}\ntQ"
        f"I0\n({numbers(shape)}t({numbers(strides)}tI00\nNtR"
    )
    return ("(d" + "".join(f"Vw{n}\n{tensor}s" for n in range(names)) + ".").encode()


def zipped(path: Path, content: bytes, stored: int, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", bytes(4 * stored))
    return path


TENSOR = pickled(2, (2,), (1,))[len(b"(dVw0\n") : -2].decode()  # of two zeros
PARAMETER = f"ctorch._utils\n_rebuild_parameter_with_state\n({TENSOR}I01\n(d(dVtag\nVx\nstR"
COUNTER = "ccollections\nCounter\n((dI16\nI1\nsI22\nI1\nstR"
CHECKPOINTS = {
    "torchvision's detection": {"model": {"a.b": TENSOR}, "lr_scheduler": {"milestones": COUNTER}, "epoch": "I3\n"},
    "a Parameter with attributes": {"a.b": PARAMETER},
    "torch's AveragedModel": {"n_averaged": TENSOR, "module.a.b": TENSOR},
    "the average alone": {"model_ema": {"n_averaged": TENSOR, "module.a.b": TENSOR}, "epoch": "I3\n"},
    "timm's average": {"state_dict_ema": {"a.b": TENSOR}},
    "weights beside their average": {"ema": {"wrong": TENSOR}, "model": {"a.b": TENSOR}},
    "the average beside nothing": {"model": {}, "ema": {"state_dict": {"a.b": TENSOR}}},
    "Lightning": {"state_dict": {"model.a.b": TENSOR}, "callbacks": {}, "hparams": {}},
    "Lightning, compiled": {"state_dict": {"net._orig_mod.a.b": TENSOR}},
}


def text_of(content: dict | str) -> str:
    if isinstance(content, str):
        return content
    return "(d" + "".join(f"V{name}\n{text_of(value)}s" for name, value in content.items())


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints_of_training_scripts(tmp_path, kind):
    path = zipped(tmp_path / "a.pth", f"{text_of(CHECKPOINTS[kind])}.".encode(), stored=2)
    assert_same(read_tensors(path), {"a.b": np.zeros(2, np.float32)})


def test_declared_sizes_are_held_against_the_file(tmp_path):
    """Each of these would take gigabytes, and none of them takes anything."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path, message in (
        (zipped(tmp_path / "a.pth", pickled(6, (200,), (0,)), 6), "repeats a storage of 6"),
        (zipped(tmp_path / "f.pth", pickled(6, (2**15, 2**15), (0, 0)), 6), "its tensors take 4294967296 bytes"),
        (zipped(tmp_path / "b.pth", pickled(2**40, (2**40,), (1,)), 6), "storage 0 has 24 bytes"),
        (zipped(tmp_path / "c.pth", pickled(2**23, (2**23,), (1,)), 2**23, zipfile.ZIP_DEFLATED), "its members declare"),
        (zipped(tmp_path / "d.pth", pickled(2**14, (2**14,), (1,), 5000), 2**14), "its tensors take 327680000 bytes"),
    ):
        with pytest.raises(WeightsFileError, match=rf"{path.name}: .*{message}"):
            read_tensors(path)
    for opcodes in (
        b"}r\x00\x00\x00\x04.",  # the dictionary is number 2**26 of what the pickle remembers
        b"}p67108864\n.",
        b"}\x96" + struct.pack("<Q", 2**28),  # a bytearray of 2**28
    ):
        with pytest.raises(WeightsFileError, match="no tensors by name|not a torch pickle"):
            read_tensors(zipped(tmp_path / "m.pth", b"\x80\x02" + opcodes, 0))
    legacy = [pickle.dumps(v, 2) for v in (_LEGACY_MAGIC, _LEGACY_PROTOCOL, {"little_endian": True})]
    legacy += [pickled(2**40, (2**40,), (1,)), pickle.dumps(["0"], 2), struct.pack("<q", 2**40), bytes(100)]
    (tmp_path / "e.pth").write_bytes(b"".join(legacy))
    with pytest.raises(TruncatedFileError, match=r"e.pth: storage 0 declares 1099511627776 elements in a file of"):
        read_tensors(tmp_path / "e.pth")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_every_storage_is_read_once(tmp_path, monkeypatch):
    """However many tensors are windows on it, in whatever order."""
    one = pickled(40, (2,), (1,), names=60).replace(b"I0\n(I2", b"I7\n(I2")
    names = iter(range(60))
    content = re.sub(rb"V0\nVcpu", lambda _: b"V%d\nVcpu" % (next(names) % 3), one)  # storages 0, 1, 2, 0, 1, ...
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for key in range(3):
            archive.writestr(f"archive/data/{key}", (100 * key + np.arange(40, dtype=np.float32)).tobytes())
    read: collections.Counter[str] = collections.Counter()
    real = zipfile.ZipFile.read
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda self, name: read.update([name]) or real(self, name))
    expected = {f"w{n}": np.array([100 * (n % 3) + 7, 100 * (n % 3) + 8], np.float32) for n in range(60)}
    assert_same(read_tensors(tmp_path / "a.pth"), expected)
    assert read == {f"archive/data/{key}": 1 for key in range(3)}


@pytest.mark.parametrize(
    "entries",
    [
        {"a": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}},
        {"a": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}},
        {"a": {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}},
        {f"w{n}": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]} for n in range(10)},
    ],
)
def test_safetensors_that_cannot_be(tmp_path, entries):
    header = json.dumps(entries).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4000))
    with pytest.raises(WeightsFileError, match="a.safetensors: "):
        read_tensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_only_regular_files_are_read(tmp_path, name):
    os.mkfifo(tmp_path / name)
    (tmp_path / f"endless_{name}").symlink_to("/dev/zero")
    for path in (tmp_path / name, tmp_path / f"endless_{name}"):
        with pytest.raises(WeightsFileError, match=f"{path.name} is no regular file"):
            read_tensors(path)
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / f"gone_{name}")


@pytest.mark.parametrize("file", ["tiny_zip.pth", "tiny_legacy.pth"])
def test_flipped_bits_are_named_errors_or_numbers(file, tmp_path):
    data, rng = (GOLDENS / file).read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        (tmp_path / "a.pth").write_bytes(damaged)
        try:
            read_tensors(tmp_path / "a.pth")
        except WeightsFileError as error:
            assert "a.pth" in str(error)

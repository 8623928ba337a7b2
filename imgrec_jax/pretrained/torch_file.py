"""Reads the tensors of a `.pth` or `.safetensors` file without torch, and without running what a pickle asks for.

A torch file is a pickle whose tensors refer to raw storages. It comes as a zip archive (torch >= 1.6, data.pkl plus
one member per storage) or as a stream of pickles followed by the storages (older; torch/serialization.py,
`_legacy_save`). A pickle may name any function for the reader to call, so the unpickler here admits only the handful
below; anything else is a `ForbiddenPickleError`. Safetensors is an 8-byte length, a JSON header and raw bytes.
"""

import collections
import contextlib
import functools
import io
import json
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py, MAGIC_NUMBER
_LEGACY_PROTOCOL = 1001
_MOST_TIES = 16  # times that tensors may share storages, on average; tied weights share one twice
# What DataParallel, compile and Lightning modules put before every name.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
# Under which training scripts put weights, and averages of them, which are taken where there is nothing else.
_WRAPPERS = (
    "state_dict", "model", "model_state_dict", "model_state",
    "state_dict_ema", "model_ema", "model_ema_state_dict", "ema_state_dict", "ema_model", "ema",
)  # fmt: skip
_DEEPEST = 4  # wrappers within wrappers

_STORAGE_DTYPES = {
    "HalfStorage": np.float16,
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "ShortStorage": np.int16,
    "IntStorage": np.int32,
    "LongStorage": np.int64,
    "BoolStorage": np.bool_,
}
_SAFETENSORS_DTYPES = {
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "BF16": ml_dtypes.bfloat16,
    "I8": np.int8,
    "U8": np.uint8,
    "I16": np.int16,
    "U16": np.uint16,
    "I32": np.int32,
    "U32": np.uint32,
    "I64": np.int64,
    "U64": np.uint64,
    "BOOL": np.bool_,
}


class WeightsFileError(ValueError):
    """The file is not a readable weights file."""


class TruncatedFileError(WeightsFileError):
    """The file ends before the data that its header promises."""


class ForbiddenPickleError(WeightsFileError):
    """The pickle asks for something that is not needed to rebuild tensors."""


class _Storage(NamedTuple):
    """A flat buffer as the pickle refers to it by its key; `load` gives its elements, once the bytes are known."""

    key: str
    dtype: np.dtype
    size: int
    load: Callable[[], np.ndarray]


class _LazyTensor(NamedTuple):
    """A strided window on a storage; old files place the storages' bytes after the pickle that refers to them."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self) -> np.ndarray:
        if len(self.shape) != len(self.strides) or min((self.offset, *self.shape, *self.strides)) < 0:
            raise WeightsFileError(f"a tensor has the layout {self[1:]}; expected non-negative offset, shape and strides")
        if math.prod(self.shape) > self.storage.size:
            raise WeightsFileError(
                f"a tensor of shape {self.shape} repeats a storage of {self.storage.size}; save it contiguous"
            )
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape, self.storage.dtype)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if last >= self.storage.size:
            raise WeightsFileError(f"a tensor reads element {last} of a storage of {self.storage.size}")
        values = self.storage.load()[self.offset :]
        strides = [s * values.itemsize for s in self.strides]
        return np.lib.stride_tricks.as_strided(values, self.shape, strides).copy()


def _rebuild_tensor(storage: _Storage, offset: int, shape: tuple, strides: tuple, *_grad_and_hooks) -> _LazyTensor:
    return _LazyTensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(data: _LazyTensor, *_grad_hooks_and_state) -> _LazyTensor:
    return data


class _Inert:
    """Stands for an object that a pickle asks for beside its tensors: takes whatever it is given, and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass


# What training scripts put beside the weights: their arguments, numbers of NumPy, states of optimisers and samplers.
_BESIDE = {
    **dict.fromkeys(
        ("numpy", "numpy.core.multiarray", "numpy._core.multiarray"), ("dtype", "scalar", "_reconstruct", "ndarray")
    ),
    "argparse": ("Namespace",),
    "collections": ("Counter", "defaultdict", "deque"),
    **dict.fromkeys(("builtins", "__builtin__"), ("set", "frozenset", "dict", "list", "int", "float", "complex", "slice")),
    **dict.fromkeys(("pathlib", "pathlib._local"), ("PosixPath", "WindowsPath", "PurePosixPath")),  # the latter of Python 3.13
    "torch": (
        "Size",
        "device",
        "dtype",
        "float16",
        "float32",
        "float64",
        "bfloat16",
        "int8",
        "uint8",
        "int32",
        "int64",
        "bool",
    ),
    "torch.torch_version": ("TorchVersion",),
    "_codecs": ("encode",),
}
_ADMITTED: dict[tuple[str, str], Any] = {
    **{(module, name): _Inert for module, known in _BESIDE.items() for name in known},
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    **dict.fromkeys(
        (("torch._utils", "_rebuild_parameter"), ("torch._utils", "_rebuild_parameter_with_state")), _rebuild_parameter
    ),
    **{("torch", name): name for name in _STORAGE_DTYPES},
}


class _Whole(NamedTuple):
    """A file that ends is an error at once: the unpickler would go on with what there is."""

    file: io.BufferedIOBase

    def read(self, size: int) -> bytes:
        return self._not_less(self.file.read(size), size)

    def readline(self) -> bytes:
        line = self.file.readline()
        return self._not_less(line, len(line) + (not line.endswith(b"\n")))

    def _not_less(self, data: bytes, size: int) -> bytes:
        if len(data) < size:
            raise EOFError
        return data


class _TensorUnpickler(pickle._Unpickler):
    """The one that is written in Python: what a pickle numbers is a dictionary there, and in C an array as long as the largest
    number that the pickle writes, gigabytes for a file of a hundred bytes."""

    # It fills a bytearray before it reads it; torch's protocol 2 has none.
    dispatch = {key: load for key, load in pickle._Unpickler.dispatch.items() if key != pickle.BYTEARRAY8[0]}

    def __init__(self, file: io.BufferedIOBase, storage: Callable[[np.dtype, str, int], _Storage]):
        super().__init__(_Whole(file), encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise ForbiddenPickleError(
                f"the pickle asks for {module}.{name}, which rebuilding tensors does not need; save the state dict alone"
            )
        return _ADMITTED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or pid[1] not in _STORAGE_DTYPES:
            raise WeightsFileError(f"the pickle refers to {pid!r}; expected a tensor storage")
        _, kind, key, _, size, *view = pid
        if any(part is not None for part in view):
            raise WeightsFileError("storage views (torch < 0.4) are not read; save the file with a newer torch")
        return self._storage(np.dtype(_STORAGE_DTYPES[kind]), key, size)


def _load_pickle(file: io.BufferedIOBase, storage: Callable[[np.dtype, str, int], _Storage]) -> Any:
    try:
        return _TensorUnpickler(file, storage).load()
    except WeightsFileError:
        raise
    except EOFError as error:
        raise TruncatedFileError("the file ends inside its pickle; download it again") from error
    except Exception as error:  # a damaged pickle can fail in any way
        reason = f"byte {error} is none of its operations" if isinstance(error, KeyError) else error
        raise WeightsFileError(f"not a torch pickle: {reason}") from error


def _check_length(length: int, dtype: np.dtype, size: int, what: str) -> None:
    if not 0 <= size * dtype.itemsize <= length:
        raise TruncatedFileError(f"{what} has {length} bytes of {size * dtype.itemsize}; download the file again")


def _elements(data: bytes, dtype: np.dtype, size: int, what: str) -> np.ndarray:
    _check_length(len(data), dtype, size, what)
    return np.frombuffer(data, dtype, size)


def _read_zip(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        # torch stores its members as they are, so together they are no larger than the file
        declared, size_on_disk = sum(member.file_size for member in archive.infolist()), path.stat().st_size
        if declared > size_on_disk:
            raise WeightsFileError(f"its members declare {declared} bytes in a file of {size_on_disk}; not written by torch")
        members = {name.split("/", 1)[-1]: name for name in archive.namelist()}
        if "data.pkl" not in members:
            raise WeightsFileError("a zip archive without data.pkl; not a torch file")
        if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
            raise WeightsFileError("a big-endian file; save it on a little-endian machine")

        read = functools.lru_cache(maxsize=1)(archive.read)  # of all tensors of a storage; `_flatten` asks for them together

        def storage(dtype: np.dtype, key: str, size: int) -> _Storage:
            if f"data/{key}" not in members:
                raise TruncatedFileError(f"storage {key} is missing; download the file again")
            member = members[f"data/{key}"]
            _check_length(archive.getinfo(member).file_size, dtype, size, f"storage {key}")
            return _Storage(str(key), dtype, size, lambda: _elements(read(member), dtype, size, f"storage {key}"))

        with archive.open(members["data.pkl"]) as file:
            return _flatten(_load_pickle(io.BytesIO(file.read()), storage), size_on_disk)


def _read_legacy(path: Path) -> dict[str, np.ndarray]:
    storages: dict[str, np.ndarray] = {}
    referred: dict[str, _Storage] = {}

    def storage(dtype: np.dtype, key: str, size: int) -> _Storage:
        return referred.setdefault(key, _Storage(str(key), dtype, size, lambda: storages[key]))

    size_on_disk = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            raise TruncatedFileError("a zip archive without its directory; download the file again")
        file.seek(0)
        if _load_pickle(file, storage) != _LEGACY_MAGIC:
            raise WeightsFileError("neither a zip archive nor a torch stream")
        if (protocol := _load_pickle(file, storage)) != _LEGACY_PROTOCOL:
            raise WeightsFileError(f"torch stream protocol {protocol}; expected {_LEGACY_PROTOCOL}")
        if not _load_pickle(file, storage).get("little_endian", True):
            raise WeightsFileError("a big-endian file; save it on a little-endian machine")
        content = _load_pickle(file, storage)
        for key in _load_pickle(file, storage):  # the order in which the storages follow, each after its length
            _, dtype, size, _ = referred[key]
            header = file.read(8)
            if len(header) < 8 or struct.unpack("<q", header)[0] != size:
                raise TruncatedFileError(f"storage {key} does not have its {size} elements; download the file again")
            if not 0 <= size * dtype.itemsize <= size_on_disk:
                raise TruncatedFileError(f"storage {key} declares {size} elements in a file of {size_on_disk} bytes")
            storages[key] = _elements(file.read(size * dtype.itemsize), dtype, size, f"storage {key}")
        return _flatten(content, size_on_disk)


def _flatten(content: Any, size_on_disk: int) -> dict[str, np.ndarray]:
    """The named tensors of a (wrapped) state dict; other entries, such as an epoch number, are left out."""
    if not isinstance(content, Mapping):
        raise WeightsFileError(f"the file holds a {type(content).__name__}; expected a state dict")
    for _ in range(_DEEPEST):
        inner = (content.get(wrapper) for wrapper in _WRAPPERS)
        content = next((found for found in inner if isinstance(found, Mapping) and found), content)
    tensors = {name: value for name, value in content.items() if isinstance(value, _LazyTensor)}
    total = sum(math.prod(value.shape) * value.storage.dtype.itemsize for value in tensors.values())
    if total > _MOST_TIES * size_on_disk:
        raise WeightsFileError(f"its tensors take {total} bytes, in a file of {size_on_disk}; save each storage once")
    arrays = {name: tensors[name].read() for name in sorted(tensors, key=lambda name: tensors[name].storage.key)}
    return {name: arrays[name] for name in tensors}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else len(data)
    if len(data) < 8 + length:
        raise TruncatedFileError(f"{len(data)} bytes do not hold the header; download the file again")
    try:
        header = json.loads(data[8 : 8 + length])
    except ValueError as error:
        raise WeightsFileError(f"the header is not JSON: {error}") from error
    header.pop("__metadata__", None)
    tensors: dict[str, np.ndarray] = {}
    left = len(data) - 8 - length  # tensors do not overlap
    for name, entry in header.items():
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            raise WeightsFileError(f"{name}: dtype {entry['dtype']} is not read; expected {list(_SAFETENSORS_DTYPES)}")
        dtype = np.dtype(_SAFETENSORS_DTYPES[entry["dtype"]])
        start, stop = (8 + length + offset for offset in entry["data_offsets"])
        size = math.prod(entry["shape"])
        left -= size * dtype.itemsize
        if left < 0 or start < 8 + length or min(entry["shape"], default=0) < 0:
            raise TruncatedFileError(
                f"{name}: shape {entry['shape']} at {entry['data_offsets']} of {len(data)} bytes; download the file again"
            )
        if stop - start != size * dtype.itemsize:
            raise WeightsFileError(f"{name}: {stop - start} bytes for shape {entry['shape']} of {dtype}")
        tensors[name] = _elements(data[start:stop], dtype, size, name).reshape(entry["shape"]).copy()
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file that can be read says of itself beside its tensors; {} of other files."""
    if path.suffix != ".safetensors":
        return {}
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    return header.get("__metadata__") or {}


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """What goes wrong within is a WeightsFileError that names the file; but for a file that is not there."""
    try:
        yield
    except WeightsFileError as error:
        raise type(error)(f"{path}: {error}") from error
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file can fail in any way
        raise WeightsFileError(f"{path}: damaged ({type(error).__name__}: {error}); download it again") from error


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """{name: array} of a torch file (either format, a state dict or one under "state_dict" or "model") or safetensors.

    What DataParallel, compile and Lightning modules put before every name is removed (`_PREFIXES`), and so is the counter of an
    `AveragedModel`. Raises `WeightsFileError`, for a file without tensors, too, or its subclasses `TruncatedFileError` and
    `ForbiddenPickleError`, naming the file.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a device or a pipe may never end
        raise WeightsFileError(f"{path} is no regular file; expected a .pth or .safetensors file")
    with naming(path):
        if path.suffix == ".safetensors":
            tensors = _read_safetensors(path)
        elif zipfile.is_zipfile(path):
            tensors = _read_zip(path)
        else:
            tensors = _read_legacy(path)
        if not tensors:
            raise WeightsFileError(
                f"no tensors by name, neither at its top nor under one of {', '.join(_WRAPPERS)}; save the state dict alone"
            )
    return _without_prefixes(tensors)


def _without_prefixes(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    def common() -> str | None:
        return next((p for p in _PREFIXES if tensors and all(name.startswith(p) for name in tensors)), None)

    if "n_averaged" in tensors:  # torch.optim.swa_utils.AveragedModel
        tensors = {name: value for name, value in tensors.items() if name != "n_averaged"}
    while prefix := common():
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors

"""Reads the initialisers of an ONNX file without onnx: the few messages of its protobuf that hold them.

Field numbers from onnx/onnx.proto: ModelProto.graph 7, GraphProto.initializer 5, TensorProto dims 1, data_type 2,
float_data 4, int32_data 5, int64_data 7, name 8, raw_data 9, external_data 13.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from imgrec_jax.pretrained.torch_file import TruncatedFileError, WeightsFileError

_DTYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16, 11: np.float64,
           16: ml_dtypes.bfloat16}  # fmt: skip


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise TruncatedFileError("the file ends inside a number; download it again")
        byte = data[at]
        value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _fields(data: memoryview) -> Iterator[tuple[int, int, Any]]:
    """(field number, wire type, value) of a message; the value an integer or a memoryview of bytes."""
    at = 0
    value: Any
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = data[at : at + size], at + size
        elif kind == 2:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise TruncatedFileError("the file ends inside a message; download it again")
            value, at = data[at : at + size], at + size
        else:
            raise WeightsFileError("not an ONNX file")
        yield key >> 3, kind, value


def _numbers(kind: int, value: Any) -> list[int]:
    """A repeated integer: one of it, or many packed; in two's complement of 64 bits."""
    if kind == 0:
        return [value - (1 << 64) if value >= 1 << 63 else value]
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(number - (1 << 64) if number >= 1 << 63 else number)
    return numbers


def _tensor(data: memoryview) -> tuple[str, np.ndarray]:
    dims: list[int] = []
    integers: list[int] = []
    floats: list[bytes] = []
    doubles: list[bytes] = []
    name, dtype, raw = "", 1, None
    for field, kind, value in _fields(data):
        if field == 1:
            dims += _numbers(kind, value)
        elif field == 2:
            dtype = value
        elif field == 4:
            floats.append(bytes(value))
        elif field == 10:
            doubles.append(bytes(value))
        elif field in (5, 7):
            integers += _numbers(kind, value)
        elif field == 8:
            name = bytes(value).decode()
        elif field == 9:
            raw = value
        elif field == 13:
            raise WeightsFileError(f"{name}: its values are in another file; save the model in one file")
    if dtype not in _DTYPES:
        raise WeightsFileError(f"{name}: ONNX data type {dtype} is not read; expected one of {sorted(_DTYPES)}")
    kind = np.dtype(_DTYPES[dtype])
    if raw is None:
        given: Any = np.array(integers, np.int64)
        if floats or doubles:
            given = np.frombuffer(b"".join(floats or doubles), np.float32 if floats else np.float64)
        halves = kind.itemsize == 2 and not (floats or doubles)  # int32_data holds the bits of float16 and bfloat16
        values = given.astype(np.uint16).view(kind) if halves else given.astype(kind)
    else:
        values = np.frombuffer(raw, kind) if len(raw) % kind.itemsize == 0 else np.zeros(0, kind)
    if values.size != math.prod(dims):
        raise TruncatedFileError(f"{name}: {values.size} values for shape {tuple(dims)}; download the file again")
    return name, values.reshape(dims).copy()


def read_onnx(path: Path) -> dict[str, np.ndarray]:
    """{name: array} of the initialisers."""
    try:
        data = memoryview(path.read_bytes())
        graphs = [value for field, kind, value in _fields(data) if field == 7 and kind == 2]
        tensors = [_tensor(value) for graph in graphs for field, kind, value in _fields(graph) if field == 5 and kind == 2]
    except (struct.error, UnicodeDecodeError, IndexError) as error:
        raise WeightsFileError(f"not an ONNX file: {error}") from error
    if not tensors:
        raise WeightsFileError("no initialisers; not an ONNX file, or one whose weights are in another file")
    return dict(tensors)

"""Prepared sets on the disk: what they are written as, and their records by position.

ArrayRecord is read in place. Its package does not exist for Windows; there TFDS sets are written as Parquet, which TFDS keeps
in memory, still encoded, and records of our own as a plain file. Each is read wherever its package is.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from imgrec_jax.data.files import write_whole
from imgrec_jax.data.source import digest

FORMATS = ("array_record", "parquet")


class Records(Protocol):
    """The records of a split; those of several positions at once by `__getitems__`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def __getitems__(self, indices: Sequence[int]) -> Sequence[dict[str, Any]]: ...


def record_format() -> str:
    """What this machine prepares sets as: one of FORMATS."""
    return "array_record" if importlib.util.find_spec("array_record") else "parquet"


def open_records(builder: Any, base: str, **options: Any) -> Records:
    """The records of a prepared base split; options: as `builder.as_data_source` takes them.

    Raises:
      ValueError: for a set in a format that this machine cannot read by position: names its folder and the format to write.
    """
    found = {each.value for each in builder.info.available_file_formats()}
    readable = {"parquet", record_format()}
    if not found & readable:
        raise ValueError(
            f"{builder.data_dir} is written as {' and '.join(sorted(found))}, of which this machine reads no record by its "
            f"position; prepare the set with file_format={record_format()!r}"
        )
    return builder.as_data_source(base, file_format=next(name for name in FORMATS if name in found & readable), **options)


def records_identity(builder: Any, base: str) -> str:
    """Of a prepared split: names, sizes and lengths of its files."""
    split = builder.info.splits[base]
    files = [Path(path) for path in split.filepaths]
    described = (f"{path.name}:{path.stat().st_size}" if path.exists() else path.name for path in files)
    return digest("records", (builder.info.full_name, str(split.shard_lengths), *described))


class BytesReader(Protocol):
    """Records of bytes by their positions."""

    def num_records(self) -> int: ...

    def read(self, positions: Sequence[int]) -> Sequence[bytes]: ...


class PlainReader:
    """A plain file: the records; where each begins and the last one ends, and how many there are: little-endian uint64."""

    def __init__(self, path: Path):
        self._data = np.memmap(path, np.uint8, "r")
        count = int(self._data[-8:].view("<u8")[0])
        self._starts = self._data[-8 * (count + 2) : -8].view("<u8").astype(np.int64)

    def num_records(self) -> int:
        return len(self._starts) - 1

    def read(self, positions: Sequence[int]) -> list[bytes]:
        return [self._data[self._starts[n] : self._starts[n + 1]].tobytes() for n in positions]


def count_bytes(path: Path) -> int:
    """How many records `write_bytes` wrote to this path.

    Raises:
      OSError: where the file is not there, or cannot be read now.
      ValueError: where it is damaged.
    """
    plain, packed = path.with_name(f"{path.name}.records"), path.with_name(f"{path.name}.array_record")
    with (plain if plain.exists() else packed).open("rb") as file:
        file.read(1)  # what the disk says, before a reader calls it damage
    try:
        return open_bytes(path).num_records()
    except (ValueError, RuntimeError, IndexError) as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error


def open_bytes(path: Path) -> BytesReader:
    """What `write_bytes` wrote to this path, which has no suffix."""
    plain = path.with_name(f"{path.name}.records")
    if plain.exists():
        return PlainReader(plain)
    from array_record.python.array_record_module import ArrayRecordReader

    options = "readahead_buffer_size:0,max_parallelism:0"
    return ArrayRecordReader(str(path.with_name(f"{path.name}.array_record")), options=options)


def write_bytes(path: Path, records: Iterable[bytes]) -> None:
    """Writes PATH.array_record, or PATH.records where there is no such package; the file is there when all of it is."""
    if record_format() == "array_record":
        write_whole(path.with_name(f"{path.name}.array_record"), lambda partial: _write_array_record(partial, records))
    else:
        write_whole(path.with_name(f"{path.name}.records"), lambda partial: _write_plain(partial, records))


def _write_array_record(path: Path, records: Iterable[bytes]) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    try:
        for record in records:
            writer.write(record)
    finally:
        writer.close()


def _write_plain(path: Path, records: Iterable[bytes]) -> None:
    starts = [0]
    with path.open("wb") as file:
        for record in records:
            file.write(record)
            starts.append(starts[-1] + len(record))
        file.write(np.array([*starts, len(starts) - 1], "<u8").tobytes())

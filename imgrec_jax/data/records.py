"""Prepared TFDS sets on the disk: what they are written as, and their records by position.

ArrayRecord is read in place. Its package does not exist for Windows; there sets are written as Parquet, which TFDS keeps in
memory, still encoded. Either is read wherever its package is.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, Protocol

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

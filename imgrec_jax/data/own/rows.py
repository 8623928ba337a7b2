"""Rows: a table's bytes as rows of texts, its columns by the names that people give them, and the marks of a cell.

Everything a table says is text: `007` and `NA` are names.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
from collections.abc import Collection, Iterable, Sequence

from imgrec_jax.data.images import read_regular
from imgrec_jax.data.own.listing import UNKNOWN, Reading
from imgrec_jax.data.own.stores import Store

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
FILE = ("file", "file_name", "filename", "path", "filepath", "file_path", "image", "image_path", "image_id", "img")
LABEL = ("label", "class", "class_name", "category", "target")
SPLIT = ("split", "set", "subset")
_MARKS = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0, "": UNKNOWN, "-1": UNKNOWN, "-1.0": UNKNOWN}
_MOST_TABLE_BYTES = 2**31
_ROWS_TRIED = 100  # of a table, to see what it is of
BETWEEN = "\x1f"  # names of a list
_FEW_ODD = 0.05  # of the rows of a column of marks: typing errors, and no column of something else


def rows_of(store: Store, name: str, title: str) -> Iterable[dict[str, str]]:
    """The rows of a table, as they are asked for, by lower-case column; "#" is the number of the line.

    Raises:
      ValueError: with `title`, for what is no table.
    """
    return _rows(text_of(_bytes_of(store, name), title), title)


def first_rows(store: Store, name: str) -> list[dict[str, str]]:
    """As `rows_of`, enough of them to see what a table is of."""
    return list(itertools.islice(rows_of(store, name, name), _ROWS_TRIED))


def _bytes_of(store: Store, name: str) -> bytes:
    """A file that is no image, of a folder or archive."""
    return read_regular(store.root / name, "a table", _MOST_TABLE_BYTES) if store.root.is_dir() else store.read(name)


def text_of(data: bytes, name: str) -> str:
    """A file of text: UTF-8, or UTF-16 with a byte-order mark, as spreadsheets write it.

    Raises:
      ValueError: naming the file, for anything else.
    """
    try:
        return data.decode("utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is no UTF-8 text ({error.reason} at byte {error.start}); write it as such") from error


def _rows(text: str, name: str) -> Iterable[dict[str, str]]:
    if name.lower().endswith((".jsonl", ".ndjson")):
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                try:
                    row = json.loads(line, parse_int=str, parse_float=str)
                    yield {"#": str(number)} | {str(key).strip().lower(): _as_text(value) for key, value in row.items()}
                except (ValueError, AttributeError, RecursionError) as error:
                    raise ValueError(f"{name}, line {number}: no JSON object ({error}); expected one a line") from error
        return
    head = text.partition("\n")[0]
    delimiter = "\t" if name.lower().endswith(".tsv") else max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        header = [column.strip().lower() for column in next(reader, [])]
        if twice := sorted({column for column in header if header.count(column) > 1 and column}):
            raise ValueError(f"{name} has the column {twice[0]!r} twice")
        for row in reader:
            if any(cell.strip() for cell in row):
                if len(row) != len(header):
                    raise ValueError(f"{name}, line {reader.line_num}: {len(row)} cells; the header has {len(header)}")
                yield {"#": str(reader.line_num)} | dict(zip(header, map(str.strip, row), strict=True))
    except csv.Error as error:
        raise ValueError(f"{name}, line {reader.line_num}: {error}") from error


def _as_text(value: object) -> str:
    """A list of names as one text, between which none can stand."""
    if isinstance(value, list):
        return BETWEEN + BETWEEN.join(map(_as_text, value))
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value).strip()


def names_in(text: str, separator: str) -> list[str]:
    """The names of one cell, or of a list."""
    parts = text.split(BETWEEN) if text.startswith(BETWEEN) else text.split(separator)
    return [name.strip() for name in parts if name.strip()]


def column(columns: Collection[str], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def mark(text: str, reading: Reading) -> int | None:
    """1, 0 or UNKNOWN; None for what is no mark."""
    mapped = {"": reading.empty, "-1": reading.minus_one}.get(text.removesuffix(".0"), "")
    return _MARKS.get((mapped or text).lower())


def no_mark(column: str, rows: Sequence[dict], reading: Reading) -> str:
    """Why a column tells of no label; "" where it does."""
    known = False
    for row in rows:
        found = mark(row.get(column, ""), reading)
        if found is None:
            return f"line {row['#']} has {row[column]!r}; expected 0, 1, -1 or nothing"
        known |= found != UNKNOWN
    return "" if known else "no row has 0 or 1"


def is_nearly_marked(column: str, rows: Sequence[dict], reading: Reading) -> bool:
    """Whether a column that is none of marks holds 0 and 1 but for a few rows, which are mistakes, then."""
    marks = [mark(row.get(column, ""), reading) for row in rows]
    odd = marks.count(None)
    return 0 < odd <= max(_FEW_ODD * len(marks), 1) and {0, 1} <= set(marks)

"""Rows: a table's bytes as rows of texts, its columns by the names that people give them, and the marks of a cell.

Everything a table says is text: `007` and `NA` are names.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from imgrec_jax.data.images import read_regular, text_of
from imgrec_jax.data.own.division import canonical_split
from imgrec_jax.data.own.listing import UNKNOWN, Reading
from imgrec_jax.data.own.stores import Store

JSON_LINES = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv", *JSON_LINES)
FILE = (
    "file", "file_name", "filename", "path", "filepath", "file_path", "image", "image_path", "image_id", "img", "image_name",
    "image_file", "image_index", "img_path", "img_name", "id_code", "id",
)  # fmt: skip
LABEL = ("label", "class", "class_name", "category", "target", "finding_labels")
# Of these there may be one beside columns of marks, beside LABEL, or in a table of something else beside folders of classes.
MORE_LABELS = (
    "labels", "class_label", "label_name", "category_name", "diagnosis", "dx", "breed", "species", "class_id",
    "classid", "label_id",
)  # fmt: skip
SPLIT = ("split", "set", "subset")
_MARKS = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0, "": UNKNOWN, "-1": UNKNOWN, "-1.0": UNKNOWN}
_MOST_TABLE_BYTES = 2**31
BETWEEN = "\x1f"  # names of a list
_SEPARATORS = ",; "  # that people put between names, beside the usual one
_FEW_ODD = 0.05  # of the rows of a column of marks: typing errors, and no column of something else


def rows_of(store: Store, name: str, title: str) -> Iterable[dict[str, str]]:
    """The rows of a table, as they are asked for, by lower-case column; "#" is the number of the line.

    Raises:
      ValueError: with `title`, for what is no table.
    """
    return _rows(text_of_table(bytes_of(store, name), title), title)


def bytes_of(store: Store, name: str) -> bytes:
    """A file that is no image, of a folder or archive."""
    return read_regular(store.root / name, "a table", _MOST_TABLE_BYTES) if store.root.is_dir() else store.read(name)


def text_of_table(data: bytes, name: str) -> str:
    """UTF-8, or UTF-16 with a byte-order mark, as spreadsheets write it; else ValueError with `name`."""
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return text_of(data, name, "utf-16") if wide else text_of(data, name)


def _rows(text: str, name: str) -> Iterable[dict[str, str]]:
    if name.lower().endswith(JSON_LINES):
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


def columns_called(columns: Collection[str], names: Sequence[str]) -> list[str]:
    """The columns of these names, as `Image Index` for "image_index", in the names' order; those of the very names first."""
    plain = {re.sub(r"[\s-]+", "_", column): column for column in columns}
    return list(
        dict.fromkeys([*(name for name in names if name in columns), *(plain[name] for name in names if name in plain)])
    )


def column(columns: Collection[str], names: Sequence[str]) -> str | None:
    """The first of them; None where there is none."""
    return next(iter(columns_called(columns, names)), None)


def split_by_values(columns: Sequence[str], rows: Sequence[dict]) -> str | None:
    """The one column whose cells are names of splits, training and another, whatever it is called; None where there is none."""

    def tells(key: str) -> bool:
        found: set[str | None] = set()
        for row in rows:
            if text := row.get(key, ""):
                found.add(canonical_split(text))
                if None in found:
                    return False
        return "train" in found and len(found) > 1

    named = [key for key in columns if tells(key)]
    return named[0] if len(named) == 1 else None


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


def check_marks(where: str, label: str, texts: Collection[str], reading: Reading) -> None:
    """texts: all cells of the marks of one label.

    Raises:
      ValueError: where -1 may stand for no: nothing else does, and nothing else is unknown.
    """
    other = {"", 0} & {text and mark(text, reading) for text in texts}  # what else is unknown, or no
    if not reading.minus_one and {"-1", "-1.0"} & {*texts} and not other:
        raise ValueError(
            f"{where}: {label} is 1 and -1, and never 0: -1 stands for unknown; set config.data.options.minus_one=0 if it is "
            "no, or minus_one=-1 if it is unknown"
        )


def check_names(where: str, label: str, names: Collection[str], reading: Reading) -> None:
    """names: all that a column of one label an image has.

    Raises:
      ValueError: where -1 must be a class, as there is one other; where names of several labels stand in a cell.
    """
    others = {*names} - {"", "-1", "-1.0"}
    if not reading.minus_one and {"-1", "-1.0"} & {*names} and len(others) == 1:
        raise ValueError(
            f"{where}: {label} is {others.pop()} and -1, and -1 stands for unknown: this is one class; set "
            "config.data.options.minus_one to the name of another, e.g. no"
        )
    parts = {name: names_in(name, reading.separator) for name in sorted(others) if not name.startswith(BETWEEN)}
    if several := next((name for name, found in parts.items() if len(found) > 1 and others & {*found}), None):
        raise ValueError(
            f"{where}: {label} is {several!r}, which are several labels an image: use "
            "--config=configs/image_folder.py:multi_label"
        )


def check_separator(where: str, label: str, cells: Collection[str], reading: Reading) -> None:
    """cells: all that a column of several labels an image has.

    Raises:
      ValueError: where none has the separator, and another parts them into names that several cells share.
    """
    texts = {*cells} - {"", "-1", "-1.0"}
    if texts <= set(reading.class_names):
        return  # each is one name
    if reading.separator != Reading().separator or any(reading.separator in text or BETWEEN in text for text in texts):
        return
    for other in _SEPARATORS:
        parts = Counter(name for text in texts for name in {*names_in(text, other)})
        shared = max(parts.values(), default=0) > 1
        # Spaces stand in names, too: between them they leave fewer names than there are cells.
        if shared and any(other in text for text in texts) and (len(parts) < len(texts) or not other.isspace()):
            raise ValueError(
                f"{where}: no {label} has the separator {reading.separator!r}, and {other!r} stands in "
                f"{next(text for text in sorted(texts) if other in text)!r}: set config.data.options.separator={other!r}, or "
                "to what stands in none if each is one name"
            )

"""Tables of `file,label[,split][,group]`, or of `file` and a column of 0, 1, -1 or nothing for each label, as listings."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from imgrec_jax.data.files import stamp
from imgrec_jax.data.own.division import canonical_split, group_finder, split_in
from imgrec_jax.data.own.listing import UNKNOWN, Listing, Reading
from imgrec_jax.data.own.naming import count_there, named
from imgrec_jax.data.own.rows import (
    BETWEEN,
    FILE,
    JSON_LINES,
    LABEL,
    MORE_LABELS,
    SPLIT,
    check_marks,
    check_names,
    check_separator,
    column,
    columns_called,
    is_nearly_marked,
    mark,
    names_in,
    no_mark,
    rows_of,
    split_by_values,
)
from imgrec_jax.data.own.stores import Store

_SHOWN = 20  # columns in a message
_SAMPLE = 50  # rows that tell which column names the files


class Table:
    """A table, looked at.

    Attributes:
      name, title: of the file, in its store and in messages.
      columns, rows: of texts; of a table without a column of files the first row alone.
      file, label, split: the columns of these, or None; sure: whether that of the labels is called so, and no `species`.
      marks: {column that may be of marks: why it is none, or ""}.
    """

    def __init__(self, store: Store, name: str, title: str, reading: Reading):
        """Raises ValueError for what is no table, or has no rows."""
        self._store, self.name, self.title = store, name, title
        rows = iter(rows_of(store, name, title))
        self.rows = [first] if (first := next(rows, None)) is not None else []
        if not self.rows:
            raise ValueError(f"{title} has no rows; expected a header, file,label[,split][,group], and a row an image")
        if column(self.rows[0], FILE) or name.lower().endswith(JSON_LINES):  # else it is of something else, and perhaps long
            self.rows += rows
        self.columns = [key for key in dict.fromkeys(key for row in self.rows for key in row) if key not in ("#", "")]
        self.split, sure = (column(self.columns, names) for names in (SPLIT, LABEL))
        self.split = self.split or split_by_values([key for key in self.columns if key != sure], self.rows)
        self.file, self.sure = self._naming(columns_called(self.columns, FILE)), sure is not None
        group = reading.group.lower()
        self.group = group if group in self.columns else "group" if not group and "group" in self.columns else ""
        others = [key for key in self.columns if key not in (self.file, sure, self.split, self.group, "group")]
        self.marks = {key: no_mark(key, self.rows, reading) for key in others} if self.file else {}
        self.marked = [key for key, why in self.marks.items() if not why]
        self._multi_label = reading.multi_label
        more = [key for key in columns_called(self.columns, MORE_LABELS) if key not in (self.file, self.split, self.group)]
        if reading.multi_label and self.marked:  # `species` beside them says nothing new
            more = [key for key in more if key not in self.marked and self._lists(key, reading.separator)]
        self.label = sure or next(iter(more), None)

    def _naming(self, columns: Sequence[str]) -> str | None:
        """The first of the columns whose values are files that are there, or that of most: numbers stand beside names."""
        rows = self.rows[:: max(len(self.rows) // _SAMPLE, 1)]
        found: dict[str, int] = {}
        for key in columns if len(columns) > 1 else ():
            found[key] = count_there(self._store, self._folder, [row.get(key, "") for row in rows], self._splits(rows))
            if found[key] == len(rows):
                break
        return max(found, key=found.__getitem__) if found else next(iter(columns), None)

    def _lists(self, key: str, separator: str) -> bool:
        """Whether a column lists the labels of an image."""
        cells = (row.get(key, "") for row in self.rows)
        return key == "labels" or any(len(names_in(cell, separator)) > 1 for cell in cells)

    @property
    def _folder(self) -> PurePosixPath:
        return PurePosixPath(self.name).parent

    def _splits(self, rows: Sequence[dict[str, str]]) -> list[str]:
        mine = split_in(PurePosixPath(self.name).with_suffix(""))
        return [(canonical_split(row.get(self.split, "")) if self.split else "") or mine for row in rows]

    @property
    def has_labels(self) -> bool:
        return self.label is not None or (self._multi_label and bool(self.marked))

    @functools.cached_property
    def named(self) -> list[tuple[str, str]]:
        """See `naming.named`; of each row."""
        texts = [row.get(self.file or "", "") for row in self.rows]
        return named(self._store, self._folder, texts, self._splits(self.rows))

    def why_not(self) -> str:
        """Why it tells nothing of images; "" where it has the columns."""
        columns = self.columns if len(self.columns) <= _SHOWN else [*self.columns[:_SHOWN], "..."]
        if self.file is None:
            return f"has the columns {columns}; expected one of {FILE} for the files, and a header"
        if self.has_labels:
            return ""
        marked = f". Its columns {self.marked[:5]} look like several labels an image: use " if self.marked else ""
        other = "--config=configs/image_folder.py:multi_label"
        mark = f"{marked}{other}" if marked else " (or, with image_folder.py:multi_label, a column of 0 and 1 for each label)"
        return f"has the columns {columns}; expected one of {(*LABEL, *MORE_LABELS)} for the classes{mark}"


def read_table(table: Table, store: Store, reading: Reading) -> Listing:
    """A table of `file, label[, split][, group]`, or of `file` and a column of 0, 1, -1 or nothing for each label.

    Raises:
      ValueError: for columns that are missing or make no sense.
    """
    if why := table.why_not():
        raise ValueError(f"{table.title} {why}")
    title, file, label, split, group = table.title, str(table.file), table.label, table.split, table.group
    listing = Listing(title, store)
    find_group, members, kept = group_finder(reading.group), [], []
    seen: dict[str, str] = {}
    for row, (found, wrong) in zip(table.rows, table.named, strict=True):
        where = f"line {row['#']}"
        if wrong or not row.get(file):
            listing.strays.append((f"{title}, {where}", wrong or "names no file"))
            continue
        if found in seen:
            listing.strays.append((f"{title}, {where}", f"names {row[file]} again, after {seen[found]}"))
            continue
        seen[found] = where
        said = row.get(split, "") if split else ""
        there = canonical_split(said) if said else ""
        if there is None:
            raise ValueError(f"{title}, {where}: {split}={said!r}; expected train, val or test")
        text = row.get(label, "") if label else ""
        text = "-1" if text == "-1.0" else text  # as pandas writes a column that lacks some
        one = {"": reading.empty, "-1": reading.minus_one}.get(text, text)
        if one.startswith(BETWEEN) and not reading.multi_label:
            raise ValueError(
                f"{title}, {where}: {label} is a list of {len(names_in(one, ''))}; expected one name, or use "
                "--config=configs/image_folder.py:multi_label"
            )
        member = row.get(group, "") if group else find_group(found)
        listing.add(found, one if one != "-1" else "", there, member)
        no_names = text in ("", "-1") and one in ("0", "none")
        members.append([] if no_names else None if one in ("", "-1") else names_in(one, reading.separator))
        kept.append(row)
    if reading.multi_label:
        _set_marks(listing, kept, table.marked if label is None else [], members, reading)
        if not label and (
            typed := [
                f"{column!r}: {why}" for column, why in table.marks.items() if is_nearly_marked(column, table.rows, reading)
            ]
        ):
            raise ValueError(f"{title}: of the labels {'; '.join(typed)}; correct it, or call the column file or group")
        if label and table.marked:
            listing.notes.append(f"the columns {table.marked[:5]} are no labels, beside {label!r}")
        listing.notes += [
            f"the column {column!r} is no label: {why}" for column, why in table.marks.items() if why and not label
        ]
    on_disk = store.root.is_dir()  # an archive has listed all that it has
    absent = [found for found in listing.names if found not in store.stamps]
    store.stamps.update({found: stamp(store.root / found) if on_disk else (-1, -1) for found in absent})
    return listing


def check_values(tables: Sequence[Table], reading: Reading) -> None:
    """Raises ValueError for values that cannot be meant, in the tables of one set."""
    where, label = " and ".join(table.title for table in tables), tables[0].label
    if label is None:
        for key in tables[0].marked:
            check_marks(where, key, {row.get(key, "") for table in tables for row in table.rows}, reading)
    elif not reading.multi_label:
        check_names(where, label, {row.get(table.label or "", "") for table in tables for row in table.rows}, reading)
    else:
        check_separator(where, label, {row.get(table.label or "", "") for table in tables for row in table.rows}, reading)


def _set_marks(listing: Listing, rows: list[dict], marked: list[str], members: list, reading: Reading) -> None:
    """Of several labels an image: one column each, or the names in one column."""
    if marked:
        listing.mark_names = tuple(marked)
        values = [[mark(row.get(name, ""), reading) for name in marked] for row in rows]
        listing.marks = np.array(values, np.int8).reshape(-1, len(marked))
    else:
        listing.mark_names = tuple(sorted({name for names in members if names for name in names}))
        listing.marks, listing.unnamed = np.zeros((len(rows), len(listing.mark_names)), np.int8), 0
        column = {name: n for n, name in enumerate(listing.mark_names)}
        for i, names in enumerate(members):
            if names is None:
                listing.marks[i] = UNKNOWN
            else:
                listing.marks[i, [column[name] for name in names]] = 1
    listing.labels = [""] * len(rows)

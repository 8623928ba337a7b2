"""Tables of `file,label[,split][,group]`, or of `file` and a column of 0, 1, -1 or nothing for each label, as listings."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from imgrec_jax.data.files import stamp
from imgrec_jax.data.own.division import canonical_split, group_finder
from imgrec_jax.data.own.listing import PICTURES, UNKNOWN, Listing, Reading
from imgrec_jax.data.own.rows import (
    BETWEEN,
    FILE,
    LABEL,
    SPLIT,
    column,
    is_nearly_marked,
    mark,
    names_in,
    no_mark,
    rows_of,
)
from imgrec_jax.data.own.stores import Store


def read_table(store: Store, name: str, reading: Reading, title: str) -> Listing:
    """A table of `file, label[, split][, group]`, or of `file` and a column of 0, 1, -1 or nothing for each label."""
    rows = list(rows_of(store, name, title))
    if not rows:
        raise ValueError(f"{title} has no rows; expected a header, file,label[,split][,group], and a row an image")
    columns = [column for column in dict.fromkeys(key for row in rows for key in row) if column not in ("#", "")]
    file, label, split = column(columns, FILE), column(columns, LABEL), column(columns, SPLIT)
    if file is None:
        raise ValueError(f"{title} has the columns {columns}; expected one of {FILE} for the files, and a header")
    group = (
        reading.group.lower()
        if reading.group.lower() in columns
        else "group"
        if not reading.group and "group" in columns
        else ""
    )
    others = [column for column in columns if column not in (file, label, split, group, "group")]
    odd = {column: no_mark(column, rows, reading) for column in others}
    marked = [column for column, why in odd.items() if not why]
    if label is None and not (reading.multi_label and marked):
        raise ValueError(
            f"{title} has the columns {columns}; expected one of {LABEL} for the classes"
            + (f". Its columns {marked[:5]} look like several labels an image: use --config=configs/image_folder.py:multi_label"
               if marked else " (or, with image_folder.py:multi_label, a column of 0 and 1 for each label)")
        )  # fmt: skip
    listing, folder = Listing(title, store), PurePosixPath(name).parent
    find_group, members, kept = group_finder(reading.group), [], []
    seen: dict[str, str] = {}
    for row in rows:
        found = find(store, folder, row.get(file, ""))
        where = f"line {row['#']}"
        if not row.get(file):
            listing.strays.append((f"{title}, {where}", "names no file"))
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
        _set_marks(listing, kept, marked if label is None else [], members, reading)
        if not label and (
            typed := [f"{column!r}: {why}" for column, why in odd.items() if is_nearly_marked(column, rows, reading)]
        ):
            raise ValueError(f"{title}: of the labels {'; '.join(typed)}; correct it, or call the column file or group")
        listing.notes += [f"the column {column!r} is no label: {why}" for column, why in odd.items() if why and not label]
    on_disk = store.root.is_dir()  # an archive has listed all that it has
    absent = [found for found in listing.names if found not in store.stamps]
    store.stamps.update({found: stamp(store.root / found) if on_disk else (-1, -1) for found in absent})
    return listing


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


def find(store: Store, folder: PurePosixPath, text: str) -> str:
    """The name in the store of a file that a table names: from the table's folder, or absolute; perhaps without its suffix."""
    text = text if store.root.is_dir() and Path(text).is_absolute() else str(folder / text.replace("\\", "/"))
    there = (lambda name: (store.root / name).is_file()) if store.root.is_dir() else store.stamps.__contains__
    if not text.lower().endswith(PICTURES) and not there(text):
        named = (text + spelled for suffix in PICTURES for spelled in (suffix, suffix.upper()))
        return next(filter(there, named), text)
    return text

"""What a place is read by: its folders, a table, a table of each split, an npz, or the one archive that it holds.

A folder is read by its folders: DIR/CLASS/..., or DIR/SPLIT/CLASS/... where every folder has the name of a split; or by its
table, or a table of each split: train.csv, val.csv, ... A folder that holds nothing but one folder, one archive, one table or
one npz is opened. What can be neither is a stray, and told.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from imgrec_jax.data.own import dicom
from imgrec_jax.data.own.arrays import read_arrays
from imgrec_jax.data.own.division import canonical_split, group_finder, split_in
from imgrec_jax.data.own.folders import read_folders
from imgrec_jax.data.own.listing import PICTURES, Listing, Reading, joined
from imgrec_jax.data.own.rows import FILE, LABEL, SPLIT, TABLES, column, first_rows
from imgrec_jax.data.own.stores import ARCHIVES, Store, folder_store, open_store
from imgrec_jax.data.own.tables import find, read_table

_PLAIN = Reading()


def read(root: Path, reading: Reading = _PLAIN) -> Listing:
    """The listing of a folder, a table, an npz or an archive.

    Raises:
      FileNotFoundError: where nothing is.
      ValueError: for a table without the columns, folders that may be splits or classes, a group that is no regex.
    """
    find_group = group_finder(reading.group)
    if root.is_file() and root.suffix.lower() in TABLES:
        return _by_header(read_table(folder_store(root.parent, reading.max_pixels, {}), root.name, reading, str(root)), reading)
    if root.is_file() and root.suffix.lower() == ".npz":
        return read_arrays(root, reading)
    store = open_store(root, reading.max_pixels)
    pictures = [name for name in store.stamps if name.lower().endswith(PICTURES)]
    inner = None if pictures else _only_file(store)
    if inner is not None and root.is_dir():
        return read(root / inner, reading)
    there = _tables_at_top(store)
    of_splits = _tables_of_splits(store, there, pictures, reading.multi_label)
    table = None if of_splits else _only_table(store, there, pictures, reading.multi_label)
    used = {table, *of_splits.values()}
    others = sorted(store.stamps.keys() - set(pictures) - used) if len(pictures) < len(store.stamps) else []
    if of_splits:
        listing = joined({split: read_table(store, name, reading, store.path(name)) for split, name in of_splits.items()})
    elif table:
        listing = read_table(store, table, reading, store.path(table))
    else:
        listing = read_folders(store, pictures)
        if len(there) > 1 and len(set(listing.labels)) < 2:
            raise ValueError(
                f"{root} has the tables {', '.join(there[:5])}, and its folders tell no classes; expected one table of "
                "file,label[,split], or one of each split: train.csv, val.csv, test.csv"
            )
        if reading.group:
            listing.groups = [find_group(name) for name in listing.names]
    _by_header(listing, reading)
    if others:
        listing.notes.append(f"{len(others):,} files are no images by their names, e.g. {others[0]}: passed over")
    return listing


def _by_header(listing: Listing, reading: Reading) -> Listing:
    """The listing, its groups by the headers of its DICOM files where `reading` says so and nothing else tells them."""
    if reading.group in dicom.GROUPS and not any(listing.groups):
        listing.groups = [_patient(listing.store, name, reading.group) for name in listing.names]
    return listing


def _patient(store: Store, name: str, key: str) -> str:
    """What a DICOM header says of `key`; "" for other files, and those that cannot be read, which the index tells."""
    if not dicom.is_dicom(name):
        return ""
    try:
        return str(dicom.header(store.read(name)).get(key, ""))
    except Exception:
        return ""


def _only_file(store: Store) -> str | None:
    """The one archive or npz of a folder without images."""
    whole = [name for name in store.stamps if name.lower().endswith((*ARCHIVES, ".npz"))]
    return whole[0] if len(whole) == 1 else None


def _tables_at_top(store: Store) -> list[str]:
    """The tables that lie at the top, or in the folder that everything lies in."""
    top = ""
    while len(tops := {name[len(top) :].partition("/")[0] for name in store.stamps}) == 1:
        deeper = f"{top}{next(iter(tops))}/"
        if not all(name.startswith(deeper) for name in store.stamps):
            break
        top = deeper
    return [name for name in store.stamps if name.lower().endswith(TABLES) and "/" not in name[len(top) :]]


def _tables_of_splits(store: Store, tables: Sequence[str], pictures: Sequence[str], multi_label: bool) -> dict[str, str]:
    """{split: table} where several tables are called after splits, one of them after training; {} for anything else.

    A table without labels, as a test split of a competition has it, is left out.
    """
    named: dict[str, list[str]] = {}
    for name in tables:
        stem = PurePosixPath(PurePosixPath(name).stem)
        if (split := split_in(stem)) and _labels_pictures(store, name, pictures, multi_label):
            named.setdefault(split, []).append(name)
    for split, names in named.items():  # train.csv before train_extra.csv
        named[split] = [name for name in names if canonical_split(PurePosixPath(name).stem)] or names
    if len(tables) < 2 or "train" not in named or any(len(names) > 1 for names in named.values()):
        return {}
    return {split: names[0] for split, names in named.items()}


def _labels_pictures(store: Store, table: str, pictures: Sequence[str], multi_label: bool) -> bool:
    """Whether the first rows of a table name images that are there, and something of them."""
    try:
        rows = first_rows(store, table)
    except ValueError:
        return False
    file = column(rows[0], FILE) if rows else None
    if file is None or (column(rows[0], LABEL) is None and not (multi_label and len(rows[0]) > 2)):
        return False
    folder, there = PurePosixPath(table).parent, set(pictures)
    return any(find(store, folder, row[file]) in there for row in rows)


def _only_table(store: Store, tables: Sequence[str], pictures: Sequence[str], multi_label: bool) -> str | None:
    """The one table at the top of a folder whose images lie in one folder, or whose labels the folders do not tell.

    Raises:
      ValueError: where folders tell splits, and the table other labels than they but no splits.
    """
    if len(tables) != 1:
        return None
    (table,), several = tables, len({name.rpartition("/")[0] for name in pictures}) > 1
    try:
        rows = first_rows(store, table)
    except ValueError:
        if several:  # any table may lie beside folders of classes
            return None
        raise
    file = column(rows[0], FILE) if rows else None
    if file is None or not several:
        return table if file else None
    label, there = column(rows[0], LABEL), set(pictures)
    folder = PurePosixPath(table).parent
    named = {found: row for row in rows if (found := find(store, folder, row[file])) in there}
    if not named or (label is None and not multi_label):
        return None
    if column(rows[0], (*SPLIT, "group")):
        return table
    if label and all(row.get(label) in found.split("/")[:-1] for found, row in named.items()):
        return None  # it says what the folders say
    if torn := [found for found in named if any(map(canonical_split, found.split("/")[:-1]))]:
        raise ValueError(
            f"{store.path(table)} tells the labels, but no splits, and {torn[0]} lies in a folder of one; add a column split"
        )
    return table

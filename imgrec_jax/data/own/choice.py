"""What a place is read by: its folders, a table, a table of each split, an npz, or the one archive that it holds.

A folder is read by its folders: DIR/CLASS/..., or DIR/SPLIT/CLASS/... where every folder has the name of a split; or by its
table, or a table of each split: train.csv, val.csv, ... A folder that holds nothing but one folder, one archive, one table or
one npz is opened. What can be neither is a stray, and told.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from imgrec_jax.data.own import dicom
from imgrec_jax.data.own.arrays import read_arrays
from imgrec_jax.data.own.division import canonical_split, group_finder, split_in
from imgrec_jax.data.own.folders import may_be_class, read_folders, splits_of
from imgrec_jax.data.own.listing import PICTURES, Listing, Reading, joined
from imgrec_jax.data.own.rows import TABLES
from imgrec_jax.data.own.stores import ARCHIVES, Store, folder_store, open_store
from imgrec_jax.data.own.tables import Table, check_values, read_table

_PLAIN = Reading()
EXPECTED = "expected one table of file,label[,split], or one of each split: train.csv, val.csv, test.csv"


def read(root: Path, reading: Reading = _PLAIN) -> Listing:
    """The listing of a folder, a table, an npz or an archive.

    Raises:
      FileNotFoundError: where nothing is.
      ValueError: for a table without the columns, folders that may be splits or classes, a group that is no regex.
    """
    find_group = group_finder(reading.group)
    if root.is_file() and root.suffix.lower() in TABLES:
        store = folder_store(root.parent, reading.max_pixels, {})
        return _by_header(_of_tables({"": Table(store, root.name, str(root), reading)}, store, reading), reading)
    if root.is_file() and root.suffix.lower() == ".npz":
        return read_arrays(root, reading)
    store = open_store(root, reading.max_pixels)
    pictures = [name for name in store.stamps if name.lower().endswith(PICTURES)]
    inner = None if pictures else _only_file(store)
    if inner is not None and root.is_dir():
        return read(root / inner, reading)
    looked = _Looked(store, pictures, reading)
    tables = looked.of_splits() or looked.alone()
    used = {table.name for table in tables.values()}
    others = sorted(store.stamps.keys() - set(pictures) - used) if len(pictures) < len(store.stamps) else []
    if tables:
        listing = _of_tables(tables, store, reading)
        if unnamed := sorted(set(pictures) - set(map(looked.inside, listing.names))):
            listing.notes.append(f"{len(unnamed):,} images are in no row of {listing.title}, e.g. {unnamed[0]}: passed over")
    else:
        listing = read_folders(store, pictures, looked.unused())
        told = set(listing.labels)
        if len(told) < 2 and (len(looked.names) > 1 or (looked.wrong and not any(map(may_be_class, told)))):
            raise ValueError(
                f"{root} has the tables {', '.join(looked.names[:5])}, and its folders tell no classes; {EXPECTED}"
                f"{'; '.join(['', *looked.wrong.values()])}"
            )
        if reading.group:
            listing.groups = [find_group(name) for name in listing.names]
    _by_header(listing, reading)
    if others:
        listing.notes.append(f"{len(others):,} files are no images by their names, e.g. {others[0]}: passed over")
    return listing


def _of_tables(tables: dict[str, Table], store: Store, reading: Reading) -> Listing:
    """One listing of {split: table}; "" is what the rows say."""
    check_values(list(tables.values()), reading)
    parts = {split: read_table(table, store, reading) for split, table in tables.items()}
    return joined(parts) if len(parts) > 1 or "" not in parts else parts[""]


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


class _Looked:
    """The tables of a folder or archive that may tell of its images, looked at."""

    def __init__(self, store: Store, pictures: Sequence[str], reading: Reading):
        self._store, self._pictures = store, frozenset(pictures)
        self._several = len({name.rpartition("/")[0] for name in pictures}) > 1  # folders
        self._top, self.names = _tables_of(store)
        self._on_disk = store.root.is_dir()
        self._tables: dict[str, Table] = {}
        self._named: dict[str, list[tuple[dict[str, str], str]]] = {}
        self.wrong: dict[str, str] = {}  # {table that cannot be read, or tells nothing of the images: why}
        for name in self.names:
            try:
                table = self._tables[name] = Table(store, name, store.path(name), reading)
            except ValueError as error:
                self.wrong[name] = str(error)
                continue
            if why := table.why_not() or self._names_nothing(table):
                self.wrong[name] = f"{table.title} {why}"
        self._good = [table for table in self._tables.values() if table.name not in self.wrong]

    def _names_nothing(self, table: Table) -> str:
        """Why a table with the columns is of no image here; "" where it is of some."""
        absent = [row.get(str(table.file), "") for row, name in self._pairs(table) if name not in self._pictures]
        least = 1.0
        if table.file == "id":  # numbers, as of classes, are found by chance, too
            least = max(len(table.rows) / 2, 0 if self._split(table.name) else len(self._pictures) / 10)
        if (found := len(table.rows) - len(absent)) >= least:
            return ""
        odd = (
            f"names files that are not there, e.g. {absent[0]}" if absent else f"names {found} of {len(self._pictures)} images"
        )
        return next((wrong for _, wrong in table.named if wrong), odd)

    def inside(self, name: str) -> str:
        """A name as the store lists it, where a table's is absolute or leaves its folder."""
        if not self._on_disk or not (".." in name or os.path.isabs(name)):
            return name
        return Path(os.path.relpath(self._store.root / name, self._store.root)).as_posix()

    def _pairs(self, table: Table) -> list[tuple[dict[str, str], str]]:
        """(row, the file that it names)."""
        if table.name not in self._named:
            names = map(self.inside, [name for name, _ in table.named])
            self._named[table.name] = list(zip(table.rows, names, strict=True))
        return self._named[table.name]

    def _split(self, name: str) -> str:
        return split_in(PurePosixPath(name[len(self._top) :]).with_suffix(""))

    def of_splits(self) -> dict[str, Table]:
        """{split: table} where several tables are called after splits, one of them after training; {} for anything else.

        A table without labels, as a test split of a competition has it, is left out.

        Raises:
          ValueError: for one of another split that cannot be used: its images would be none, and others cut in their place.
        """
        of: dict[str, list[Table]] = {}
        for table in self._good:
            if split := self._split(table.name):
                of.setdefault(split, []).append(table)
        for name, why in self.wrong.items() if of else ():
            unlabelled = name in self._tables and not self._tables[name].has_labels
            if (split := self._split(name)) and split not in of and not (split == "test" and unlabelled):
                beside = next(iter(of.values()))[0].title
                raise ValueError(f"{why}; by its name it is a split, as {beside}: correct it, or move it away")
        for split, tables in of.items():  # train.csv before train_extra.csv
            of[split] = [table for table in tables if canonical_split(PurePosixPath(table.name).stem)] or tables
        if len(self.names) < 2 or "train" not in of or any(len(tables) > 1 for tables in of.values()):
            return {}
        return {split: tables[0] for split, tables in of.items()}

    def alone(self) -> dict[str, Table]:
        """{"": the one table} of images in one folder, or whose labels the folders do not tell; {} for none.

        Raises:
          ValueError: where folders tell splits, and the table other labels than they but no splits; for several such tables.
        """
        if len(self.names) == 1 and not self._several:
            if not self._tables:
                raise ValueError(self.wrong[self.names[0]])
            table = next(iter(self._tables.values()))
            return {"": table} if table.file else {}
        telling = [table for table in self._good if not self._several or not self._agrees(table)]
        if len(telling) > 1:
            raise ValueError(
                f"{self._store.root} has the tables {', '.join(t.name for t in telling[:5])}, each with labels of its own; "
                f"{EXPECTED}; or give the one that is meant as config.data.manual_dir"
            )
        for table in telling if self._several else ():
            if not _tells_more(table) and (torn := self._torn(table)):
                raise ValueError(
                    f"{table.title} tells the labels, but no splits, and {torn} lies in a folder of one; add a column split"
                )
        return {"": telling[0]} if telling else {}

    def _torn(self, table: Table) -> str:
        """The first of a table's files in the folder of a split, where there are several or these hold folders; "" for none."""
        splits = splits_of({name[len(self._top) :].partition("/")[0] for name in self._pictures})
        of = lambda folder: canonical_split(folder) or splits.get(folder)  # noqa: E731
        names = [name for _, name in self._pairs(table) if name in self._pictures]
        inside = {name: found for name in names if (found := set(map(of, name.split("/")[:-1])) - {None})}
        alone = len(set().union(*inside.values())) < 2 and all(of(name.split("/")[-2]) for name in inside)
        return "" if alone else next(iter(inside))

    def _agrees(self, table: Table) -> bool:
        """Whether a table says what the folders say, and no more."""
        if _tells_more(table) or table.label is None:
            return False
        pairs = [(row.get(table.label), name) for row, name in self._pairs(table) if name in self._pictures]
        return all(label in name.split("/")[:-1] for label, name in pairs)

    def unused(self) -> str:
        """Why a table that may tell of the images is passed over; "" where there is none."""
        of_files = [why for name, why in self.wrong.items() if name not in self._tables or self._tables[name].file]
        return next(iter(of_files or (self.wrong.values() if len(self.wrong) > 1 else ())), "")


def _tells_more(table: Table) -> bool:
    """Than labels."""
    return bool(table.split or table.group or "group" in table.columns)


def _tables_of(store: Store) -> tuple[str, list[str]]:
    """(the folder that everything lies in, the tables in it; or those called metadata in folders of splits there)."""
    top = ""
    while len(tops := {name[len(top) :].partition("/")[0] for name in store.stamps}) == 1:
        deeper = f"{top}{next(iter(tops))}/"
        if not all(name.startswith(deeper) for name in store.stamps):
            break
        top = deeper
    # "submission": the form of a competition's answers
    every = [n for n in store.stamps if n.lower().endswith(TABLES) and "submission" not in n.rpartition("/")[2].lower()]
    at_top = [name for name in every if "/" not in name[len(top) :]]
    inner = [name for name in every if name[len(top) :].count("/") == 1 and PurePosixPath(name).stem.lower() == "metadata"]
    if at_top or not all(split_in(PurePosixPath(name[len(top) :]).parent) for name in inner):
        return top, at_top
    return top, inner

"""What a place is read by: its folders, a table, a table of each split, an npz, or the one archive that it holds.

A folder is read by its folders: DIR/CLASS/..., or DIR/SPLIT/CLASS/... where every folder has the name of a split; or by its
table, or a table of each split: train.csv, val.csv, ... A folder that holds nothing but one folder, one archive, one table or
one npz is opened. What can be neither is a stray, and told.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Sequence, Set
from pathlib import Path, PurePosixPath

from imgrec_jax.data.own import dicom
from imgrec_jax.data.own.arrays import read_arrays
from imgrec_jax.data.own.division import called_after, canonical_split, group_finder, split_in, splits_of, without_split
from imgrec_jax.data.own.folders import are_alike, may_be_class, read_folders
from imgrec_jax.data.own.listing import PICTURES, Listing, Reading, joined
from imgrec_jax.data.own.lists import by_lists
from imgrec_jax.data.own.rows import TABLES
from imgrec_jax.data.own.stores import ARCHIVES, Store, folder_store, open_store
from imgrec_jax.data.own.tables import Table, check_values, read_table

_PLAIN = Reading()
_INNER_TABLES = ("metadata", "_classes")  # in the folder of a split
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
        listing.notes += looked.overruled(tables)
        if unnamed := sorted(set(pictures) - set(map(looked.inside, listing.names))):
            listing.notes.append(f"{len(unnamed):,} images are in no row of {listing.title}, e.g. {unnamed[0]}: passed over")
    else:
        listing = looked.by_folders or read_folders(store, pictures, looked.unused())
        told = set(listing.labels)
        if listing.doubt and not told <= set(reading.class_names):
            raise ValueError(listing.doubt)
        if len(told) < 2 and (len(looked.names) > 1 or (looked.wrong and not any(map(may_be_class, told)))):
            raise ValueError(
                f"{root} has the tables {', '.join(looked.names[:5])}, and its folders tell no classes; {EXPECTED}"
                f"{'; '.join(['', *looked.wrong.values()])}"
            )
        if reading.group:
            listing.groups = [find_group(name) for name in listing.names]
    listing.notes += [*looked.notes, *looked.unlabelled()]
    _by_header(listing, reading)
    listing, lists = by_lists(listing, pictures, looked.lists)
    others = [name for name in others if name not in lists]
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
        self._store, self._pictures, self._pictures_in_order = store, frozenset(pictures), pictures
        self._multi_label = reading.multi_label
        self._several = len({name.rpartition("/")[0] for name in pictures}) > 1  # folders
        self._top, self.names = _tables_of(store)
        self._on_disk = store.root.is_dir()
        self._tables: dict[str, Table] = {}
        self._named: dict[str, list[tuple[dict[str, str], str]]] = {}
        self._said: dict[str, str] = {}
        self.wrong: dict[str, str] = {}  # {table that cannot be read, or tells nothing of the images: why}
        self.notes: list[str] = []  # on tables that are passed over
        self.lists: dict[str, dict[str, Set[str]]] = {}  # {split: {table: images}} of tables that tell splits alone
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
        of = called_after({t: self._split(t.name) for t in self._good}, lambda t: PurePosixPath(t.name).stem)
        alike = {without_split(table.name) for tables in of.values() for table in tables}
        others = 0
        for name, why in self.wrong.items() if of else ():
            unlabelled = name in self._tables and not self._tables[name].has_labels
            if not (split := self._split(name)) or split in of or (split == "test" and unlabelled):
                continue
            of_images = name in self._tables and self._is_of_images(name)
            if not (canonical_split(PurePosixPath(name).stem) or of_images or without_split(name) in alike):
                self.notes.append(f"{self._store.path(name)} is no table of images: passed over")  # but a log, say
                others += 1
                continue
            beside = next(iter(of.values()))[0].title
            raise ValueError(f"{why}; by its name it is a split, as {beside}: correct it, or move it away")
        if len(self.names) - others < 2 or "train" not in of or any(len(tables) > 1 for tables in of.values()):
            return {}
        said = {self._says(tables[0]) for tables in of.values()}
        if said == {"same"} and self._classes and not any(split for _, split in self._classes.values()):
            for split, (table, *_) in of.items():  # they tell splits alone
                self.lists[split] = {table.name: {name for _, name in self._pairs(table)} & self._pictures}
            return {}
        if "more" not in said:
            return {}
        taken = {split: tables[0] for split, tables in of.items()}
        unread = [table for table in self._good if self._split(table.name) in taken and table not in taken.values()]
        self.notes += [f"{t.title} is not read, beside {taken[self._split(t.name)].title}" for t in unread]
        return taken

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
        telling = [table for table in self._good if self._says(table) == "more"]
        if len(telling) > 1 and self._classes:
            self.notes += map(_passed_over, telling)
            telling = []
        if len(telling) > 1:
            raise ValueError(
                f"{self._store.root} has the tables {', '.join(t.name for t in telling[:5])}, each with labels of its own; "
                f"{EXPECTED}; or give the one that is meant as config.data.manual_dir"
            )
        if not telling:
            self.notes += [_passed_over(table) for table in self._good if self._says(table) == "other"]
        for table in telling if self._several else ():
            if not _tells_more(table) and (torn := self._torn(table)):
                raise ValueError(
                    f"{table.title} tells the labels, but no splits, and {torn} lies in a folder of one; add a column split"
                )
        return {"": telling[0]} if telling else {}

    def _torn(self, table: Table) -> str:
        """The first of a table's files in the folder of a split, where there are several or these hold folders; "" for none."""
        splits = splits_of({name[len(self._top) :].partition("/")[0] for name in self._pictures})
        of = lambda folder: canonical_split(folder) or splits.get(folder) or None  # noqa: E731
        names = [name for _, name in self._pairs(table) if name in self._pictures]
        inside = {name: found for name in names if (found := set(map(of, name.split("/")[:-1])) - {None})}
        alone = len(set().union(*inside.values())) < 2 and all(of(name.split("/")[-2]) for name in inside)
        return "" if alone else next(iter(inside))

    @functools.cached_property
    def by_folders(self) -> Listing | None:
        """What the folders tell; None where they tell no classes, and this is asked of a table."""
        if not self._several or not self._good:
            return None
        try:
            return read_folders(self._store, self._pictures_in_order, self.unused())
        except ValueError:  # they are parts, or splits of no classes
            return None

    @functools.cached_property
    def _classes(self) -> dict[str, tuple[str, str]]:
        """{file: (class, split)} where folders tell several classes by names, and not by numbers; else {}."""
        listing = self.by_folders
        labels = set(listing.labels) if listing else set()
        if listing is None or len(labels) < 2 or are_alike(labels) or not all(map(may_be_class, labels)):
            return {}
        return dict(zip(listing.names, zip(listing.labels, listing.splits, strict=True), strict=True))

    def _says(self, table: Table) -> str:
        """Of a table beside the folders: "same" as they; "other", which does not count beside the classes that they tell; or
        "more", which does.

        Other names of the same classes, one for each, say the same. Where folders tell splits, too, or the column is called
        `breed` and not `label`, their classes count; splits and groups are more.
        """
        if table.name not in self._said:
            self._said[table.name] = self._compared(table)
        return self._said[table.name]

    def _compared(self, table: Table) -> str:
        """See `_says`."""
        if table.label is None or self._multi_label or not self._several:
            return "more"
        rows = [(row, name) for row, name in self._pairs(table) if name in self._pictures]
        if table.group or "group" in table.columns:
            return "more"
        told = self._classes if all(name in self._classes for _, name in rows) else {}
        unsure = self.by_folders is not None and bool(self.by_folders.doubt)
        if table.split:
            given = {name: (canonical_split(row.get(table.split, "")) or "") for row, name in rows}
            if not told or any(told[name][1] != split for name, split in given.items()):
                return "more"
        if all(row.get(table.label) in name.split("/")[:-1] for row, name in rows):
            return "more" if unsure else "same"  # it says which of the folders are the classes
        if not told:
            return "more"
        pairs = {(row.get(table.label, ""), told[name][0]) for row, name in rows}
        if len(pairs) == len({label for label, _ in pairs}) == len({own for _, own in pairs}):
            return "same"
        # Folders of sites: each holds several labels, and each label lies in several.
        labels, folders = (Counter(pair[n] for pair in pairs) for n in (0, 1))
        crossing = min(labels.values()) > 1 and min(folders.values()) > 1
        return "more" if (table.sure or crossing) and not any(split for _, split in told.values()) else "other"

    def overruled(self, tables: dict[str, Table]) -> list[str]:
        """A line where folders tell classes, and the tables that are read say others."""
        if self._multi_label or not self._classes:
            return []
        said = [(name, row.get(table.label or "", "")) for table in tables.values() for row, name in self._pairs(table)]
        odd = [(name, label) for name, label in said if name in self._classes and self._classes[name][0] != label]
        if not odd:
            return []
        title, (name, label) = " and ".join(table.title for table in tables.values()), odd[0]
        return [
            f"{len(odd):,} images are of another class in {title} than by their folders, e.g. {name} is {label!r}: the table "
            "counts; move it away to go by the folders"
        ]

    def unused(self) -> str:
        """Why a table that may tell of the images is passed over; "" where there is none."""
        return next((why for name, why in self.wrong.items() if name not in self._tables or self._is_of_images(name)), "")

    def unlabelled(self) -> list[str]:
        """Lines on tables that name images here, and have no column that is known for their labels."""
        of_images = [name for name in self.wrong if name in self._tables and not self._tables[name].has_labels]
        return [
            f"{self._tables[name].title} names images, and none of its columns {self._tables[name].columns[:5]} is "
            "known as that of the labels: passed over"
            for name in of_images
            if self._tables[name].file and self._is_of_images(name)
        ]

    def _is_of_images(self, name: str) -> bool:
        """Whether a table has the columns, or names images here without their labels."""
        table = self._tables[name]
        if table.file is None or table.has_labels:
            return table.file is not None
        return any(wrong or self.inside(file) in self._pictures for file, wrong in table.named)


def _passed_over(table: Table) -> str:
    return (
        f"{table.title} has a column {table.label!r}, and the folders tell classes: passed over; give it as "
        "config.data.manual_dir to go by it"
    )


def _tells_more(table: Table) -> bool:
    """Than labels."""
    return bool(table.split or table.group or "group" in table.columns)


def _tables_of(store: Store) -> tuple[str, list[str]]:
    """(the folder that everything lies in, the tables in it; or those called metadata, or as Roboflow does, in folders of
    splits there)."""
    top = ""
    while len(tops := {name[len(top) :].partition("/")[0] for name in store.stamps}) == 1:
        deeper = f"{top}{next(iter(tops))}/"
        if not all(name.startswith(deeper) for name in store.stamps):
            break
        top = deeper
    # "submission": the form of a competition's answers
    every = [n for n in store.stamps if n.lower().endswith(TABLES) and "submission" not in n.rpartition("/")[2].lower()]
    at_top = [name for name in every if "/" not in name[len(top) :]]
    inner = [name for name in every if name[len(top) :].count("/") == 1 and PurePosixPath(name).stem.lower() in _INNER_TABLES]
    if at_top or not all(split_in(PurePosixPath(name[len(top) :]).parent) for name in inner):
        return top, at_top
    return top, inner

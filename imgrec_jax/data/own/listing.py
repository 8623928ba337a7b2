"""Listings: which images a folder, table or archive names, and what it says of each: class or labels, split, group.

A folder is read by its folders: DIR/CLASS/..., or DIR/SPLIT/CLASS/... where every folder has the name of a split; or by its
table, or a table of each split: train.csv, val.csv, ... A folder that holds nothing but one folder, one archive, one table or
one npz is opened. Everything a table says is text: `007` and `NA` are names. What can be neither is a stray, and told.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from imgrec_jax.data.files import IMAGES, stamp
from imgrec_jax.data.images import MAX_PIXELS, read_regular
from imgrec_jax.data.own import dicom
from imgrec_jax.data.own.division import canonical_split, group_finder, split_in
from imgrec_jax.data.own.stores import ARCHIVES, Store, folder_store, open_store

PICTURES = (*IMAGES, ".jp2", ".avif", ".jpe", ".jfif", ".ppm", ".pgm", *dicom.SUFFIXES)
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
UNKNOWN = -1  # of a mark: neither yes (1) nor no (0)
_FILE = ("file", "file_name", "filename", "path", "filepath", "file_path", "image", "image_path", "image_id", "img")
_LABEL = ("label", "class", "class_name", "category", "target")
_SPLIT = ("split", "set", "subset")
_MARKS = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0, "": UNKNOWN, "-1": UNKNOWN, "-1.0": UNKNOWN}
_MOST_TABLE_BYTES = 2**31
_ROWS_TRIED = 100  # of a table, to see what it is of
_BETWEEN = "\x1f"  # names of a list
_FEW_ODD = 0.05  # of the rows of a column of marks: typing errors, and no column of something else


class Reading(NamedTuple):
    """How a listing is to be read.

    Attributes:
      group: a regex over an image's path, the name of a table's column, or for DICOM files "PatientID", "StudyInstanceUID" or
        "SeriesInstanceUID"; "" takes the column `group` where there is one.
      multi_label: several labels an image: columns of 0 and 1, or names in one column with `separator` between them.
      empty, minus_one: what an empty label, and one of -1, stands for: "" is unknown; else a class, or "0" or "1" of a mark.
      separator: of names in one column.
      max_pixels: of an image.
    """

    group: str = ""
    multi_label: bool = False
    empty: str = ""
    minus_one: str = ""
    separator: str = "|"
    max_pixels: int = MAX_PIXELS


_PLAIN = Reading()


@dataclass
class Listing:
    """Images, and what is said of each.

    Attributes:
      title: where it was found, for messages.
      store: their files.
      names: of the files; labels: names of the classes, "" unknown; splits: "train", ... or ""; groups: "" for none.
      marks: int8 [N, K] 1, 0 or UNKNOWN of several labels an image, whose names are `mark_names`; None for one label an image.
      unnamed: the mark of any other label: 0 where every image lists all that it has.
      strays: (file, what is wrong with it) of what is listed but can be no example.
      notes: lines on what was passed over.
      pixels: for what comes as arrays, the image of each name: uint8, uint16 or float [H, W] or [H, W, C].
    """

    title: str
    store: Store
    names: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    marks: np.ndarray | None = None
    mark_names: tuple[str, ...] = ()
    unnamed: int = UNKNOWN
    strays: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pixels: list[np.ndarray] | None = None

    def add(self, name: str, label: str, split: str = "", group: str = "") -> None:
        self.names.append(name)
        self.labels.append(label)
        self.splits.append(split)
        self.groups.append(group)

    def taken(self, keep: np.ndarray) -> Listing:
        """Those where bool [N] `keep` says so."""
        if keep.all():
            return self
        at = np.flatnonzero(keep).tolist()
        lists = {key: [getattr(self, key)[i] for i in at] for key in ("names", "labels", "splits", "groups")}
        marks = None if self.marks is None else self.marks[at]
        pixels = None if self.pixels is None else [self.pixels[i] for i in at]
        return Listing(self.title, self.store, **lists, marks=marks, mark_names=self.mark_names,
                       unnamed=self.unnamed, strays=self.strays, notes=self.notes, pixels=pixels)  # fmt: skip


def read(root: Path, reading: Reading = _PLAIN) -> Listing:
    """The listing of a folder, a table, an npz or an archive.

    Raises:
      FileNotFoundError: where nothing is.
      ValueError: for a table without the columns, folders that may be splits or classes, a group that is no regex.
    """
    find_group = group_finder(reading.group)
    if root.is_file() and root.suffix.lower() in TABLES:
        return _by_header(_table(folder_store(root.parent, reading.max_pixels, {}), root.name, reading, str(root)), reading)
    if root.is_file() and root.suffix.lower() == ".npz":
        return _arrays(root, reading)
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
        listing = _joined({split: _table(store, name, reading, store.path(name)) for split, name in of_splits.items()})
    elif table:
        listing = _table(store, table, reading, store.path(table))
    else:
        listing = _folders(store, pictures)
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
        rows = list(itertools.islice(_rows(_text(_bytes_of(store, table), table), table), _ROWS_TRIED))
    except ValueError:
        return False
    file = _column(rows[0], _FILE) if rows else None
    if file is None or (_column(rows[0], _LABEL) is None and not (multi_label and len(rows[0]) > 2)):
        return False
    folder, there = PurePosixPath(table).parent, set(pictures)
    return any(_find(store, folder, row[file]) in there for row in rows)


def _joined(parts: dict[str, Listing]) -> Listing:
    """One listing of one of each split; what a row says of its split counts."""
    first, *_ = parts.values()
    joined = Listing(" and ".join(part.title for part in parts.values()), first.store)
    for split, part in parts.items():
        joined.names += part.names
        joined.labels += part.labels
        joined.groups += part.groups
        joined.splits += [said or split for said in part.splits]
        joined.strays += part.strays
        joined.notes += part.notes
    if first.marks is not None:
        joined.mark_names = tuple(dict.fromkeys(name for part in parts.values() for name in part.mark_names))
        joined.unnamed, rows = first.unnamed, []
        for part in parts.values():
            marks = np.full((len(part.names), len(joined.mark_names)), part.unnamed, np.int8)
            if part.marks is not None:
                marks[:, [joined.mark_names.index(name) for name in part.mark_names]] = part.marks
            rows.append(marks)
        joined.marks = np.concatenate(rows)
    return joined


def _only_table(store: Store, tables: Sequence[str], pictures: Sequence[str], multi_label: bool) -> str | None:
    """The one table at the top of a folder whose images lie in one folder, or whose labels the folders do not tell.

    Raises:
      ValueError: where folders tell splits, and the table other labels than they but no splits.
    """
    if len(tables) != 1:
        return None
    (table,), several = tables, len({name.rpartition("/")[0] for name in pictures}) > 1
    try:
        rows = list(itertools.islice(_rows(_text(_bytes_of(store, table), table), table), _ROWS_TRIED))
    except ValueError:
        if several:  # any table may lie beside folders of classes
            return None
        raise
    file = _column(rows[0], _FILE) if rows else None
    if file is None or not several:
        return table if file else None
    label, there = _column(rows[0], _LABEL), set(pictures)
    folder = PurePosixPath(table).parent
    named = {found: row for row in rows if (found := _find(store, folder, row[file])) in there}
    if not named or (label is None and not multi_label):
        return None
    if _column(rows[0], (*_SPLIT, "group")):
        return table
    if label and all(row.get(label) in found.split("/")[:-1] for found, row in named.items()):
        return None  # it says what the folders say
    if torn := [found for found in named if any(map(canonical_split, found.split("/")[:-1]))]:
        raise ValueError(
            f"{store.path(table)} tells the labels, but no splits, and {torn[0]} lies in a folder of one; add a column split"
        )
    return table


def _bytes_of(store: Store, name: str) -> bytes:
    """A file that is no image, of a folder or archive."""
    return read_regular(store.root / name, "a table", _MOST_TABLE_BYTES) if store.root.is_dir() else store.read(name)


def _folders(store: Store, pictures: Sequence[str]) -> Listing:
    """DIR/CLASS/... or DIR/SPLIT/CLASS/..."""
    above = [name.rpartition("/")[0] for name in pictures]
    there = set(above) if len(above) == len(store.stamps) else {name.rpartition("/")[0] for name in store.stamps}
    every = {folder: tuple(folder.split("/")) if folder else () for folder in there}
    _refuse_other_kinds(store, {part.lower() for parts in every.values() for part in parts})
    with_images = {folder: every[folder] for folder in above}
    holders = list(with_images.values())
    depth = 0
    while (
        len({parts[: depth + 1] for parts in holders}) == 1 and min(map(len, holders)) > depth and _deeper(holders, depth + 1)
    ):
        depth += 1  # a folder that holds one folder only
    tops = sorted({parts[depth] for parts in holders if len(parts) > depth})
    splits = {top: canonical_split(top) for top in tops}
    listing = Listing(str(store.root), store)
    named = [top for top in tops if splits[top]]
    holding = {p[depth] for p in holders if len(p) > depth + 1 and splits[p[depth]]}  # folders that may be classes
    as_splits = bool(named) and len(named) == len(tops) and ("train" in splits.values() or bool(holding))
    if not as_splits and (holding or ("train" in splits.values() and len(named) > 1)):
        others = [top for top in tops if not splits[top]]
        raise ValueError(
            f"{store.root} has folders {', '.join(named)}, which are splits, beside {', '.join(others[:5])}"
            f"{', ...' if len(others) > 5 else ''}, which are none; move these away, or rename them if all are classes"
        )
    at = depth + as_splits
    if as_splits:  # every split may hold one folder around its classes
        while len({p[at : at + 1] for p in holders if len(p) >= at}) == 1 and all(len(p) > at + 1 for p in holders):
            at += 1
    split_of = {top: splits[top] or "" if as_splits else "" for top in tops}
    place = {folder: (parts[at], split_of[parts[depth]]) for folder, parts in with_images.items() if len(parts) > at}
    if len(place) < len(with_images):
        pairs = list(zip(pictures, above, strict=True))
        listing.strays = [(name, "lies in no folder of a class") for name, folder in pairs if folder not in place]
        pictures, above = ([pair[n] for pair in pairs if pair[1] in place] for n in (0, 1))
    listing.names = list(pictures)
    listing.labels, listing.splits = ([place[folder][n] for folder in above] for n in (0, 1))
    listing.groups = [""] * len(above)
    held = {parts[: at + 1] for parts in holders if len(parts) > at}
    empty = {parts[: at + 1] for parts in every.values() if len(parts) > at} - held
    empty = {f for f in empty if f[:depth] == (holders[0][:depth] if holders else ())}
    if store.root.is_dir():
        empty |= _without_files(store, held, depth, at, tops if as_splits else [""])
    for parts in sorted(empty):
        if len(parts) == at + 1 and (not as_splits or parts[depth] in splits):
            listing.notes.append(f"{'/'.join(parts)} has no images: no class")
    return listing


def _deeper(folders: Sequence[tuple[str, ...]], depth: int) -> bool:
    return any(len(parts) > depth for parts in folders)


def _refuse_other_kinds(store: Store, names: Collection[str]) -> None:
    """Raises ValueError for folders, of these lower-case names, of masks or boxes, whose folders are no classes."""
    for parts, texts, config in (
        ({"images", "masks"}, False, "own_segmentation"),
        ({"jpegimages", "annotations"}, False, "own_detection"),
        ({"images", "labels"}, True, "own_detection"),
    ):
        if parts <= set(names) and (not texts or any(map(_is_label_text, store.stamps))):
            raise ValueError(
                f"{store.root} has folders {' and '.join(sorted(parts))}, which are no classes; it looks like data of "
                f"--config=configs/{config}.py"
            )


def _is_label_text(name: str) -> bool:
    """Of YOLO: labels/.../NAME.txt."""
    return name.lower().endswith(".txt") and "labels" in name.lower().split("/")[:-1]


def _without_files(store: Store, held: set, depth: int, at: int, tops: Sequence[str]) -> set[tuple[str, ...]]:
    """Folders where classes lie that hold no file at all; archives and stores do not list them."""
    prefix = next(iter(held))[:depth] if held else ()
    found = set()
    for top in tops:
        above = (*prefix, top) if top else prefix
        folder = store.root.joinpath(*above)
        if len(above) != at or not folder.is_dir():
            continue
        names = [entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__MACOSX"))]
        found |= {(*above, name) for name in names} - held
    return found


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is no UTF-8 text ({error.reason} at byte {error.start}); write it as such") from error


def _rows(text: str, name: str) -> Iterable[dict[str, str]]:
    """The rows of a table as texts, by lower-case column; "#" is the number of the line."""
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
        return _BETWEEN + _BETWEEN.join(map(_as_text, value))
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value).strip()


def _names_in(text: str, separator: str) -> list[str]:
    """The names of one cell, or of a list."""
    parts = text.split(_BETWEEN) if text.startswith(_BETWEEN) else text.split(separator)
    return [name.strip() for name in parts if name.strip()]


def _column(columns: Collection[str], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _table(store: Store, name: str, reading: Reading, title: str) -> Listing:
    """A table of `file, label[, split][, group]`, or of `file` and a column of 0, 1, -1 or nothing for each label."""
    rows = list(_rows(_text(_bytes_of(store, name), title), title))
    if not rows:
        raise ValueError(f"{title} has no rows; expected a header, file,label[,split][,group], and a row an image")
    columns = [column for column in dict.fromkeys(key for row in rows for key in row) if column not in ("#", "")]
    file, label, split = _column(columns, _FILE), _column(columns, _LABEL), _column(columns, _SPLIT)
    if file is None:
        raise ValueError(f"{title} has the columns {columns}; expected one of {_FILE} for the files, and a header")
    group = (
        reading.group.lower()
        if reading.group.lower() in columns
        else "group"
        if not reading.group and "group" in columns
        else ""
    )
    others = [column for column in columns if column not in (file, label, split, group, "group")]
    odd = {column: _no_mark(column, rows, reading) for column in others}
    marked = [column for column, why in odd.items() if not why]
    if label is None and not (reading.multi_label and marked):
        raise ValueError(
            f"{title} has the columns {columns}; expected one of {_LABEL} for the classes"
            + (f". Its columns {marked[:5]} look like several labels an image: use --config=configs/image_folder.py:multi_label"
               if marked else " (or, with image_folder.py:multi_label, a column of 0 and 1 for each label)")
        )  # fmt: skip
    listing, folder = Listing(title, store), PurePosixPath(name).parent
    find_group, members, kept = group_finder(reading.group), [], []
    seen: dict[str, str] = {}
    for row in rows:
        found = _find(store, folder, row.get(file, ""))
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
        if one.startswith(_BETWEEN) and not reading.multi_label:
            raise ValueError(
                f"{title}, {where}: {label} is a list of {len(_names_in(one, ''))}; expected one name, or use "
                "--config=configs/image_folder.py:multi_label"
            )
        member = row.get(group, "") if group else find_group(found)
        listing.add(found, one if one != "-1" else "", there, member)
        no_names = text in ("", "-1") and one in ("0", "none")
        members.append([] if no_names else None if one in ("", "-1") else _names_in(one, reading.separator))
        kept.append(row)
    if reading.multi_label:
        _set_marks(listing, kept, marked if label is None else [], members, reading)
        if not label and (
            typed := [f"{column!r}: {why}" for column, why in odd.items() if _is_nearly_marked(column, rows, reading)]
        ):
            raise ValueError(f"{title}: of the labels {'; '.join(typed)}; correct it, or call the column file or group")
        listing.notes += [f"the column {column!r} is no label: {why}" for column, why in odd.items() if why and not label]
    on_disk = store.root.is_dir()  # an archive has listed all that it has
    absent = [found for found in listing.names if found not in store.stamps]
    store.stamps.update({found: stamp(store.root / found) if on_disk else (-1, -1) for found in absent})
    return listing


def _mark(text: str, reading: Reading) -> int | None:
    """1, 0 or UNKNOWN; None for what is no mark."""
    mapped = {"": reading.empty, "-1": reading.minus_one}.get(text.removesuffix(".0"), "")
    return _MARKS.get((mapped or text).lower())


def _no_mark(column: str, rows: Sequence[dict], reading: Reading) -> str:
    """Why a column tells of no label; "" where it does."""
    known = False
    for row in rows:
        mark = _mark(row.get(column, ""), reading)
        if mark is None:
            return f"line {row['#']} has {row[column]!r}; expected 0, 1, -1 or nothing"
        known |= mark != UNKNOWN
    return "" if known else "no row has 0 or 1"


def _is_nearly_marked(column: str, rows: Sequence[dict], reading: Reading) -> bool:
    """Whether a column that is none of marks holds 0 and 1 but for a few rows, which are mistakes, then."""
    marks = [_mark(row.get(column, ""), reading) for row in rows]
    odd = marks.count(None)
    return 0 < odd <= max(_FEW_ODD * len(marks), 1) and {0, 1} <= set(marks)


def _set_marks(listing: Listing, rows: list[dict], marked: list[str], members: list, reading: Reading) -> None:
    """Of several labels an image: one column each, or the names in one column."""
    if marked:
        listing.mark_names = tuple(marked)
        values = [[_mark(row.get(name, ""), reading) for name in marked] for row in rows]
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


def _find(store: Store, folder: PurePosixPath, text: str) -> str:
    """The name in the store of a file that a table names: from the table's folder, or absolute; perhaps without its suffix."""
    text = text if store.root.is_dir() and Path(text).is_absolute() else str(folder / text.replace("\\", "/"))
    there = (lambda name: (store.root / name).is_file()) if store.root.is_dir() else store.stamps.__contains__
    if not text.lower().endswith(PICTURES) and not there(text):
        named = (text + spelled for suffix in PICTURES for spelled in (suffix, suffix.upper()))
        return next(filter(there, named), text)
    return text


def _arrays(path: Path, reading: Reading) -> Listing:
    """An npz of `SPLIT_images, SPLIT_labels` (`x_SPLIT, y_SPLIT`, or without splits), perhaps `SPLIT_groups`, `class_names`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file}
    except Exception as error:  # whatever damaged bytes do to a parser
        raise ValueError(f"{path}: no npz that can be read ({error}); expected arrays without pickled objects") from error
    stamps = {path.name: stamp(path)}
    every: list[np.ndarray] = []
    listing = Listing(str(path), Store(path, stamps, lambda name: b"", lambda name: f"{path}: {name}"), pixels=every)
    classes = [str(name) for name in arrays.pop("class_names", arrays.pop("label_names", np.zeros(0))).ravel().tolist()]
    sets = _npz_sets(arrays)
    if not sets:
        raise ValueError(f"{path} has the arrays {sorted(arrays)}; expected train_images, train_labels, val_images, ...")
    marks = []
    for split, images, labels, groups in sets:
        x, y = arrays[images], arrays[labels]
        y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        if len(x) != len(y) or x.ndim not in (3, 4) or y.ndim > 2 or (x.ndim == 4 and x.shape[3] not in (1, 3)):
            raise ValueError(
                f"{path}: {images} {x.shape} and {labels} {y.shape}; expected [N, H, W] or [N, H, W, 1 or 3], and [N]"
            )
        if x.dtype.kind != "f" and x.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"{path}: {images} is of {x.dtype}; expected uint8, uint16 or floats of 0..1")
        if y.ndim == 2:
            marks.append(_marks_of(y, f"{path}: {labels}"))
        members = [_array_text(g) for g in arrays[groups].ravel().tolist()] if groups in arrays else [""] * len(x)
        said = [_array_text(label) for label in y.tolist()] if y.ndim == 1 else [""] * len(y)
        if classes and (strange := sorted({text for text in said if text.isdigit() and int(text) >= len(classes)})):
            raise ValueError(
                f"{path}: {labels} holds {', '.join(strange[:5])}; expected 0 to {len(classes) - 1}, as class_names has "
                f"{len(classes)} names"
            )
        for n, (image, label, group) in enumerate(zip(x, said, members, strict=True)):
            text = {"": reading.empty, "-1": reading.minus_one}.get(label, label)
            named = classes[int(text)] if classes and text.isdigit() else text
            listing.add(f"{images}[{n}]", named if named != "-1" else "", split, group)
            every.append(image)
    if marks:
        listing.marks = np.concatenate(marks)
        listing.mark_names = tuple(classes) or tuple(map(str, range(listing.marks.shape[1])))
    if (listing.marks is not None) != reading.multi_label:
        given = "several labels" if listing.marks is not None else "one label"
        raise ValueError(
            f"{path} has {given} an image; use --config=configs/image_folder.py{':multi_label' * (listing.marks is not None)}"
        )
    return listing


def _array_text(value: object) -> str:
    """A label or group of an array as a table would write it; "" where it is unknown."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float):
        return "" if np.isnan(value) else str(int(value)) if value.is_integer() else str(value)
    return str(value)


def _marks_of(values: np.ndarray, title: str) -> np.ndarray:
    """[N, K] of 1, 0, and -1 or NaN for what is unknown -> int8 marks."""
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{title} is of {values.dtype}; expected [N, K] numbers: 0, 1, and -1 or NaN for what is unknown")
    unknown = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, np.bool_)
    if (odd := ~unknown & ~np.isin(values, (0, 1, UNKNOWN))).any():
        row, column = np.argwhere(odd)[0].tolist()
        raise ValueError(
            f"{title}[{row}, {column}]={values[row, column].item()!r}; expected 0, 1, and -1 or NaN for what is unknown"
        )
    return np.where(unknown, UNKNOWN, values).astype(np.int8)


def _npz_sets(arrays: dict[str, np.ndarray]) -> list[tuple[str, str, str, str]]:
    """(split, key of the images, of the labels, of the groups)."""
    found = []
    for key in arrays:
        for images, labels in (("images", "labels"), ("x", "y"), ("image", "label"), ("X", "y")):
            rest = key.removeprefix(f"{images}_") if key.startswith(f"{images}_") else key.removesuffix(f"_{images}")
            split = "" if key == images else canonical_split(rest) if rest != key else None
            if split is not None and (other := key.replace(images, labels, 1)) in arrays:
                found.append((split, key, other, key.replace(images, "groups", 1)))
    return found

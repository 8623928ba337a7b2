"""Listings: which images a folder, table or archive names, and what it says of each: class or labels, split, group.

`folders`, `tables` and `arrays` make them; `choice` says which of these a place is read by.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from imgrec_jax.data.files import IMAGES
from imgrec_jax.data.images import MAX_PIXELS
from imgrec_jax.data.own import dicom
from imgrec_jax.data.own.stores import Store

PICTURES = (*IMAGES, ".jp2", ".avif", ".jpe", ".jfif", ".ppm", ".pgm", *dicom.SUFFIXES)
UNKNOWN = -1  # of a mark: neither yes (1) nor no (0)


class Reading(NamedTuple):
    """How a listing is to be read.

    Attributes:
      group: a regex over an image's path, the name of a table's column, or for DICOM files "PatientID", "StudyInstanceUID" or
        "SeriesInstanceUID"; "" takes the column `group` where there is one.
      multi_label: several labels an image: columns of 0 and 1, or names in one column with `separator` between them.
      empty, minus_one: what an empty label, and one of -1, stands for: "" is unknown; else a class, or "0" or "1" of a mark.
      separator: of names in one column.
      max_pixels: of an image.
      class_names: of the data, where they are known: they settle what could be read in several ways.
    """

    group: str = ""
    multi_label: bool = False
    empty: str = ""
    minus_one: str = ""
    separator: str = "|"
    max_pixels: int = MAX_PIXELS
    class_names: tuple[str, ...] = ()


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
      doubt: why other folders than those of `labels` may be the classes; "" where none may.
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
    doubt: str = ""

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
        lists: dict[str, Any] = {key: [getattr(self, key)[i] for i in at] for key in ("names", "labels", "splits", "groups")}
        marks = None if self.marks is None else self.marks[at]
        pixels = None if self.pixels is None else [self.pixels[i] for i in at]
        return replace(self, **lists, marks=marks, pixels=pixels)


def joined(parts: dict[str, Listing]) -> Listing:
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

"""Lists of images, a text file for each split, beside folders of classes or a table: `train.txt` and `test.txt` of names."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from pathlib import PurePosixPath

import numpy as np

from imgrec_jax.data.own.division import called_after, split_in
from imgrec_jax.data.own.listing import Listing
from imgrec_jax.data.own.naming import named
from imgrec_jax.data.own.rows import bytes_of, text_of_table
from imgrec_jax.data.own.stores import Store

_MOST = 30  # of one split; more are no lists, but captions of images, say


def by_lists(
    listing: Listing, pictures: Collection[str], tables: Mapping[str, Mapping[str, Set[str]]]
) -> tuple[Listing, list[str]]:
    """(the listing with the splits that lists tell, the lists that are found); as it is where splits are told.

    Where training has a list, images in none are left out; without one they are for training.

    Args:
      tables: {split: {table: images}} of tables that are lists; without them text files are.
    """
    if any(listing.splits) or listing.pixels is not None or not (lists := tables or _texts(listing.store, frozenset(pictures))):
        return listing, []
    read = {split: next(iter(images.values())) for split, images in lists.items()}
    of_image = {image: split for split, images in read.items() for image in images}
    if several := next((list(files) for files in lists.values() if len(files) > 1), None):
        why = f"{several[0]} and {several[1]} are of one split; move one of them away"
    elif len(of_image) < sum(map(len, read.values())):
        why = "an image is in two of them"
    elif set(lists) == {"train"}:
        why = "there is none of another split"
    else:
        why = _no_splits(listing, of_image, "" if "train" in lists else "train")
    files = [name for names in lists.values() for name in names]
    said = ", ".join(files[:3])
    if why:
        listing.notes.append(f"lists of images are not read, {said}: {why}")
        return listing, files
    keep = np.array([name in of_image or "train" not in lists for name in listing.names], np.bool_)
    listing.notes.append(f"splits are those of {said}")
    if left_out := int((~keep).sum()):
        listing.notes.append(f"{left_out:,} images are in none of these lists: left out")
    listing = listing.taken(keep)
    listing.splits = [of_image.get(name, "train") for name in listing.names]
    return listing, files


def _texts(store: Store, there: frozenset[str]) -> dict[str, dict[str, Set[str]]]:
    """{split: {text file: the images that it lists}}"""
    stem_of = {name: PurePosixPath(name).stem for name in store.stamps if name.lower().endswith(".txt")}
    of = called_after({name: split_in(PurePosixPath(stem)) for name, stem in stem_of.items()}, stem_of.__getitem__)
    found: dict[str, dict[str, Set[str]]] = {}
    for split, names in of.items():
        for name in names if len(names) <= _MOST else ():
            if images := _images_in(store, name, split, there):
                found.setdefault(split, {})[name] = images
    return found


def _no_splits(listing: Listing, of_image: dict[str, str], other: str) -> str:
    """Why splits by image cannot be those to train with; "" where they can. other: that of images that have none."""
    learnt: set[str] = set()
    splits_of: dict[str, set[str]] = {}
    for name, label, group in zip(listing.names, listing.labels, listing.groups, strict=True):
        if split := of_image.get(name, other):
            learnt |= {label} if split == "train" else set()
            splits_of.setdefault(group, set()).add(split)
    if torn := next((group for group, splits in splits_of.items() if group and len(splits) > 1), None):
        return f"group {torn} is in two of them"
    found = {label for name, label in zip(listing.names, listing.labels, strict=True) if name in of_image}
    new = sorted(found - learnt - {""}) if listing.marks is None else []
    return f"class {new[0]} is in none for training" if new else ""


def _images_in(store: Store, name: str, split: str, there: frozenset[str]) -> set[str]:
    """The images that a text file names, a line each, alone or before other columns; none where most lines name nothing."""
    try:
        text = text_of_table(bytes_of(store, name), name)
    except (OSError, ValueError):
        return set()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for texts in (lines, [line.split()[0] for line in lines]):
        found = {image for image, _ in named(store, PurePosixPath(name).parent, texts, [split] * len(texts))} & there
        if 2 * len(found) > len(lines):
            return found
    return set()

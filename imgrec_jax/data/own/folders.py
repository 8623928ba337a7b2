"""Folders of classes, DIR/CLASS/... or DIR/SPLIT/CLASS/..., as listings."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from imgrec_jax.data.own.division import canonical_split
from imgrec_jax.data.own.listing import Listing
from imgrec_jax.data.own.stores import Store
from imgrec_jax.data.walking import is_hidden


def read_folders(store: Store, pictures: Sequence[str]) -> Listing:
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
        names = [entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name)]
        found |= {(*above, name) for name in names} - held
    return found

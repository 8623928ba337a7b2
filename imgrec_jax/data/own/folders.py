"""Folders of classes, DIR/CLASS/... or DIR/SPLIT/CLASS/..., as listings."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath

from imgrec_jax.data.files import IMAGES
from imgrec_jax.data.own.division import canonical_split, split_in, splits_of
from imgrec_jax.data.own.listing import Listing
from imgrec_jax.data.own.stores import Store
from imgrec_jax.data.walking import is_hidden

_IMAGES = {"image", "images", "img", "imgs", "pictures", "photos"}
_PARTS = {"part", "parts", "batch", "chunk", "shard"}
_MOST_VIEWS = 4  # folders of the same names in each of the classes, as of views, that are none themselves
_TO_PREDICT = {"pred", "predict", "prediction", "unlabeled", "unlabelled"}


def read_folders(store: Store, pictures: Sequence[str], beside: str = "") -> Listing:
    """DIR/CLASS/... or DIR/SPLIT/CLASS/...

    Args:
      beside: why a table that may tell the classes does not; "" where there is none.

    Raises:
      ValueError: for folders that may be splits or classes, and those of parts, or of another kind of data.
    """
    above = [name.rpartition("/")[0] for name in pictures]
    there = set(above) if len(above) == len(store.stamps) else {name.rpartition("/")[0] for name in store.stamps}
    every = {folder: tuple(folder.split("/")) if folder else () for folder in there}
    _refuse_other_kinds(store, pictures, {part.lower() for parts in every.values() for part in parts})
    with_images = {folder: every[folder] for folder in above}
    holders = list(with_images.values())
    depth = 0
    while (
        len({parts[: depth + 1] for parts in holders}) == 1 and min(map(len, holders)) > depth and _deeper(holders, depth + 1)
    ):
        depth += 1  # a folder that holds one folder only
    tops = sorted({parts[depth] for parts in holders if len(parts) > depth})
    listing = Listing(str(store.root), store)
    if left := _to_predict(tops, holders, depth):
        tops = [top for top in tops if top not in left]
        with_images = {folder: parts for folder, parts in with_images.items() if parts[depth : depth + 1] != left}
        pairs = [pair for pair in zip(pictures, above, strict=True) if pair[1] in with_images]
        listing.notes.append(f"{len(pictures) - len(pairs):,} images of {left[0]} have no class, by its name: passed over")
        pictures, above, holders = [name for name, _ in pairs], [folder for _, folder in pairs], list(with_images.values())
    splits = splits_of(tops)
    named = [top for top in tops if splits[top]]
    holding = {p[depth] for p in holders if len(p) > depth + 1 and splits[p[depth]]}  # folders that may be classes
    as_splits = bool(named) and len(named) == len(tops) and ("train" in splits.values() or bool(holding))
    if not as_splits and (holding or ("train" in splits.values() and len(named) > 1)):
        raise ValueError(
            f"{store.root} has folders {', '.join(named)}, which are splits, beside "
            f"{_some([top for top in tops if not splits[top]])}, which are none; move these away, or rename them if all are "
            "classes"
        )
    bare = as_splits and _are_bare(holders, depth, splits)
    if bare or (not as_splits and _are_parts(tops, bool(beside))):
        raise ValueError(
            f"{store.root}: by their names its folders {_some(tops)} are parts of one set, and no classes"
            f"{f', and {beside}' if beside else ''}; expected DIR/CLASS/*.jpg, DIR/train/CLASS/*.jpg, or a table of file,label "
            "beside them; rename the folders if they are classes"
        )
    at = depth + as_splits
    while as_splits and _wrapped(holders, depth, at, splits):
        at += 1
    if spelled := _spell(holders, at):
        letters = sorted({parts[at] for parts in holders})
        at += 1
        listing.notes.append(
            f"folders {_some(letters)} are first letters of those in them, which are the classes; rename them, e.g. to "
            f"letter_{letters[0]}, if the letters are the classes"
        )
    if not spelled:
        listing.doubt = _other_levels(store, holders, at, as_splits)
    split_of = {top: splits[top] if as_splits else "" for top in tops}
    inner = {} if as_splits or spelled else _splits_inside(holders, at)
    label_of = (lambda parts: "_".join(parts[at:])) if spelled else (lambda parts: parts[at])
    place = {
        folder: (label_of(parts), inner[parts[at + 1]] if inner else split_of[parts[depth]])
        for folder, parts in with_images.items()
        if len(parts) > at
    }
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


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\W_\d]+", name.lower()) if word]


def _to_predict(tops: Sequence[str], holders: Sequence[tuple[str, ...]], depth: int) -> tuple[str, ...]:
    """The one folder of images, and of no class, that is called so beside splits of classes; () for none."""
    inner = {top: {p[depth + 1 :] for p in holders if p[depth : depth + 1] == (top,)} for top in tops}
    left = [top for top in tops if _TO_PREDICT & {*_words(top)} and inner[top] <= {(), (top,)}]
    others = [top for top in tops if top not in left]
    found = len(left) == 1 and all(splits_of(others).values()) and all(() not in inner[top] for top in others)
    return tuple(left) if found and others else ()


def _are_bare(holders: Sequence[tuple[str, ...]], depth: int, splits: dict[str, str]) -> bool:
    """Whether splits hold no classes, but images, or one folder of images that is called after the split, too."""
    inner = {(p[depth], p[depth + 1 :]) for p in holders if len(p) > depth}
    return len({top for top, _ in inner}) == len(inner) and all(
        not rest or (len(rest) == 1 and split_in(PurePosixPath(rest[0])) == splits[top]) for top, rest in inner
    )


def _are_parts(tops: Sequence[str], beside: bool) -> bool:
    """Whether folders are called alike but for numbers and words of parts; beside: a table is there, too."""
    for mine in map(_words, tops):
        if not (any(map(_is_of_parts, mine)) if beside else _IMAGES & {*mine}):
            return False  # "part_1", "class_2" may be classes
    called = beside and all(split_in(PurePosixPath(top)) for top in tops)  # train and train_cropped, which a table names
    return len(tops) > 1 and (called or are_alike(tops))


def are_alike(names: Collection[str]) -> bool:
    """Whether names differ in numbers, splits and words of parts alone, and not as `photos` from `paintings`."""
    return len({_rest(name) for name in names}) == 1


def _rest(name: str) -> tuple[str, ...]:
    """What a name says but for numbers, splits and words of parts."""
    return tuple(word for word in _words(name) if word not in _PARTS and canonical_split(word) is None)


def may_be_class(name: str) -> bool:
    """Whether a folder's name says more than that it holds images, or a part of them."""
    return not (words := _words(name)) or not all(map(_is_of_parts, words))


def _is_of_parts(word: str) -> bool:
    return word in _PARTS or word in _IMAGES or canonical_split(word) is not None


def _spell(holders: Sequence[tuple[str, ...]], at: int) -> bool:
    """Whether folders are first letters of the names in them, as of `a/abbey`, and not letters with parts, as of `A/A1`."""
    letters = {parts[at : at + 1] for parts in holders}
    if len(letters) < 2 or not all(len(top) == 1 and len(top[0]) == 1 and top[0].isalpha() for top in letters):
        return False
    inner = {(parts[at].lower(), parts[at + 1] if len(parts) > at + 1 else "") for parts in holders}
    return all(len(word := "".join(_words(name)[:1])) > 1 and word.startswith(letter) for letter, name in inner)


def _wrapped(holders: Sequence[tuple[str, ...]], depth: int, at: int, splits: dict[str, str]) -> bool:
    """Whether every split holds one folder around its classes: of one name, or each of that of its split."""
    if not all(len(p) > at + 1 for p in holders):
        return False
    inner = {(p[depth], p[at]) for p in holders}
    return len({name for _, name in inner}) == 1 or all(split_in(PurePosixPath(name)) == splits[top] for top, name in inner)


def _splits_inside(holders: Sequence[tuple[str, ...]], at: int) -> dict[str, str]:
    """{folder in a class: its split} where each class holds folders of splits alone, CLASS/train/ and CLASS/test/; else {}."""
    if not all(len(parts) > at + 1 for parts in holders):
        return {}
    splits = splits_of({parts[at + 1] for parts in holders})
    return splits if all(splits.values()) and "train" in splits.values() and len(set(splits.values())) > 1 else {}


def _other_levels(store: Store, holders: Sequence[tuple[str, ...]], at: int, as_splits: bool) -> str:
    """Why folders in those of classes may be the classes: in a copy of the set, or in each of them; "" where none may."""
    below = _below(holders, at, at + 1)
    labels = set(below)
    for label in sorted(labels):
        if len(below[label]) >= len(labels) - 1 > 1 and labels - {label} <= below[label]:
            return (
                f"{store.root}: its folder {label} holds folders of the names of those beside it, "
                f"{_some(sorted(labels - {label}))}: a copy of the set, and no class of it; move it away"
            )
    level = at + 1
    while below and all(len(names) == 1 for names in below.values()):  # amazon/images/bike, dslr/images/bike; rps/rps/rock
        level += 1
        below = _below(holders, at, level)
    shared = set.intersection(*below.values()) if len(below) > 1 and not as_splits else set()
    if len(shared) < 2 or are_alike(shared) or not all(map(may_be_class, shared)):
        return ""
    if any(split_in(PurePosixPath(label)) for label in labels) or len(shared) > max(_MOST_VIEWS, len(labels)):
        return (
            f"{store.root}: each of its folders {_some(sorted(labels))} holds folders of the same names, "
            f"{_some(sorted(shared))}, and either may be the classes; name the outer ones as "
            "config.data.options.class_names, give one of them as config.data.manual_dir (and others as "
            "config.data.test_sets), call them train, val and test if they are splits, or put a table of file,label beside "
            "them"
        )
    return ""


def _below(holders: Sequence[tuple[str, ...]], at: int, level: int) -> dict[str, set[str]]:
    """{folder at the level of classes: the names of folders in it, at another level}."""
    found: dict[str, set[str]] = {}
    for parts in holders:
        if len(parts) > at:
            found.setdefault(parts[at], set()).update(parts[level : level + 1])
    return found


def _deeper(folders: Sequence[tuple[str, ...]], depth: int) -> bool:
    return any(len(parts) > depth for parts in folders)


def _refuse_other_kinds(store: Store, pictures: Sequence[str], names: Collection[str]) -> None:
    """Raises ValueError for folders, of these lower-case names, of masks or boxes, whose folders are no classes."""
    held = {PurePosixPath(name).suffix.lower() for name in store.stamps if "annotations/" in name.lower()}
    around = list(map(_around_images, {name.rpartition("/")[0] for name in pictures}))
    classes = any(len(set(side) - {""}) > 1 for side in zip(*around, strict=True))
    masks, boxes = any(end in IMAGES for end in held), bool(held & {".xml", ".json"}) and not classes
    for parts, there, config in (
        ({"images", "masks"}, True, "own_segmentation"),
        ({"jpegimages", "annotations"}, True, "own_detection"),
        ({"images", "annotations"}, boxes and masks, "own_segmentation.py or configs/own_detection"),
        ({"images", "annotations"}, boxes, "own_detection"),
        ({"images", "annotations"}, masks, "own_segmentation"),
        ({"images", "labels"}, _are_label_texts(store, pictures), "own_detection"),
    ):
        if parts <= set(names) and there:
            raise ValueError(
                f"{store.root} has folders {' and '.join(sorted(parts))}, which are no classes; it looks like data of "
                f"--config=configs/{config}.py"
            )


def _around_images(folder: str) -> tuple[str, str]:
    """What may be classes around a folder `images`, as in CLASS/images/ and images/SPLIT/CLASS/.

    The next outer and the next inner folder that are no splits; "" for none.
    """
    parts = folder.split("/")
    at = next((n for n, part in enumerate(parts) if part.lower() == "images"), None)
    if at is None:
        return "", ""
    first = lambda names: next((name for name in names if not split_in(PurePosixPath(name))), "")  # noqa: E731
    return first(parts[:at][::-1]), first(parts[at + 1 :])


def _are_label_texts(store: Store, pictures: Sequence[str]) -> bool:
    """Whether labels/.../NAME.txt are there, as YOLO has them, and not lists of images that lie in folders of classes."""
    texts = {PurePosixPath(name).stem for name in store.stamps if _is_label_text(name)}
    lists = any(split_in(PurePosixPath(text)) for text in texts) and all(name.count("/") > 1 for name in pictures)
    return bool(texts) and not (lists and texts.isdisjoint(PurePosixPath(name).stem for name in pictures))


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

"""Which masks are of which image, by folders and names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from imgrec_jax.data.files import Files


class Entry(NamedTuple):
    """One image and its mask files."""

    name: str
    image: PurePosixPath
    masks: tuple[PurePosixPath, ...]


def pair(
    files: Files,
    *,
    kind: str,
    images: str = "images",
    masks: str = "masks",
    mask_suffix: str = "",
    alone: list[str] | None = None,
) -> list[Entry]:
    """Every image with its masks, sorted by name.

    Args:
      kind: one of `mask_folder.KINDS`.
      images, masks: names of the folders.
      mask_suffix: what a mask's name has after the image's, e.g. "_mask".
      alone: takes the files without a partner, which are left out; None raises for them.

    Raises:
      ValueError: for images without masks, masks without images (the first of each are named), and two images of one name.
    """

    def key(path: PurePosixPath, folder: str) -> str | None:
        """The path without its folder `images` or `masks`; None where it lies in none."""
        found = _around(path, folder)
        if found is None:
            return None
        above, below = found
        return "/".join(above if kind == "instances" else (*above, *below, path.stem))

    by_image: dict[str, list[PurePosixPath]] = {}
    by_mask: dict[str, list[PurePosixPath]] = {}
    for path in files.names:
        if (name := key(path, masks)) is not None:
            by_mask.setdefault(name.removesuffix(mask_suffix) if name.endswith(mask_suffix) else name, []).append(path)
        elif (name := key(path, images)) is not None:
            by_image.setdefault(name, []).append(path)
    if alone is not None:
        alone += [str(path) for name in sorted(by_image.keys() ^ by_mask.keys()) for path in (by_image | by_mask)[name]]
        both = by_image.keys() & by_mask.keys()
        by_image, by_mask = ({name: by[name] for name in both} for by in (by_image, by_mask))
    problems = [
        *_orphans("images without a mask", by_image.keys() - by_mask.keys()),
        *_orphans("masks without an image", by_mask.keys() - by_image.keys()),
        *_orphans("names of several images", {n for n, paths in by_image.items() if len(paths) > 1}),
    ]
    if kind != "instances":
        problems += _orphans("names of several masks", {n for n, paths in by_mask.items() if len(paths) > 1})
    if problems or not by_image:
        found = "; ".join(problems) or f"no image lies in a folder {images!r}"
        raise ValueError(
            f"{files.root}: {found}. Expected {images}/NAME.* with {masks}/NAME{mask_suffix}.png, or for kind='instances' "
            f"NAME/{images}/* with NAME/{masks}/*; remove or rename files that have no partner"
        )
    return [Entry(name, by_image[name][0], tuple(by_mask[name])) for name in sorted(by_image)]


def _around(path: PurePosixPath, folder: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """The folders above and below the innermost `folder` of a path; None where it lies in none."""
    if folder not in path.parts[:-1]:
        return None
    at = len(path.parts) - 2 - path.parts[:-1][::-1].index(folder)
    return path.parts[:at], path.parts[at + 1 : -1]


def pair_by_difference(files: Files, images: str, masks: str) -> list[Entry] | None:
    """As `pair` with a mask an image, where the names differ by what all images of a folder have in common, and all masks:
    21_training.tif and 21_manual1.gif, img_7.jpg and mask_7.png. None where that leaves one without a partner.
    """
    places: dict[str, dict[Any, dict[str, PurePosixPath]]] = {images: {}, masks: {}}
    for path in files.names:
        of = next((folder for folder in (masks, images) if folder in path.parts[:-1]), None)
        if of is not None:
            here = places[of].setdefault(_around(path, of), {})
            if here.setdefault(path.stem, path) is not path:
                return None
    if places[images].keys() != places[masks].keys():
        return None
    entries = []
    for around, pictures in places[images].items():
        there = places[masks][around]
        partners = by_difference(pictures, there)
        if partners is None or len(partners) != len(there):
            return None
        folder = (*around[0], *around[1])
        entries += [Entry("/".join((*folder, stem)), image, (there[partners[stem]],)) for stem, image in pictures.items()]
    return sorted(entries, key=lambda entry: entry.name)


def by_difference(images: Iterable[str], masks: Iterable[str]) -> dict[str, str] | None:
    """{name of an image: name of its mask}, the two equal but for what all of `images` have in common, and all of `masks`; None
    where an image has no partner, or numbers in what is in common say that they are not of one another.
    """
    there = set(masks)
    (first, mine, last), (their_first, theirs, their_last) = _without_common(images), _without_common(there)
    # Numbers that all have in common tell of what they are: video1_3 is no partner of video2_3.
    own, other = ((_numbers(before), _numbers(after)) for before, after in ((first, last), (their_first, their_last)))
    unlike = any(own) and any(other) and own != other
    crossed = any(name in there and theirs.get(key) != name for key, name in mine.items())
    if not mine.keys() <= theirs.keys() or len(mine) < 2 or unlike or crossed:
        return None
    return {name: theirs[key] for key, name in mine.items()}


def _without_common(names: Iterable[str]) -> tuple[str, dict[str, str], str]:
    """{name} by what is left of the stems without what all begin and end with, between these two; numbers stay whole."""
    stems = list(names)
    first = re.sub(r"\d+$", "", os.path.commonprefix(stems))
    rest = [stem[len(first) :] for stem in stems]
    last = re.sub(r"^\d+", "", os.path.commonprefix([text[::-1] for text in rest])[::-1])
    return first, {text[: len(text) - len(last)]: stem for text, stem in zip(rest, stems, strict=True)}, last


def _numbers(text: str) -> list[str]:
    return re.findall(r"\d+", text)


def _orphans(what: str, names: set[str]) -> list[str]:
    shown = sorted(names)[:5]
    return [f"{len(names)} {what} ({', '.join(shown)}{', ...' if len(names) > len(shown) else ''})"] if names else []

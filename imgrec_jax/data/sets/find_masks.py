"""Where images and their masks lie in a folder, by the names of folders, and the splits that lists tell of."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePosixPath

import numpy as np

from imgrec_jax.data.files import Files, folders
from imgrec_jax.data.images import read_text
from imgrec_jax.data.own.division import splits_in
from imgrec_jax.data.own.found import sample, shown
from imgrec_jax.data.sets import voc
from imgrec_jax.data.sets.mask_values import MOST_COLOURS, read_mask

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "JPEGImages", "frames", "inputs")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations", "SegmentationClass", "groundtruth", "gt", "targets")
SUFFIXES = ("", "_mask", "-mask", "_masks", "_label", "_segmentation", "_seg", "_gt")
_OF_CLASSES, _OF_OBJECTS = "SegmentationClass", "SegmentationObject"  # Pascal VOC's folders of masks
_VOC_LISTS = ("ImageSets", "Segmentation")


def folders_of(files: Files, title: str, chosen: str, *, settled: bool) -> tuple[str, str, list[str]]:
    """(the name of the folders of images, of those of masks, lines to print).

    Args:
      chosen: that of masks; "" takes the one that there is.
      settled: kind and classes are given, as to a run that goes on: other folders that may be meant are told alone.

    Raises:
      ValueError: where there is none, or several may be meant.
    """
    holding = Counter(part for name in files.names for part in set(name.parts[:-1]))
    images = next((name for name in IMAGE_FOLDERS if name in holding and name != chosen), None)
    # The innermost name that is known tells what a file is: of images/masks/1.png, the mask.
    known_in = lambda name: next((p for p in name.parts[-2::-1] if p in (images, chosen, *MASK_FOLDERS)), None)  # noqa: E731
    around = {part for name in files.names if known_in(name) == images for part in name.parts[:-1]}
    beside: dict[str, list[PurePosixPath]] = {}
    for name in files.names if images is not None else ():
        own = known_in(name) or next((part for part in name.parts[:-1] if part not in around), None)
        if own is not None and own != images:
            beside.setdefault(own, []).append(name)
    many = [name for name, paths in beside.items() if 2 * len(paths) >= holding[str(images)]]
    there = [name for name in MASK_FOLDERS if name in beside]
    known = [name for name in there if name in many] or there  # a few previews are no masks
    others = [name for name in many if name not in (*known, _OF_OBJECTS) and _may_be_masks(files, beside[name])]
    masks = chosen or next(iter(known), "")
    if images is None or masks not in beside:
        looked = f"masks={chosen!r}" if chosen else f"one of {MASK_FOLDERS}"
        choose = f"; {_choice(others[0])} takes another name" if others else ""
        raise ValueError(
            f"{title} holds images in {sorted(holding)[:8]}; expected a folder of images, one of {IMAGE_FOLDERS}, "
            f"and one of masks, {looked}{choose}"
        )
    several = [*known, *others] if len(known) + len(others) > 1 and not chosen and not settled else []
    plain = MASK_FOLDERS[0] in known and MASK_FOLDERS[0] in many  # no other name says it so clearly
    if several and not plain:
        # `mask` of DRIVE and its like is the field of view
        likely = others[0] if others and known[0] == "mask" else known[0]
        raise ValueError(
            f"{title}: its masks may be those of {', '.join(f'{n}/' for n in several)}; say which, e.g. {_choice(likely)}"
        )
    notes = [f"masks are those of {masks}/; data.options.masks takes those of {several[1]}/"] if several else []
    if unused := [f"{name}/ ({len(paths):,} images)" for name, paths in sorted(beside.items()) if name != masks]:
        notes.append(f"folders that are not used: {shown(unused)}")
    return images, masks, notes


def without_bare_tests(files: Files, images: str, masks: str) -> tuple[Files, list[str]]:
    """(the files without test images of which nobody drew masks, lines to print); images, masks: names of the folders."""
    splits, _ = splits_in({name.parent.parts for name in files.names})
    drawn = {splits[name.parent.parts] for name in files.names if masks in name.parts[:-1]}
    bare = {name for name in files.names if images in name.parts[:-1] and splits[name.parent.parts] == "test"}
    if "test" in drawn or not drawn or not bare:
        return files, []
    kept = files._replace(names=tuple(name for name in files.names if name not in bare))
    return kept, [f"none of the {len(bare):,} images of test has a mask: left out"]


def _may_be_masks(files: Files, names: list[PurePosixPath]) -> bool:
    """Whether images look like masks: of few colours, or where these are not what was drawn, of black and white."""
    for name in (names[n] for n in sample(len(names), 3).tolist()):
        try:
            mask = read_mask(files, name)
        except (ValueError, OSError):
            return False
        values = mask.values.reshape(-1, *mask.values.shape[2:])
        if mask.lossy and ((values >= 32) & (values < 224)).mean() > 0.1:
            return False
        if not mask.lossy and len(np.unique(values, axis=0)) > MOST_COLOURS:
            return False
    return True


def _choice(masks: str) -> str:
    return f"--config.data.options=\"{{'masks': '{masks}'}}\""


def listed_in(files: Files, masks: str) -> tuple[Files, dict[str, str], list[str]]:
    """(the files of the images that the lists of a Pascal VOC tree name, {an entry's name: its split}, lines to print); all
    files where there are no such lists.

    Raises:
      ValueError: for lists that cannot be read, and an image in two of them.
    """
    splits: dict[str, str] = {}
    notes: list[str] = []
    below = folders(files.root) if masks == _OF_CLASSES and files.root.is_dir() else []
    for folder in (folder for folder in below if folder.parts[-2:] == _VOC_LISTS):
        above = folder.parent.parent.relative_to(files.root)
        lists, unread = voc.split_lists(folder)
        notes += unread
        for split, path in lists.items():
            lines = map(str.strip, read_text(path, "a list of names").splitlines())
            for name in (str(PurePosixPath(above / line)) for line in lines if line):
                if splits.setdefault(name, split) != split:
                    raise ValueError(f"{path}: {name} is in the list of {splits[name]}, too; remove it from one")
    if not splits:
        return files, {}, notes
    stems = {PurePosixPath(name).name for name in splits}
    left_out = {name.stem for name in files.names} - stems
    kept = files._replace(names=tuple(name for name in files.names if name.stem in stems))
    if left_out:
        notes.append(f"{len(left_out):,} images are in no list of ImageSets/Segmentation: left out")
    return kept, splits, notes

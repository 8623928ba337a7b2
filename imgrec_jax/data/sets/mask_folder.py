"""Folders of images with their masks, also inside a zip file, which is read as it is.

Two layouts, told apart by `kind`; folders above `images` and `masks` may be any:
  .../images/NAME.jpg, .../masks/NAME.png           "index": grey or palette PNG, the value is the class (three equal
                                                    channels are grey)
                                                    "binary": what is not 0 (of a palette, not black) is class 1; in a
                                                    lossy file (JPEG), what is 128 or more
                                                    "grey": of soft edges, 128 and more is class 1
                                                    "instance_map": the value is the number of an object of class 1,
                                                    0 is none
  .../NAME/images/*.png, .../NAME/masks/*.png       "instances": one image, one mask file for each object of class 1

For detection, the two kinds that tell objects apart give boxes around their masks.
Splits are the folders of that name where there are any (`train/images/...`). Otherwise they are cut from all images in the
order of the SHA-256 of "SEED/NAME", which depends on the names alone: adding an image moves few others to another split.
Shape letters: H W image.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from imgrec_jax.data.annotated import DetectionSource
from imgrec_jax.data.annotations import encode_mask, from_images
from imgrec_jax.data.files import Files, list_files, split_by_hash
from imgrec_jax.data.images import (
    MAX_PIXELS,
    ImageFileError,
    check_image,
    decode_image,
    decoder_warnings,
    is_deep,
    open_image,
    orientation_of,
)
from imgrec_jax.data.ops.geometry import boxes_of_masks
from imgrec_jax.data.own.division import canonical_split, splits_in
from imgrec_jax.data.progress import progress
from imgrec_jax.data.sets.mask_pairs import Entry, pair
from imgrec_jax.data.sets.mask_values import OF_OBJECTS, check_mask, instance_map, mask_values, of_one_object, targets_of
from imgrec_jax.data.source import MAX_BYTES_IN_MEMORY, Request, Source, SourceInfo, digest, parse_split, part, split_range

CLASS_NAMES = ("background", "foreground")
KINDS = ("index", "binary", "grey", "instance_map", "instances")
FRACTIONS = (("train", 0.8), ("validation", 0.1), ("test", 0.1))
_SHOWN_FROM = 500  # images, which take seconds to read
_BYTES_PER_PIXEL = 6  # decoded: RGB, class, and an instance number of two bytes


def given_splits(entries: Sequence[Entry], kind: str) -> tuple[dict[str, str], list[str]]:
    """({name of an entry: the split that the folders above its image and masks tell of, or ""}, lines to print)."""
    above = {entry.name: PurePosixPath(entry.name).parent.parts for entry in entries}
    splits, lines = splits_in(set(above.values()))
    # "instances": the folder of one image alone
    own = {name: canonical_split(PurePosixPath(name).name) if kind == "instances" else None for name in above}
    return {name: own[name] or splits[parts] for name, parts in above.items()}, lines


def take_split(entries: Sequence[Entry], base: str, fractions: Sequence[tuple[str, float]], seed: int) -> list[Entry]:
    """The entries of a base split, see the top of this file.

    Raises:
      ValueError: for an unknown split, with those that exist.
    """
    folders = {PurePosixPath(entry.name).parts[0] for entry in entries if "/" in entry.name}
    names = [name for name, _ in fractions]
    if base in folders:
        return [entry for entry in entries if entry.name.startswith(f"{base}/")]
    if base not in names or folders & set(names):
        raise ValueError(f"no split {base!r}; there are {sorted(folders & {*names, base}) or names}")
    mine = set(split_by_hash([entry.name for entry in entries], fractions, seed)[base])
    return [entry for entry in entries if entry.name in mine]


class MaskFolder:
    """Examples with image uint8 [H, W, 3], segmentation and pixel_valid [H, W], and instances [H, W] for kind "instances"."""

    def __init__(self, info: SourceInfo, entries: Sequence[Entry], read: Callable[[Entry], dict]):
        self.info, self._entries, self._read = info, tuple(entries), read

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.info.name}: example {index} of {len(self)}")
        return self._read(self._entries[index])


def open_masks(request: Request, **options) -> Source:
    """A mask folder or zip; options: of `open_mask_folder`. For detection, objects with their boxes and masks."""
    options = {"in_memory": request.in_memory, "max_pixels": request.max_pixels, **options}
    if "boxes" in request.targets:
        return open_objects(request.folder, request.split, targets=request.targets, **options)
    return open_mask_folder(request.folder, request.split, **options)


def open_objects(
    root: str | Path,
    split: str,
    *,
    kind: str,
    targets: Sequence[str] = ("boxes",),
    class_names: Sequence[str] = CLASS_NAMES,
    void: int | None = 255,
    images: str = "images",
    masks: str = "masks",
    mask_suffix: str = "",
    fractions: Sequence[tuple[str, float]] = FRACTIONS,
    split_seed: int = 0,
    in_memory: bool | None = None,
    max_pixels: int = MAX_PIXELS,
) -> DetectionSource:
    """Opens a split of a mask folder as objects of one class with boxes; every mask is read here, and kept as run lengths.

    Args: as `open_mask_folder`; kind: of OF_OBJECTS; targets: as `DetectionSource`; class_names: the last is the class's.

    Raises:
      ValueError: as `open_mask_folder`; for a kind that does not tell objects apart, or more classes than one.
    """
    if kind not in OF_OBJECTS:
        raise ValueError(f"data.options.kind={kind!r} does not tell objects apart; detection expects one of {OF_OBJECTS}")
    if len(class_names) not in (1, 2):
        raise ValueError(f"data.options.class_names={tuple(class_names)}: expected one class, or the background and one")
    files = list_files(root, max_pixels)
    base, _, _ = parse_split(split)
    everything = pair(files, kind=kind, images=images, masks=masks, mask_suffix=mask_suffix)
    entries = take_split(everything, base, fractions, split_seed)
    return objects_of_entries(
        files,
        entries,
        split,
        kind=kind,
        targets=targets,
        class_name=class_names[-1],
        in_memory=in_memory,
        max_pixels=max_pixels,
    )


def objects_of_entries(
    files: Files,
    entries: Sequence[Entry],
    split: str,
    *,
    kind: str,
    targets: Sequence[str],
    class_name: str,
    in_memory: bool | None,
    max_pixels: int,
) -> DetectionSource:
    """The part of the base split of these entries that `split` names; as `open_objects`."""
    base, _, _ = parse_split(split)
    checked = [check_entry(files, entry, kind, max_pixels) for entry in entries]
    start, stop = split_range(split, len(entries))
    chosen = entries[start:stop]
    steps = progress(chosen, f"reading the masks of {files.root}") if len(chosen) > _SHOWN_FROM else chosen
    rows = [objects_of(files, entry, kind, number, max_pixels) for number, entry in enumerate(steps, start=start + 1)]
    annotations = from_images(rows, class_names=(class_name,))

    def read(index: int) -> dict:
        path = chosen[index].image
        return {"image": decode_image(files.read(path), str(files.root / path), max_pixels)}

    if in_memory or (in_memory is None and sum(one.pixels for one in checked) * 3 <= MAX_BYTES_IN_MEMORY):
        read = functools.cache(read)
    described = (f"{path}:{files.size(path)}" for entry in entries for path in (entry.image, *entry.masks))
    identity = digest("files", (kind, class_name, *described))
    name = f"{files.root} {base}" + ("" if len(chosen) == len(entries) else f"[{start}:{stop}]")
    source = DetectionSource(name, annotations, read, targets, identity, origin=str(files.root))
    if len(chosen) < len(entries):
        source.info = dataclasses.replace(source.info, base_size=len(entries))
    return source


def objects_of(files: Files, entry: Entry, kind: str, number: int, max_pixels: int) -> dict:
    """One image with its objects as `from_images` takes it; a mask without a pixel is no object."""
    if kind == "instances":
        masks = [of_one_object(files, path) for path in entry.masks]
    else:
        values = instance_map(files, entry.masks[0])
        masks = [values == n for n in np.unique(values[values > 0])]
    masks = [mask for mask in masks if mask.any()]
    height, width = check_image(files.read(entry.image), str(files.root / entry.image), max_pixels)[:2]
    return {
        "image_id": number,
        "file_name": str(entry.image),
        "size": (height, width),
        "boxes": np.concatenate([boxes_of_masks(mask[None]) for mask in masks]) if masks else np.zeros((0, 4)),
        "labels": np.ones(len(masks), np.int64),
        "crowd": np.zeros(len(masks), np.bool_),
        "ids": np.arange(1, len(masks) + 1),
        "areas": [float(mask.sum()) for mask in masks],
        "segmentations": [encode_mask(mask) for mask in masks],
    }


def open_mask_folder(
    root: str | Path,
    split: str,
    *,
    kind: str,
    class_names: Sequence[str] = CLASS_NAMES,
    void: int | None = 255,
    images: str = "images",
    masks: str = "masks",
    mask_suffix: str = "",
    fractions: Sequence[tuple[str, float]] = FRACTIONS,
    split_seed: int = 0,
    in_memory: bool | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Source:
    """Opens a split of a mask folder, after looking at every file; what is kept in memory is decoded at once.

    Args:
      root: folder or zip file.
      split: "train", "validation[:50%]", ...
      kind: one of KINDS.
      class_names: of classes 0, 1, ...; class 0 is the background.
      void: value of kind "index" that is ignored everywhere; None for none.
      images, masks, mask_suffix: see `pair`.
      fractions: (name, share) of the splits, where no folders name them.
      split_seed: of these splits.
      in_memory: keep what was decoded; None where it fits.
      max_pixels: of an image; a larger one is not decoded.

    Raises:
      ValueError: unknown kind or split; files without a partner, that are no images or damaged; a mask whose size is not its
        image's, whose values cannot be classes, or that is lossy where values count; index masks of nothing but 0 and void.
    """
    if kind not in KINDS:
        raise ValueError(f"data.kind={kind!r} is unknown; choose one of {KINDS}")
    files = list_files(root, max_pixels)
    base, _, _ = parse_split(split)
    everything = pair(files, kind=kind, images=images, masks=masks, mask_suffix=mask_suffix)
    entries = take_split(everything, base, fractions, split_seed)
    if kind == "index" and void is not None:
        others = set(everything) - set(entries)  # a small split may lack objects that the others have
        refuse_void_alone(files, (*entries, *sorted(others)), void)
    return open_entries(
        files, entries, split, kind=kind, class_names=class_names, void=void, in_memory=in_memory, max_pixels=max_pixels
    )


def open_entries(
    files: Files,
    entries: Sequence[Entry],
    split: str,
    *,
    kind: str,
    class_names: Sequence[str],
    void: int | None,
    in_memory: bool | None,
    max_pixels: int,
    depth: int = 8,
) -> Source:
    """The part of the base split of these entries that `split` names; as `open_mask_folder`; depth: see `decode_image`."""
    base, _, _ = parse_split(split)
    checked = [check_entry(files, entry, kind, max_pixels) for entry in entries]
    if lossy := sum(one.lossy for one in checked):
        print(
            f"note: {lossy} of the masks of {files.root} {base} are lossy files (JPEG): 128 and more is read as foreground",
            file=sys.stderr,
            flush=True,
        )

    def read(entry: Entry) -> dict:
        image = decode_image(files.read(entry.image), str(files.root / entry.image), max_pixels, depth)
        return {"image": image, **targets_of(files, entry.masks, image.shape[:2], kind, len(class_names), void)}

    bytes_per_pixel = _BYTES_PER_PIXEL + (9 if depth == 16 else 0)
    if in_memory or (in_memory is None and sum(one.pixels for one in checked) * bytes_per_pixel <= MAX_BYTES_IN_MEMORY):
        read = functools.cache(read)
        _read_all(read, entries[slice(*split_range(split, len(entries)))], files)
    names = tuple(str(entry.image) for entry in entries)
    described = (f"{path}:{files.size(path)}" for entry in entries for path in (entry.image, *entry.masks))
    identity = digest("files", (kind, str(void), *described))
    info = SourceInfo(f"{files.root} {base}", tuple(class_names), {"file_names": names}, identity)
    return part(MaskFolder(info, entries, read), split)


def _read_all(read: Callable[[Entry], dict], entries: Sequence[Entry], files: Files) -> None:
    """Decodes every example, here where there is one thread and a decoder's warnings can be given to their file."""
    for entry in progress(entries, f"reading {files.root}") if len(entries) > _SHOWN_FROM else entries:
        with decoder_warnings() as said:
            read(entry)
        if said[0].damage:
            raise ImageFileError(f"{files.root / entry.image}: a damaged file (the decoder says: {said[0].damage}); replace it")


class Checked(NamedTuple):
    """pixels: of an image; lossy: whether its mask is; deep: whether the image has 16 bits a channel."""

    pixels: int
    lossy: bool
    deep: bool


def check_entry(files: Files, entry: Entry, kind: str, max_pixels: int) -> Checked:
    """What can be told of an image and its masks without decoding them.

    Raises:
      ValueError: for a file that is no image or has an EXIF orientation, a mask of another size, and a lossy one where its
        values count.
    """
    image_data = files.read(entry.image)
    size = check_image(image_data, str(files.root / entry.image), max_pixels)[:2]
    with open_image(io.BytesIO(image_data)) as opened:
        tag, deep = orientation_of(image_data), is_deep(opened, image_data)
    if tag not in (0, 1):
        raise ValueError(
            f"{files.root / entry.image}: has the EXIF orientation {tag}, and its mask may be of the turned or of the stored "
            "pixels; store it upright, or remove the tag"
        )
    lossy = [check_mask(files, mask, size, str(entry.image), kind, max_pixels) for mask in entry.masks]
    return Checked(size[0] * size[1], any(lossy), deep)


def refuse_void_alone(files: Files, entries: Sequence[Entry], void: int) -> None:
    """Raises ValueError when pixels are void and none has a class above 0; the search ends at the first one that has."""
    seen_void = False
    for entry in entries:
        values = mask_values(files, entry.masks[0])
        seen_void |= bool((values == void).any())
        if ((values != 0) & (values != void)).any():
            return
    if seen_void:
        raise ValueError(
            f"{files.root}: its masks, the first being {entries[0].masks[0]}, hold 0 and the void value {void} alone, so no "
            f"class but the background occurs; did you mean data.options.kind='binary' (or another void than {void})?"
        )

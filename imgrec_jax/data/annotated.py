"""Detection sources: annotated folders and prepared TFDS sets as random-access sequences of examples.

An example holds image uint8 [H, W, 3] RGB and the keys of `Annotations.targets`, plus, where asked for by `targets`, box_mask
(bits of [N, H, W], `ops.bits`) and segmentation int32 [H, W] with pixel_valid. `source.info.meta["annotations"]` is the whole
split's table.

A TFDS set needs the features of `coco/2017` or `voc/2007`; sets of our own builders add run-length masks or an instance map.
The table of such a set is gathered once, without decoding images, and kept beside it.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import stat
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imgrec_jax.data.annotations import Annotations, encode_mask, from_images
from imgrec_jax.data.images import MAX_PIXELS, ImageSizeError, decode_image, encoded_size, orientation, read_image_file
from imgrec_jax.data.ops import bits
from imgrec_jax.data.ops import targets as target_ops
from imgrec_jax.data.progress import progress
from imgrec_jax.data.records import open_records, record_format, records_identity
from imgrec_jax.data.source import SourceInfo, digest, parse_split, split_range

TARGETS = ("boxes", "masks", "segmentation")


class FolderSplit(NamedTuple):
    """Annotated image files of one split."""

    annotations: Annotations
    paths: tuple[Path, ...]  # of image i
    origin: str = ""  # the file or folder that annotates them, for messages


class DetectionSource:
    """Examples of one split: `read(i)` gives the pixels, the annotations give the rest.

    read(i) -> {"image": uint8 [H, W, 3]} and optionally "instances" uint8 [H, W] (n + 1 where object n is visible), from which
    masks are cut; otherwise masks come from the annotations, and are empty where those hold boxes alone. targets: which of
    TARGETS the examples carry; where neither boxes nor masks are asked for, `info.class_names` begins with the background,
    class 0 of the segmentation. paths: of image i where each is a file of its own. origin: the file or folder that annotates
    them, for messages.

    An image whose size is not the annotated one raises `ImageSizeError`: its boxes would lie elsewhere.
    """

    def __init__(
        self,
        name: str,
        annotations: Annotations,
        read: Callable[[int], dict],
        targets: Sequence[str] = ("boxes",),
        identity: str = "",
        paths: Sequence[Path] = (),
        origin: str = "",
    ):
        unknown = sorted(set(targets) - set(TARGETS))
        if unknown or not targets:
            raise ValueError(f"targets={tuple(targets)!r}: expected one or more of {TARGETS}")
        self._annotations, self._read, self._targets = annotations, read, tuple(targets)
        self.paths, self.origin = tuple(paths), origin
        identity = identity or annotations.identity(masks="masks" in targets)
        names = (
            annotations.class_names if "boxes" in targets or "masks" in targets else ("background", *annotations.class_names)
        )
        self.info = SourceInfo(name, names, {"annotations": annotations}, identity)

    def __len__(self) -> int:
        return len(self._annotations)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.info.name}: example {index} of {len(self)}")
        pixels = self._read(index)
        self.check_size(index, pixels["image"].shape[:2])
        example = {"image": pixels["image"], **self._annotations.targets(index)}
        if self._targets == ("boxes",):
            return example
        if "instances" in pixels:
            size = pixels["instances"].shape
            numbers = range(1, len(example["boxes"]) + 1)
            example["box_mask"] = bits.pack_each((pixels["instances"] == n for n in numbers), size)
        elif self._annotations.segmentations is None and "segmentation" not in self._targets:
            example["box_mask"] = bits.empty(len(example["boxes"]), pixels["image"].shape[:2])
        else:
            example["box_mask"] = self._annotations.masks(index)
        if "segmentation" in self._targets:
            example = target_ops.segmentation_from_instances()(example, np.random.default_rng(0))
        if "masks" not in self._targets:
            del example["box_mask"]
        if "boxes" not in self._targets and "masks" not in self._targets:
            example = {k: v for k, v in example.items() if k != "boxes" and not k.startswith("box_")}
        return example

    @property
    def title(self) -> str:
        """Name and origin, for messages."""
        return f"{self.info.name} ({self.origin})" if self.origin else self.info.name

    def check_size(self, index: int, found: tuple[int, int]) -> None:
        """Raises ImageSizeError when the image's size is not the one that is annotated."""
        annotated = tuple(self._annotations.sizes[index].tolist())
        if tuple(found) == annotated:
            return
        path = self.paths[index] if self.paths else None
        tag = orientation(path) if path is not None else None
        turned = f"; its EXIF orientation tag is {tag}, and boxes are expected on the pixels as stored" if tag else ""
        raise ImageSizeError(
            f"{path or self._annotations.file_names[index]} has (height, width) {tuple(found)}, annotated as {annotated}"
            f"{f' in {self.origin}' if self.origin else ''}{turned}; correct the annotation or replace the image"
        )

    def relabelled(self, class_names: Sequence[str], category_ids: Sequence[int], known_from: str) -> DetectionSource:
        """This split with the labels of another one's class names; known_from: where those come from, for messages.

        Raises:
          ValueError: for a class that is not among them.
        """
        try:
            annotations = self._annotations.relabelled(class_names, category_ids)
        except ValueError as error:
            raise ValueError(f"{self.title}: {error}, as in {known_from}; rename the class or leave it out") from error
        return self if annotations is self._annotations else self._with(self.info.name, annotations, self._read, self.paths)

    def carrying(self, targets: Sequence[str]) -> DetectionSource:
        """The same split whose examples carry these TARGETS."""
        if self._targets == tuple(targets):
            return self
        made = DetectionSource(
            self.info.name, self._annotations, self._read, targets, self.info.identity, self.paths, self.origin
        )
        made.info = dataclasses.replace(made.info, base_size=self.info.base_size)
        return made

    def _with(self, name: str, annotations: Annotations, read: Callable, paths: Sequence[Path]) -> DetectionSource:
        made = DetectionSource(name, annotations, read, self._targets, self.info.identity, paths, self.origin)
        made.info = dataclasses.replace(made.info, base_size=self.info.base_size)
        return made

    def subset(self, split: str) -> DetectionSource:
        """The part of this base split that `split`, e.g. "train[:90%]", names."""
        start, stop = split_range(split, len(self))
        if (start, stop) == (0, len(self)):
            return self
        name = f"{self.info.name}[{start}:{stop}]"
        annotations = self._annotations.subset(np.arange(start, stop))
        part = self._with(name, annotations, lambda index: self._read(start + index), self.paths[start:stop])
        part.info = dataclasses.replace(part.info, base_size=len(self))
        return part


def open_folder(
    name: str, folder: FolderSplit, targets: Sequence[str] = ("boxes",), max_pixels: int = MAX_PIXELS, depth: int = 8
) -> DetectionSource:
    """Read images straight from their files; max_pixels: of the largest that is decoded; depth: see `decode_image`."""

    def read(index: int) -> dict:
        path = folder.paths[index]
        return {"image": decode_image(read_image_file(path, max_pixels), str(path), max_pixels, depth)}

    annotated = folder.annotations.identity(masks="masks" in targets)
    identity = digest("files", (annotated, *map(_described_size, folder.paths)))
    return DetectionSource(name, folder.annotations, read, targets, identity, folder.paths, folder.origin)


def _described_size(path: Path) -> str:
    """A file that is not there has no size; `check.check_files` says so, or whoever reads it."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return "absent"
    return f"{found.st_size}" if stat.S_ISREG(found.st_mode) else "absent"


def prepared_folder(name: str, data_dir: Path) -> Path:
    """The newest prepared version of `name` ("coco/2017", "coco_folder/bees", "voc/2007:5.0.0") under `data_dir`.

    Raises:
      FileNotFoundError: when there is none.
    """
    path, _, version = name.partition(":")
    versions = [p.parent for p in (Path(data_dir) / path).glob(f"{version or '*'}/dataset_info.json")]
    if not versions:
        raise FileNotFoundError(
            f"{name} is not prepared: expected {Path(data_dir) / path / (version or '<version>')}/dataset_info.json. "
            "Prepare an annotated folder with imgrec_jax.data.sets.coco.prepare or imgrec_jax.data.sets.voc.prepare; a set of "
            f"the TFDS catalogue with `tfds build {path} --file_format={record_format()} --data_dir={data_dir}`"
        )
    return max(versions, key=lambda p: [int(part) for part in p.name.split(".")])


def open_prepared(
    name: str,
    split: str,
    data_dir: Path,
    *,
    targets: Sequence[str] = ("boxes",),
    category_ids: tuple[int, ...] | None = None,
    in_memory: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> DetectionSource:
    """A prepared TFDS set with the features of coco, voc, `coco_folder` or `digit_scenes`; no TensorFlow.

    category_ids: the data set's own numbers of labels 1..K, where its metadata do not tell (the stock `coco` sets).
    in_memory: keep every image once decoded.
    """
    import tensorflow_datasets as tfds

    folder = prepared_folder(name, data_dir)
    builder = tfds.builder_from_directory(folder)
    base, _, _ = parse_split(split)
    if base not in builder.info.splits:
        raise ValueError(f"{name} has no split {base!r}; it has {sorted(builder.info.splits)}")
    features = builder.info.features
    encoded = {key: tfds.decode.SkipDecoding() for key in ("image", "instances") if key in features}
    records = open_records(builder, base, decoders=encoded)
    class_names = tuple(features["objects"]["label"].names)
    category_ids = category_ids or tuple((builder.info.metadata or {}).get("category_ids", ())) or None
    with_masks = "boxes" not in targets or len(targets) > 1
    table = folder / f"annotations-{base}-{records_identity(builder, base)[-8:]}.npz"
    before = folder / f"annotations-{base}.npz"  # as early versions called it, whatever it was of
    files = [Path(path) for path in builder.info.splits[base].filepaths]
    if not table.exists() and before.exists() and all(before.stat().st_mtime >= file.stat().st_mtime for file in files):
        table = before
    annotations = _table(name, base, records, table, class_names, category_ids, with_masks)

    def read(index: int) -> dict:
        record, file = records[index], f"{name} {base}: {annotations.file_names[index]}"
        pixels = {"image": decode_image(record["image"], file, max_pixels)}
        if with_masks and "instances" in record:
            pixels["instances"] = decode_image(record["instances"], file, max_pixels)[..., 0]
        return pixels

    read = functools.cache(read) if in_memory else read
    return DetectionSource(f"{name} {base}", annotations, read, targets).subset(split)


def _table(name, base, records, path: Path, class_names, category_ids, with_masks: bool) -> Annotations:
    """The annotations of a prepared split: from `path` if kept there, else gathered from the records and kept."""
    if path.exists():
        try:
            return Annotations.load(path, masks=with_masks)
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            print(f"note: {path} is damaged ({error}); the annotations are gathered again", file=sys.stderr, flush=True)
    steps = progress(range(len(records)), f"gathering the annotations of {name} {base}")
    images = [_describe(records[index], index) for index in steps]
    annotations = from_images(images, class_names=class_names, category_ids=category_ids)
    try:
        annotations.save(path)
    except OSError as error:
        print(f"note: {path} cannot be written ({error}); the annotations will be gathered again next time", file=sys.stderr)
    return annotations


def _describe(record: dict, index: int) -> dict:
    """One TFDS record -> what `from_images` takes."""
    objects = record["objects"]
    height, width = size = encoded_size(record["image"], bytes(record["image/filename"]).decode())
    normalised = np.asarray(objects["bbox"], np.float64).reshape(-1, 4)  # ymin, xmin, ymax, xmax in 0..1
    boxes = normalised[:, [1, 0, 3, 2]] * [width, height, width, height]
    if "is_difficult" in objects:
        boxes[:, :2] -= 1  # the stock `voc` sets keep VOC's counting of pixels from 1 (see `voc`)
    count = len(boxes)
    described = {
        "image_id": int(record.get("image/id", index + 1)),
        "file_name": bytes(record["image/filename"]).decode(),
        "size": size,
        "boxes": boxes,
        "labels": np.asarray(objects["label"]) + 1,
        # VOC's difficult objects are, like crowds, neither required nor forbidden
        "crowd": objects.get("is_crowd", objects.get("is_difficult", np.zeros(count, np.bool_))),
        "ids": objects.get("id", np.arange(1, count + 1)),
        "areas": objects.get("area", (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])),
    }
    if "segmentation" in objects:
        counts = [bytes(c) for c in objects["segmentation"]]
        described["segmentations"] = [{"size": [height, width], "counts": c} if c else None for c in counts]
    elif "instances" in record:
        instances = decode_image(record["instances"], described["file_name"])[..., 0]
        described["segmentations"] = [encode_mask(instances == n + 1) for n in range(count)]
    return described

"""Sources: random-access sequences of decoded examples.

A source has `len(source)`, `source[i] -> {name: numpy array}` (at least "image", uint8 [H, W, C]) and `source.info`. The sets
that can be opened are in `sets/`.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from imgrec_jax.data.images import MAX_PIXELS

# Sets that take at most so much, decoded, are kept in memory.
MAX_BYTES_IN_MEMORY = 2 * 2**30

_SPLIT = re.compile(r"^(?P<name>\w+)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?$")


@dataclass(frozen=True)
class SourceInfo:
    """What is known of a source before an example is read.

    Attributes:
      name: data set and split, for messages.
      class_names: names of the classes in label order; () where there are none.
      meta: whatever a kind of source adds on the host (file names, image ids, category ids).
      base_size: examples of the base split; None where the source is the whole of it.
      identity: "KIND:DIGEST" of what decides every example of the base split (see `digest`), told without decoding an image;
        "" where a source cannot say. Two kinds of digest of the same data are not comparable.
    """

    name: str
    class_names: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    identity: str = ""
    base_size: int | None = None


class Fingerprint(NamedTuple):
    """What a run remembers of a split, so that it notices when it is given another.

    Attributes:
      examples: how many.
      class_names: in label order.
      identity: of the base split, see `SourceInfo`.
    """

    examples: int
    class_names: tuple[str, ...]
    identity: str

    def differences(self, other: "Fingerprint") -> list[str]:
        """Lines `examples: 120 -> 121`, from this one to `other`; none where both can be the same split."""
        lines = []
        if self.examples != other.examples:
            lines.append(f"examples: {self.examples} -> {other.examples}")
        if tuple(self.class_names) != tuple(other.class_names):
            lines.append(f"classes: {', '.join(self.class_names)} -> {', '.join(other.class_names)}")
        mine, theirs = self.identity.split(":"), other.identity.split(":")
        if mine[0] == theirs[0] and mine != theirs:
            lines.append("names, sizes or contents of the files, or their annotations")
        return lines


def overlap(first: str, second: str, size: Callable[[str], int]) -> int:
    """How many examples two splits such as "train[:90%]" and "train[55000:]" share; size: examples of a base split."""
    (base, *_), (other, *_) = parse_split(first), parse_split(second)
    if base != other:
        return 0
    (a, b), (c, d) = (split_range(split, size(base)) for split in (first, second))
    return max(min(b, d) - max(a, c), 0)


def fingerprint(source: "Source") -> Fingerprint:
    return Fingerprint(len(source), tuple(source.info.class_names), source.info.identity)


def digest(kind: str, parts: Iterable[bytes | str | np.ndarray]) -> str:
    """ "KIND:SHA256" over parts of any length; where one ends and the next begins counts."""
    sha = hashlib.sha256()
    for part in parts:
        data: bytes | memoryview
        if isinstance(part, np.ndarray):
            sha.update(f"{part.dtype.str}{part.shape}".encode())
            data = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data if part.size else b""
        else:
            data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        sha.update(f"{len(data)}:".encode())
        sha.update(data)
    return f"{kind}:{sha.hexdigest()}"


class Request(NamedTuple):
    """What every opener of `sets/` is asked for: opener(request, **options of the set) -> Source.

    Attributes:
      name: as in `config.data.name`: "mnist:3.0.1", "coco/2017", "mask_folder", ...
      split: "train", "test[:100]", ...
      data_dir: of prepared sets.
      manual_dir: the user's own folder or file; None where none was given.
      targets: what examples carry beside the image: "label", "boxes", "segmentation".
      in_memory: keep the decoded split; None: where it fits.
      max_pixels: height x width above which no image is decoded.
      group, fold, bad_files, multi_label, prepare: of the user's own files, as in `config.data`.
      min_size, max_size: of detection, as in `config.data`; () and None are to be found.
    """

    name: str
    split: str
    data_dir: Path
    manual_dir: Path | None = None
    targets: tuple[str, ...] = ("label",)
    in_memory: bool | None = None
    max_pixels: int = MAX_PIXELS
    group: str = ""
    fold: str = ""
    bad_files: str = "stop"
    multi_label: bool = False
    prepare: bool = False
    min_size: tuple[int, ...] = ()
    max_size: int | None = None

    @property
    def folder(self) -> Path:
        """The user's own folder; ValueError where the config names none."""
        if self.manual_dir is None:
            raise ValueError(f"data.name={self.name!r} reads a folder: give it as config.data.manual_dir")
        return self.manual_dir


class Source(Protocol):
    info: SourceInfo

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class ArraySource:
    """Examples held as arrays with one leading axis."""

    def __init__(self, arrays: dict[str, np.ndarray], info: SourceInfo):
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"{info.name}: arrays of different lengths: {lengths}")
        self.arrays, self.info = arrays, info

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: array[index] for name, array in self.arrays.items()}


class Subset:
    """A contiguous part of a source."""

    def __init__(self, source: Source, start: int, stop: int, info: SourceInfo):
        self._source, self._start, self._stop, self.info = source, start, stop, info

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.info.name}: example {index} of {len(self)}")
        return self._source[self._start + index]


class Chosen:
    """Some examples of a source, in the order of `indices`."""

    def __init__(self, source: Source, indices: np.ndarray, info: SourceInfo):
        self._source, self._indices, self.info = source, indices, info

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[int(self._indices[index])]


def labels_of(source: Source) -> np.ndarray:
    """The labels of all examples, int [n]; read one by one where neither arrays nor what is known beforehand tell them."""
    known = source.info.meta.get("targets", {}).get("label")
    if known is None and isinstance(source, ArraySource):
        known = source.arrays["label"]
    return np.asarray(known) if known is not None else np.array([int(source[i]["label"]) for i in range(len(source))])


def few(source: Source, per_class: int, seed: int) -> Source:
    """So many examples of every class, drawn by the seed; those of a smaller number are among those of a larger one.

    Raises:
      ValueError: for a class with fewer examples, by name.
    """
    labels, order = labels_of(source), np.random.default_rng(seed).permutation(len(source))
    chosen = []
    for label in range(len(source.info.class_names) or int(labels.max()) + 1):
        members = order[labels[order] == label]
        if len(members) < per_class:
            name = source.info.class_names[label] if source.info.class_names else label
            raise ValueError(f"class {name!r} of {source.info.name} has {len(members)} examples, not {per_class}")
        chosen.append(members[:per_class])
    indices = np.sort(np.concatenate(chosen))
    targets = {name: np.asarray(values)[indices] for name, values in source.info.meta.get("targets", {}).items()}
    tied = {"tied": source.info.meta["tied"][indices]} if "tied" in source.info.meta else {}
    info = replace(
        source.info,
        name=f"{source.info.name}, {per_class} a class",
        base_size=source.info.base_size or len(source),
        meta={**source.info.meta, **({"targets": targets} if targets else {}), **tied},
    )
    if isinstance(source, ArraySource):
        return ArraySource({name: array[indices] for name, array in source.arrays.items()}, info)
    return Chosen(source, indices, info)


def parse_split(split: str) -> tuple[str, str | None, str | None]:
    """`train[5000:]` -> ("train", "5000", None).

    Raises:
      ValueError: for anything but `name`, `name[a:b]` with numbers or percentages.
    """
    match = _SPLIT.match(split)
    if not match:
        raise ValueError(f"split {split!r} is not of the form 'train', 'train[:55000]', 'train[55000:]' or 'train[:90%]'")
    return match["name"], match["start"], match["stop"]


def split_range(split: str, size: int) -> tuple[int, int]:
    """The [start, stop) of `split` in its base split of `size` examples; percentages round to the nearest example."""
    _, start, stop = parse_split(split)

    def position(text: str | None, default: int) -> int:
        if text is None:
            return default
        value = round(int(text[:-1]) * size / 100) if text.endswith("%") else int(text)
        return min(max(value + size if value < 0 else value, 0), size)

    first, last = position(start, 0), position(stop, size)
    if first >= last:
        raise ValueError(f"split {split!r} is empty: the base split has {size} examples")
    return first, last


def part(source: Source, split: str) -> Source:
    """The part of a base split that `split` names; arrays are sliced as views."""
    start, stop = split_range(split, len(source))
    if (start, stop) == (0, len(source)):
        return source
    info = replace(source.info, name=f"{source.info.name}[{start}:{stop}]", base_size=len(source))
    if isinstance(source, ArraySource):
        return ArraySource({name: array[start:stop] for name, array in source.arrays.items()}, info)
    return Subset(source, start, stop, info)


def default_data_dir() -> Path:
    """Where TFDS keeps prepared data: $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets").expanduser()

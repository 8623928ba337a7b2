"""Sources: random-access sequences of decoded examples.

A source has `len(source)`, `source[i] -> {name: numpy array}` (at least "image", uint8 [H, W, C]) and `source.info`. Sources
whose examples all have one shape and fit in memory are decoded once, kept beside the prepared data set as plain `.npy` files,
and read from there ever after.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

# tfds.builder reads at most this much of a set into memory (and keeps it decoded on disk); more is streamed.
MAX_BYTES_IN_MEMORY = 2 * 2**30

_SPLIT = re.compile(r"^(?P<name>\w+)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?$")


@dataclass(frozen=True)
class SourceInfo:
    """What is known of a source before an example is read.

    Attributes:
      name: data set and split, for messages.
      class_names: names of the classes in label order; () where there are none.
      meta: whatever a kind of source adds on the host (file names, image ids, category ids).
    """

    name: str
    class_names: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)


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


class TfdsSource:
    """A prepared TFDS split as ArrayRecord, decoded on access; no TensorFlow."""

    def __init__(self, data_source: Sequence[dict[str, Any]], info: SourceInfo, keys: tuple[str, ...]):
        self._data, self.info, self._keys = data_source, info, keys

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._data[index]
        return {key: np.asarray(example[key]) for key in self._keys}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [{key: np.asarray(example[key]) for key in self._keys} for example in self._data.__getitems__(indices)]


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
    info = SourceInfo(f"{source.info.name}[{start}:{stop}]", source.info.class_names, source.info.meta)
    if isinstance(source, ArraySource):
        return ArraySource({name: array[start:stop] for name, array in source.arrays.items()}, info)
    return Subset(source, start, stop, info)


def default_data_dir() -> Path:
    """Where TFDS keeps prepared data: $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets")


def open_tfds(name: str, split: str, data_dir: Path, keys: tuple[str, ...] = ("image", "label"), in_memory: bool | None = None):
    """Opens a split of a prepared TFDS set.

    Args:
      name: as `tfds.builder` takes it, e.g. "mnist:3.0.1" or "cifar10".
      split: `train`, `test[:90%]`, ...
      data_dir: the folder of prepared sets.
      keys: features to keep.
      in_memory: None keeps what has one shape and fits into MAX_BYTES_IN_MEMORY; False streams.

    Raises:
      ValueError: unknown split, with those that exist.
      FileNotFoundError: when the set is not prepared.
    """
    base, _, _ = parse_split(split)
    if in_memory is not False:
        cached = _open_decoded(name, base, data_dir, keys)
        if cached is not None:
            return part(cached, split)
    import tensorflow_datasets as tfds  # optional beside a decoded copy, and slow to import

    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.registered.DatasetNotFoundError as error:
        raise ValueError(f"TFDS knows no data set {name!r}; see https://www.tensorflow.org/datasets/catalog") from error
    if not builder.is_prepared():
        raise FileNotFoundError(f"{name} is not prepared in {data_dir}")
    if base not in builder.info.splits:
        raise ValueError(f"{name} has no split {base!r}; it has {sorted(builder.info.splits)}")
    missing = [key for key in keys if key not in builder.info.features]
    if missing:
        raise ValueError(f"{name} has no feature {missing[0]!r}; it has {sorted(builder.info.features)}")
    names = getattr(builder.info.features["label"], "names", None) if "label" in builder.info.features else None
    info = SourceInfo(f"{name} {base}", tuple(names or ()))
    source = TfdsSource(builder.as_data_source(base), info, keys)
    shape = builder.info.features["image"].shape
    fits = None not in shape and int(np.prod(shape)) * len(source) <= MAX_BYTES_IN_MEMORY
    if in_memory is False or (in_memory is None and not fits):
        return part(source, split)
    return part(_decode(source, name, base, data_dir), split)


def decoded_dir(name: str, base: str, data_dir: Path) -> Path:
    """Where the decoded copy of a base split lies."""
    return Path(data_dir) / "decoded" / name.replace(":", "/") / base


def _open_decoded(name: str, base: str, data_dir: Path, keys: tuple[str, ...]) -> ArraySource | None:
    folder = decoded_dir(name, base, data_dir)
    try:
        meta = json.loads((folder / "info.json").read_text())
        arrays = {key: np.load(folder / f"{key}.npy", mmap_mode="r", allow_pickle=False) for key in keys}
    except (OSError, ValueError):
        return None
    # One sequential read; indexing a memory map row by row would fault page by page.
    arrays = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
    return ArraySource(arrays, SourceInfo(f"{name} {base}", tuple(meta["class_names"])))


def _decode(source: TfdsSource, name: str, base: str, data_dir: Path) -> ArraySource:
    """Decodes a whole split in bulk and keeps the arrays beside the prepared set (best effort: the disk may be read-only)."""
    from imgrec_jax.data.progress import progress

    chunks: dict[str, list[np.ndarray]] = {}
    for start in progress(range(0, len(source), 1024), f"decoding {source.info.name}"):
        examples = source.__getitems__(range(start, min(start + 1024, len(source))))
        for key in examples[0]:
            chunks.setdefault(key, []).append(np.stack([example[key] for example in examples]))
    arrays = {key: np.concatenate(parts) for key, parts in chunks.items()}
    save_decoded(arrays, source.info.class_names, name, base, data_dir)
    return ArraySource(arrays, source.info)


def save_decoded(arrays: dict[str, np.ndarray], class_names: Sequence[str], name: str, base: str, data_dir: Path) -> None:
    """Writes the decoded copy of a base split; `info.json` comes last, so a torn copy is never read."""
    folder = decoded_dir(name, base, data_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "info.json").unlink(missing_ok=True)
        for key, array in arrays.items():
            np.save(folder / f"{key}.npy", array)
        (folder / "info.json").write_text(json.dumps({"class_names": list(class_names)}))
    except OSError as error:
        print(f"note: no decoded copy of {name} {base} kept ({error}); it will be decoded again next time")

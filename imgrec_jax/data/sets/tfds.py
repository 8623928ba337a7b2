"""Prepared TFDS sets, read without TensorFlow, and prepared by TFDS where they are not there.

Classification sets whose examples all have one shape and fit in memory are decoded once, kept beside the prepared set as plain
`.npy` files with their checksums, and read from there ever after.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imgrec_jax import at_hand
from imgrec_jax.data.annotated import prepared_folder
from imgrec_jax.data.files import alone, write_whole
from imgrec_jax.data.progress import progress
from imgrec_jax.data.records import Records, open_records, record_format, records_identity
from imgrec_jax.data.source import MAX_BYTES_IN_MEMORY, ArraySource, Request, Source, SourceInfo, digest, parse_split, part

HOST, HOST_TIMEOUT_S = "storage.googleapis.com", 4.0


def open_labelled(request: Request, *, keys: tuple[str, ...] = ("image", "label")) -> Source:
    """Opens a split of any TFDS set with "image" and "label", letting TFDS prepare it first where it is not there.

    Args:
      request: name as `tfds.builder` takes it, e.g. "cifar10"; in_memory None keeps what has one shape and fits into
        MAX_BYTES_IN_MEMORY, False streams.
      keys: features to keep.

    Raises:
      ValueError: unknown set, split or feature, with those that exist.
      FileNotFoundError: when the set is not prepared and cannot be; says what was tried.
    """
    return opened_or_prepared(lambda: open_prepared_labels(request, keys), request.name, request.data_dir)


class TfdsSource:
    """A prepared TFDS split, decoded on access; no TensorFlow."""

    def __init__(self, data_source: Records, info: SourceInfo, keys: tuple[str, ...]):
        self._data, self.info, self._keys = data_source, info, keys

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._data[index]
        return {key: np.asarray(example[key]) for key in self._keys}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [{key: np.asarray(example[key]) for key in self._keys} for example in self._data.__getitems__(indices)]


def open_prepared_labels(request: Request, keys: tuple[str, ...] = ("image", "label")) -> Source:
    """As `open_labelled`; FileNotFoundError when the set is not prepared."""
    name, data_dir, in_memory = request.name, request.data_dir, request.in_memory
    base, _, _ = parse_split(request.split)
    if in_memory is not False:
        cached = _open_decoded(name, base, data_dir, keys)
        if cached is not None:
            return part(cached, request.split)
    if importlib.util.find_spec("tensorflow_datasets") is None:  # optional beside a decoded copy, and slow to import
        raise FileNotFoundError(f"{name} {base} has no decoded copy in {data_dir}, and tensorflow_datasets is not installed")
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
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
    info = SourceInfo(f"{name} {base}", tuple(names or ()), identity=records_identity(builder, base))
    source = TfdsSource(open_records(builder, base), info, keys)
    shape = builder.info.features["image"].shape
    fits = None not in shape and int(np.prod(shape)) * len(source) <= MAX_BYTES_IN_MEMORY
    if in_memory is False or (in_memory is None and not fits):
        return part(source, request.split)
    return part(_decode(source, name, base, data_dir), request.split)


def decoded_dir(name: str, base: str, data_dir: Path) -> Path:
    """Where the decoded copy of a base split lies."""
    return Path(data_dir) / "decoded" / name.replace(":", "/") / base


def _open_decoded(name: str, base: str, data_dir: Path, keys: tuple[str, ...]) -> ArraySource | None:
    """The decoded copy, if it is there whole; one that is damaged is reported and no longer counts as there."""
    folder = decoded_dir(name, base, data_dir)
    if not (folder / "info.json").exists():
        return None
    try:
        meta = json.loads((folder / "info.json").read_text())
        noted, there = meta.get("records"), _records_of(name, base, data_dir)
        if noted and there and noted != there:  # without records it stands for them
            print(f"note: {folder} is of other records than those in {data_dir}; it is made again", file=sys.stderr, flush=True)
            return None
        # One sequential read; indexing a memory map row by row would fault page by page.
        arrays = {key: np.load(folder / f"{key}.npy", allow_pickle=False) for key in keys}
        sums = {key: digest("arrays", (array,)) for key, array in arrays.items()}
        names = tuple(meta["class_names"])
        if {key: meta.get("sums", sums)[key] for key in keys} != sums:  # copies of early versions have no sums
            raise ValueError("its checksum is not the one that was kept")
        if "sums" not in meta or (there and "records" not in meta):
            with contextlib.suppress(OSError):
                _write_info(folder, names, sums, name, base, data_dir)
        return ArraySource(arrays, SourceInfo(f"{name} {base}", names, identity=digest("arrays", sums.values())))
    except FileNotFoundError as error:
        reason = f"{Path(error.filename).name} is missing"
    except OSError:
        raise  # a failing disk is no damaged copy
    except (ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        reason = str(error)
    print(f"note: the decoded copy in {folder} is damaged ({reason}); it is made again", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):
        (folder / "info.json").unlink()
    return None


def _records_of(name: str, base: str, data_dir: Path) -> dict[str, int]:
    """{file: bytes} of the prepared records that a name means, in all their versions where it names none."""
    root = Path(data_dir) / name.replace(":", "/")
    files = [*root.rglob(f"*-{base}.*-of-*"), *root.rglob("dataset_info.json")]
    return {file.relative_to(root).as_posix(): file.stat().st_size for file in sorted(files)}


def _write_info(folder: Path, class_names: Sequence[str], sums: dict[str, str], name: str, base: str, data_dir: Path) -> None:
    text = json.dumps({"class_names": list(class_names), "sums": sums, "records": _records_of(name, base, data_dir)})
    write_whole(folder / "info.json", lambda path: path.write_text(text))


def _decode(source: TfdsSource, name: str, base: str, data_dir: Path) -> ArraySource:
    """Decodes a whole split in bulk and keeps the arrays beside the prepared set (best effort: the disk may be read-only)."""
    chunks: dict[str, list[np.ndarray]] = {}
    for start in progress(range(0, len(source), 1024), f"decoding {source.info.name}"):
        examples = source.__getitems__(range(start, min(start + 1024, len(source))))
        for key in examples[0]:
            chunks.setdefault(key, []).append(np.stack([example[key] for example in examples]))
    arrays = {key: np.concatenate(parts) for key, parts in chunks.items()}
    return save_decoded(arrays, source.info.class_names, name, base, data_dir)


def save_decoded(
    arrays: dict[str, np.ndarray], class_names: Sequence[str], name: str, base: str, data_dir: Path
) -> ArraySource:
    """Writes the decoded copy of a base split; `info.json` comes last, so a torn copy is never read."""
    folder = decoded_dir(name, base, data_dir)
    sums = {key: digest("arrays", (array,)) for key, array in arrays.items()}
    info = SourceInfo(f"{name} {base}", tuple(class_names), identity=digest("arrays", sums.values()))
    if at_hand.is_only():
        return ArraySource(arrays, info)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "info.json").unlink(missing_ok=True)
        for key, array in arrays.items():
            write_whole(folder / f"{key}.npy", functools.partial(np.save, arr=array))
        _write_info(folder, class_names, sums, name, base, data_dir)
    except OSError as error:
        print(f"note: no decoded copy of {name} {base} kept ({error}); it will be decoded again next time", file=sys.stderr)
    return ArraySource(arrays, info)


class RecordSource:
    """Prepared records, each turned into an example on access."""

    def __init__(self, records: Records, info: SourceInfo, convert: Callable[[dict[str, Any]], dict]):
        self._records, self.info, self._convert = records, info, convert

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        return self._convert(self._records[index])


def open_converted(request: Request, setup: Callable[[Any], tuple[tuple[str, ...], Callable]]) -> Source:
    """A prepared set whose records become examples one by one; setup: features -> (class names, record -> example)."""
    import tensorflow_datasets as tfds

    name, split = request.name, request.split
    builder = tfds.builder_from_directory(prepared_folder(name, request.data_dir))
    base, _, _ = parse_split(split)
    if base not in builder.info.splits:
        raise ValueError(f"{name} has no split {base!r}; it has {sorted(builder.info.splits)}")
    class_names, convert = setup(builder.info.features)
    info = SourceInfo(f"{name} {base}", class_names, identity=records_identity(builder, base))
    return part(RecordSource(open_records(builder, base), info, convert), split)


def opened_or_prepared(open_source: Callable[[], Source], name: str, data_dir: Path) -> Source:
    """`open_source()`, after letting TFDS download and prepare the set when it is not there."""
    try:
        return open_source()
    except FileNotFoundError:
        prepare_with_tfds(name, data_dir)
        return open_source()


def prepare_with_tfds(name: str, data_dir: Path) -> None:
    """Downloads and prepares a stock TFDS set; many of TFDS's builders read their files with TensorFlow."""
    at_hand.check(f"{name} in {data_dir}")
    import tensorflow_datasets as tfds

    try:  # TFDS itself would try for minutes
        socket.create_connection((HOST, 443), timeout=HOST_TIMEOUT_S).close()
    except OSError as error:
        raise FileNotFoundError(
            f"{name} is not prepared in {data_dir}, and this machine does not reach {HOST}, whence TFDS downloads ({error}). "
            f"Prepare it on a machine that does (file_format={record_format()!r}), and copy it there"
        ) from error
    print(f"{name} is not in {data_dir}; TFDS downloads and prepares it (once)", file=sys.stderr, flush=True)
    try:
        tfds.builder(name, data_dir=data_dir, file_format=record_format()).download_and_prepare()
    except Exception as error:
        needs_tf = importlib.util.find_spec("tensorflow") is None
        hint = "; its builder may need TensorFlow: pip install 'imgrec-jax[tf]'" if needs_tf else ""
        raise FileNotFoundError(
            f"{name} is not prepared in {data_dir}, and TFDS could not prepare it ({type(error).__name__}: {error}){hint}. "
            f"A set prepared elsewhere (file_format={record_format()!r}) can be copied there"
        ) from error


def download_and_prepare(builder) -> None:
    """`builder.download_and_prepare()` that neither asks the network for a ready-made copy nor prints to stdout."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()  # our builders show their own
    if builder.is_prepared():  # on a disk that cannot be written, perhaps
        return
    place = Path(builder.data_dir)
    lock = alone(place.with_name(f".{place.name}.lock"), f"prepares {builder.info.full_name}")
    with lock, contextlib.redirect_stdout(io.StringIO()):  # whoever comes second finds it there
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))

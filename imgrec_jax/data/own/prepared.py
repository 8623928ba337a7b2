"""Prepared images: decoded, at one size, in files of records; made once by all cores.

A preparation is a folder of shards, each with the list of what it holds; a shard takes its name when all of it is on the
disk. So a preparation that was killed goes on with the shards that are missing, and files that were added or changed make new
ones.

A record is height, width, channels (three little-endian uint16), then the pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imgrec_jax.data.files import alone, write_whole
from imgrec_jax.data.images import ImageFileError
from imgrec_jax.data.ops.geometry import resize
from imgrec_jax.data.ops.photometric import to_channels
from imgrec_jax.data.own.pictures import decode
from imgrec_jax.data.own.stores import Store, folder_store, open_store
from imgrec_jax.data.progress import progress
from imgrec_jax.data.records import BytesReader, count_bytes, open_bytes, write_bytes
from imgrec_jax.data.walking import Stamp

VERSION = 1
_SHARD = 1000  # images of one, or more where there were more than _MOST_SHARDS of them
_MOST_SHARDS = 1000
_HEAD = struct.Struct("<HHH")
_NO_RANDOMNESS = np.random.default_rng(0)


class Form(NamedTuple):
    """What images are made into: size (height, width) or () for their own; channels; depth 8 or 16 bits; window: of DICOM."""

    size: tuple[int, int] | tuple[()]
    channels: int
    depth: int
    max_pixels: int
    window: tuple[float, ...] = ()

    @property
    def dtype(self) -> type:
        return np.float32 if self.depth == 16 else np.uint8

    def of(self, image: np.ndarray) -> np.ndarray:
        """[H, W, 1 or 3] as it was decoded -> what the ops of evaluation make of it."""
        example = to_channels(self.channels)({"image": image}, _NO_RANDOMNESS)
        return resize(self.size)(example, _NO_RANDOMNESS)["image"] if self.size else example["image"]


class Prepared:
    """Images by name.

    `where`: {(name, *stamp): (shard, record)}.
    """

    def __init__(self, folder: Path, form: Form, say: bool = True):
        """say: which shards are damaged."""
        self._folder, self._form = folder, form
        self.where: dict[tuple[str, int, int], tuple[str, int]] = {}
        self.damaged: list[str] = []  # shards of which nothing can be read
        self._readers: dict[str, BytesReader] = {}
        for listed in sorted(folder.glob("[0-9a-f]*.json")):  # a file that is being written begins with a dot
            shard = listed.stem
            try:
                part = json.loads(listed.read_text("utf-8"))
                if (count := count_bytes(folder / shard)) != len(part):
                    raise ValueError(f"{count} images where {len(part)} were written")
                self.add(shard, part)
            except (ValueError, TypeError, FileNotFoundError) as error:  # not what a disk says that fails for a moment
                self.damaged.append(shard)
                if say:
                    line = f"note: {folder / shard} is damaged ({error}); it is prepared again"
                    print(line, file=sys.stderr, flush=True)

    def add(self, shard: str, part: Sequence[Sequence]) -> None:
        """What a shard holds: (name, size, time) each."""
        for record, (name, size, changed) in enumerate(part):
            self.where[(name, size, changed)] = (shard, record)

    def read(self, name: str, stamp: Stamp) -> np.ndarray:
        """[H, W, C]; KeyError for what is not prepared."""
        shard, record = self.where[(name, *stamp)]
        if shard not in self._readers:
            self._readers[shard] = open_bytes(self._folder / shard)
        try:
            data = self._readers[shard].read([record])[0]
            shape = _HEAD.unpack_from(data)
            return np.frombuffer(data, self._form.dtype, offset=_HEAD.size).reshape(shape)
        except (ValueError, RuntimeError, IndexError, OSError, struct.error) as error:
            raise ImageFileError(
                f"{self._folder / shard}: what was prepared of {name} is damaged ({' '.join(str(error).split())[:200]}); "
                f"remove {self._folder}, and the next start prepares the images again"
            ) from error


def folder_of(data_dir: Path, root: Path, form: Form) -> Path:
    key = hashlib.sha256(f"{VERSION} {os.path.realpath(root)} {tuple(form)}".encode("utf-8", "surrogateescape")).hexdigest()[
        :16
    ]
    return data_dir / "own" / "prepared" / f"{root.name[:40]}-{key}"


def prepare(store: Store, names: Sequence[str], form: Form, folder: Path, mean_pixels: int) -> Prepared:
    """Makes what is missing of these images.

    Args:
      mean_pixels: of an image as it is kept, for the estimate.

    Raises:
      ImageFileError: naming a file that cannot be decoded.
      ValueError: where the disk has not the room.
    """
    there = Prepared(folder, form)
    if not _missing(there, store, names):
        return there  # from a disk that cannot be written, too
    with alone(folder / ".lock", f"prepares images in {folder}") as is_alone:
        there = Prepared(folder, form, say=False)  # another process may have made them meanwhile
        if is_alone:  # what one left that was killed, and what is damaged
            for pattern in (".*.partial*", *(f"{shard}.*" for shard in there.damaged)):
                for file in folder.glob(pattern):
                    file.unlink(missing_ok=True)
        return _prepare(there, store, names, form, folder, mean_pixels)


def _missing(there: Prepared, store: Store, names: Sequence[str]) -> list[str]:
    return [name for name in names if (name, *store.stamps[name]) not in there.where]


def _prepare(there: Prepared, store: Store, names: Sequence[str], form: Form, folder: Path, mean_pixels: int) -> Prepared:
    todo = _missing(there, store, names)
    if not todo:
        return there
    _announce(store, todo, form, folder, mean_pixels, len(names))
    size = max(_SHARD, -(-len(todo) // _MOST_SHARDS))
    jobs = []
    for start in range(0, len(todo), size):
        part = [(name, *store.stamps[name]) for name in todo[start : start + size]]
        jobs.append((folder / hashlib.sha256(json.dumps(part).encode()).hexdigest()[:16], part))
    with _pool() as pool:
        done = _in_order(pool, store.root, form, jobs)
        for path, part in progress(done, f"preparing {len(todo):,} images", len(jobs)):
            there.add(path.name, part)
    return there


def _announce(store: Store, todo: Sequence[str], form: Form, folder: Path, mean_pixels: int, total: int) -> None:
    """What it will take, before it is taken."""
    tried = todo[:: max(len(todo) // 20, 1)][:20]
    began = time.perf_counter()
    for name in tried:
        _image(store, name, form)
    seconds = (time.perf_counter() - began) / len(tried) * len(todo) / (os.cpu_count() or 1)
    needed = len(todo) * (mean_pixels * form.channels * np.dtype(form.dtype).itemsize + _HEAD.size)
    free = shutil.disk_usage(folder).free
    print(
        f"preparing {len(todo):,} of {total:,} images in {folder}: about {needed / 2**20:,.0f} MB of {free / 2**20:,.0f} free, "
        f"and {seconds / 60:.1f} minutes on {os.cpu_count()} cores; a start that is broken off goes on",
        file=sys.stderr,
        flush=True,
    )
    if needed > 0.95 * free:
        raise ValueError(f"{folder} has no room for {needed:,} bytes; give another config.data.data_dir, or data.prepare=false")


def _image(store: Store, name: str, form: Form) -> np.ndarray:
    return form.of(decode(store.read(name), store.path(name), form.depth, form.max_pixels, form.window))


def _pool() -> Executor:
    # JAX's threads forbid a fork
    return ProcessPoolExecutor(
        os.cpu_count(), mp_context=get_context("spawn"), initializer=_leave_with_parent, initargs=(os.getpid(),)
    )


def _leave_with_parent(parent: int) -> None:
    """In a worker: its parent may be killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _in_order(pool: Executor, root: Path, form: Form, jobs: Sequence[tuple[Path, list]]) -> Iterator[tuple[Path, list]]:
    """The jobs, as they are done."""
    waiting = [pool.submit(_write_shard, root, form, path, part) for path, part in jobs]
    try:
        for job, future in zip(jobs, waiting, strict=True):
            future.result()
            yield job
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


_STORES: dict[Path, Store] = {}  # of a worker


def _write_shard(root: Path, form: Form, path: Path, part: list[tuple[str, int, int]]) -> None:
    if root not in _STORES:
        _STORES[root] = folder_store(root, form.max_pixels, {}) if root.is_dir() else open_store(root, form.max_pixels)
    store = _STORES[root]

    def records() -> Iterator[bytes]:
        for name, *_ in part:
            image: np.ndarray = np.ascontiguousarray(_image(store, name, form), form.dtype)
            yield _HEAD.pack(*image.shape) + image.tobytes()

    try:
        write_bytes(path, records())
    except (OSError, ValueError) as error:
        raise ImageFileError(str(error)) from None  # an error of a library may not come back from a worker
    write_whole(path.with_name(f"{path.name}.json"), lambda partial: partial.write_text(json.dumps(part), "utf-8") and None)

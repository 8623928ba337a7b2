"""The index: what every image file of a listing is, looked at once and kept; only what changed is looked at again.

It is written every few seconds while it is made, so that a start that was broken off goes on where it was.

Shape letters: N files.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import sys
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from imgrec_jax.data.files import write_whole
from imgrec_jax.data.images import MAX_PIXELS
from imgrec_jax.data.own.pictures import Picture, describe
from imgrec_jax.data.own.stores import Store
from imgrec_jax.data.progress import progress

VERSION = 2  # of what `describe` says
KEPT_FROM = 1000  # files; fewer are looked at in no time
_SAVE_EVERY_SECONDS = 10.0
_CHUNK = 64
_COLUMNS = [("height", "i4"), ("width", "i4"), ("channels", "i1"), ("depth", "i1"), ("notes", "i4"), ("digest", "u8")]


class Index:
    """Attributes:
    table: structured [N] with the columns of `Picture` but its problem.
    problems: of each file; "" for a good one.
    """

    def __init__(self, table: np.ndarray, problems: list[str]):
        self.table, self.problems = table, problems

    @property
    def good(self) -> np.ndarray:
        """bool [N]."""
        return np.array([not problem for problem in self.problems], np.bool_)

    def taken(self, at: np.ndarray) -> Index:
        """Those at these positions, or where bool [N] says so."""
        if at.dtype == np.bool_:
            if at.all():
                return self
            at = np.flatnonzero(at)
        return Index(self.table[at], [self.problems[i] for i in at.tolist()])


def of_pictures(pictures: Sequence[Picture]) -> Index:
    return Index(np.array([tuple(p[:-1]) for p in pictures], _COLUMNS), [p.problem for p in pictures])


def make(store: Store, names: Sequence[str], folder: Path | None, max_pixels: int = MAX_PIXELS) -> Index:
    """The index of the files `names` of a store.

    Args:
      folder: where indices are kept; None keeps none.
    """
    kept = _Kept(folder, store, max_pixels) if folder is not None and len(names) >= KEPT_FROM else None
    names = list(names)
    if kept and (same := kept.load_whole(names)) is not None:
        return same
    known = kept.load() if kept else {}
    found: list[Picture | None] = [known.get((name, *store.stamps[name])) for name in names]
    todo = [i for i, picture in enumerate(found) if picture is None]
    if todo:
        chunks = [todo[n : n + _CHUNK] for n in range(0, len(todo), _CHUNK)]
        saved = time.monotonic()
        workers = min(os.cpu_count() or 1, 16)
        with ThreadPoolExecutor(workers) as pool:
            results = pool.map(lambda chunk: [_describe(store, names[i], max_pixels) for i in chunk], chunks)
            shown = progress(results, f"looking at {len(todo):,} of {len(names):,} files of {store.root}", len(chunks))
            for chunk, pictures in zip(chunks, shown if len(todo) >= KEPT_FROM else results, strict=True):
                for i, picture in zip(chunk, pictures, strict=True):
                    found[i] = picture
                if kept and time.monotonic() - saved > _SAVE_EVERY_SECONDS:
                    kept.save(names, found)
                    saved = time.monotonic()
    if kept and (todo or len(known) != len(names)):
        kept.save(names, found)
    return of_pictures([picture for picture in found if picture is not None])


def _describe(store: Store, name: str, max_pixels: int) -> Picture:
    if store.stamps[name] == (-1, -1):
        return Picture(problem="is not there")
    try:
        data = store.read(name)
    except (ValueError, OSError) as error:
        return Picture(problem=str(error).removeprefix(store.path(name)).lstrip(": "))
    return describe(data, name, max_pixels)


class _Kept:
    """An index on the disk: best effort, for the disk may be full or read-only."""

    def __init__(self, folder: Path, store: Store, max_pixels: int):
        root = os.path.realpath(store.root)
        key = hashlib.sha256(f"{VERSION} {max_pixels} {root}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
        self.path, self._store = folder / f"{Path(root).name[:40]}-{key}.npz", store

    def load_whole(self, names: list[str]) -> Index | None:
        """The index, where it is of just these files as they are."""
        try:
            with np.load(self.path, allow_pickle=False) as file:
                if not np.array_equal(file["names"], _bytes("\0".join(names))):
                    return None
                if not np.array_equal(file["stamps"], self._stamps(names)):
                    return None
                return Index(file["table"], [""] * len(names))
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
            return None  # `load` says so

    def _stamps(self, names: Sequence[str]) -> np.ndarray:
        """int64 [N, 2]."""
        pairs = map(self._store.stamps.__getitem__, names)
        return np.fromiter(itertools.chain.from_iterable(pairs), np.int64, 2 * len(names)).reshape(-1, 2)

    def load(self) -> dict[tuple[str, int, int], Picture]:
        """{(name, stamp): what it is}; empty where nothing usable is kept."""
        try:
            with np.load(self.path, allow_pickle=False) as file:
                names = file["names"].tobytes().decode("utf-8", "surrogateescape").split("\0")
                stamps, rows = file["stamps"].tolist(), file["table"].tolist()
            return {(name, *stamp): Picture(*row) for name, stamp, row in zip(names, stamps, rows, strict=True)}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            print(f"note: the index {self.path} is damaged ({error}); it is made again", file=sys.stderr, flush=True)
            return {}

    def save(self, names: Sequence[str], pictures: Sequence[Picture | None]) -> None:
        """Without what has a problem: the next start may read it, with other rights or another package."""
        good = [(i, picture) for i, picture in enumerate(pictures) if picture is not None and not picture.problem]
        if not good:
            return
        done, index = [i for i, _ in good], of_pictures([picture for _, picture in good])
        arrays = {
            "names": _bytes("\0".join(names[i] for i in done)),
            "stamps": self._stamps([names[i] for i in done]),
            "table": index.table,
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, lambda path: np.savez(path, allow_pickle=False, **arrays))
        except OSError as error:
            with contextlib.suppress(OSError):
                print(f"note: the index cannot be kept ({error}); it will be made again next time", file=sys.stderr, flush=True)


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)

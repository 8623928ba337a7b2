"""What took long to find in many files, kept beside their index until they, or what is said of them, change."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from imgrec_jax.data.files import write_whole
from imgrec_jax.data.source import digest

VERSION = 1  # of what is kept: how splits are cut, and what of images is measured


class Memo:
    """Arrays by name, of one state of the files; best effort, for the disk may be full or read-only."""

    def __init__(self, folder: Path, root: Path, state: Iterable[bytes | str | np.ndarray]):
        """folder: where it is kept; root: of the files; state: of them, everything that decides what is found."""
        place = os.path.realpath(root)
        key = hashlib.sha256(f"found {place}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
        self._path, self._state = folder / f"{Path(place).name[:40]}-{key}.npz", digest(f"found{VERSION}", state)
        self._arrays: dict[str, np.ndarray] = {}
        try:
            with np.load(self._path, allow_pickle=False) as file:
                if str(file["state"]) == self._state:
                    self._arrays = {name: file[name] for name in file if name != "state"}
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
            pass  # it is found again

    def get(self, name: str, find: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of that name; `find` finds it where it is not kept."""
        if name not in self._arrays:
            self._arrays[name] = find()
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                kept = {"state": np.array(self._state), **self._arrays}
                write_whole(self._path, lambda path: np.savez(path, allow_pickle=False, **kept))
            except OSError:
                pass  # the index says so
        return self._arrays[name]

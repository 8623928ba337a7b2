"""The images of a listing as examples: read in place, or from what was prepared, and kept in memory where they fit.

Shape letters: N examples, H W C image.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from imgrec_jax.data.images import Undecoded, decode_reduced
from imgrec_jax.data.own.listing import Listing
from imgrec_jax.data.own.pictures import Picture, decode
from imgrec_jax.data.own.prepared import Form, Prepared, folder_of, prepare
from imgrec_jax.data.source import Request, SourceInfo, digest


class Images:
    """The images of a listing, all made into one form; table: what is known of each, as in its `Index`."""

    def __init__(self, listing: Listing, table: np.ndarray, form: Form):
        self.form = form
        self._listing, self._table = listing, table
        self._records: Prepared | None = None

    def make_ready(self, request: Request) -> None:
        """Makes the prepared images where they are not; from now on they are read in place of the files."""
        listing, form, table = self._listing, self.form, self._table
        folder = folder_of(request.data_dir, listing.store.root, form)
        pixels = int(np.prod(form.size)) if form.size else int((table["height"].astype(np.int64) * table["width"]).mean())
        self._records = prepare(listing.store, listing.names, form, folder, pixels)

    def __getitem__(self, i: int) -> np.ndarray:
        """Image i with its channels and size, [H, W, C]: what the ops of evaluation make of the file."""
        if self._records is not None:
            name = self._listing.names[i]
            return self._records.read(name, self._listing.store.stamps[name])
        return self.form.of(self._read(i))

    def _read(self, i: int) -> np.ndarray:
        """Image i as it is, [H, W, 1 or 3]."""
        listing, depth = self._listing, self.form.depth
        if listing.pixels is None:
            name, store = listing.names[i], listing.store
            return decode(store.read(name), store.path(name), depth, self.form.max_pixels, self.form.window)
        image = listing.pixels[i]
        image = image if image.ndim == 3 else image[..., None]
        if image.dtype == np.uint8 and depth == 8:
            return image
        white = {"uint8": 255, "uint16": 65535}.get(image.dtype.name, 1)
        share = image.astype(np.float32) / np.float32(white)
        return share if depth == 16 else np.rint(share * 255).astype(np.uint8)

    def undecoded(self, i: int, channels: int) -> Undecoded | None:
        """Image i as a JPEG that waits to be told its size, if it has so many channels (0: any); None for other images, and
        where all are brought to one size."""
        row, name, store, form = self._table[i], self._listing.names[i], self._listing.store, self.form
        as_it_is = not form.size and form.depth == 8 and row["channels"] == form.channels and not row["notes"]
        as_it_is = as_it_is and channels in (0, form.channels)
        if self._listing.pixels is not None or self._records is not None or not as_it_is:
            return None
        if not name.lower().endswith((".jpg", ".jpeg")):
            return None

        def read(least: tuple[int, int]) -> np.ndarray:
            data = store.read(name)
            image = decode_reduced(data, store.path(name), least, form.channels)
            return self._read(i) if image is None else image

        return Undecoded((int(row["height"]), int(row["width"]), form.channels), read)


class Part:
    """Some of the images, read when they are first asked for, and kept where `keep` says that they fit."""

    def __init__(self, images: Images, at: np.ndarray, *, keep: bool):
        self._images, self._at = images, at
        shape = (len(at), *images.form.size, images.form.channels)
        self._kept = np.zeros(shape, images.form.dtype) if keep else None
        self._there = np.zeros(len(at), np.bool_)

    def __getitem__(self, index: int) -> np.ndarray:
        if self._kept is not None and self._there[index]:
            return self._kept[index]
        image = self._images[int(self._at[index])]
        if self._kept is not None:
            self._kept[index] = image
            self._there[index] = True
        return image

    def undecoded(self, index: int, channels: int) -> np.ndarray | Undecoded:
        """The image, or what reads a JPEG of so many channels, 0 for any, at the resolution that is asked for."""
        return self._images.undecoded(int(self._at[index]), channels) or self[index]

    def all(self) -> np.ndarray:
        """Every image of those that are kept, [N, H, W, C]."""
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(self.__getitem__, range(len(self._at))))
        assert self._kept is not None
        return self._kept


class Examples:
    """Images read on access, and the arrays of their targets."""

    def __init__(self, images: Part, targets: dict[str, np.ndarray], info: SourceInfo):
        self._images, self._targets, self.info = images, targets, info

    def __len__(self) -> int:
        return len(next(iter(self._targets.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.info.name}: example {index} of {len(self)}")
        return {"image": self._images[index], **{name: array[index] for name, array in self._targets.items()}}

    def undecoded(self, index: int, channels: int) -> dict[str, Any]:
        """As `self[index]`, its image perhaps one that waits to be told its size, if it has so many channels (0: any)."""
        image = self._images.undecoded(index, channels)
        return {"image": image, **{name: array[index] for name, array in self._targets.items()}}


def picture_of(image: np.ndarray) -> Picture:
    """What an array [H, W] or [H, W, C] among others is, as `own.pictures` says it of a file."""
    height, width = image.shape[:2]
    deep = image.dtype == np.uint16 or image.dtype.kind == "f"
    problem = ""
    if not (image.dtype in (np.uint8, np.uint16) or deep):
        problem = f"an array of {image.dtype}; expected uint8, uint16 or floats of 0..1"
    elif image.dtype.kind == "f" and not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
        problem = "a float image with values outside 0..1"
    key = int(digest("image", (image,)).partition(":")[2][:16], 16)
    return Picture(height, width, 1 if image.ndim == 2 or image.shape[2] == 1 else 3, 16 if deep else 8, 0, key, problem)

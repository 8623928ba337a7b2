"""Files: listing folders and zips, cutting splits by hashed names, writing without a torn file."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import lzma
import os
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from imgrec_jax.data.images import MAX_PIXELS, ImageFileError, check_size, read_image_file
from imgrec_jax.data.walking import Stamp, is_hidden, walk

IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class Files(NamedTuple):
    """The image files under a root, by their path from there."""

    root: Path
    names: tuple[PurePosixPath, ...]
    read: Callable[[PurePosixPath], bytes]  # as `read_image_file`
    size: Callable[[PurePosixPath], int]  # of the file, in bytes


def list_files(root: str | Path, max_pixels: int = MAX_PIXELS) -> Files:
    """The files of a folder, of a zip file, or of the one zip file that a folder holds; max_pixels: see `check_image`.

    Raises:
      FileNotFoundError: when there is no such folder or zip file.
    """
    root = Path(root).expanduser()
    shown = [root] if root.is_file() else sorted(path for path in root.glob("*") if not is_hidden(path.name))
    if not root.is_dir() and not (root.is_file() and zipfile.is_zipfile(root)):
        raise FileNotFoundError(f"{root} is neither a folder nor a zip file; give the folder that holds images and masks")
    read: Callable[[PurePosixPath], bytes]
    size: Callable[[PurePosixPath], int]
    if len(shown) == 1 and shown[0].is_file() and (root.is_file() or shown[0].suffix.lower() == ".zip"):
        try:
            archive = zipfile.ZipFile(shown[0])
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise ValueError(f"{shown[0]}: no zip file that can be read ({error}); was it copied as a whole?") from error
        found, read = archive.namelist(), functools.partial(read_member, archive, shown[0], max_pixels)
        size = lambda name: archive.getinfo(str(name)).file_size  # noqa: E731
    else:
        found = [name for name, there in walk(root).items() if there != (-1, -1)]
        read = lambda name: read_image_file(root / name, max_pixels)  # noqa: E731
        size = lambda name: (root / name).stat().st_size  # noqa: E731
    names = sorted(PurePosixPath(name) for name in found if not name.endswith("/"))
    images = [n for n in names if n.suffix.lower() in IMAGES and not any(map(is_hidden, n.parts))]
    return Files(root, tuple(images), read, size)


def folders(root: Path) -> list[Path]:
    """The folders below a folder in which, at some depth, a file lies; as `walk`."""
    names = {name.rpartition("/")[0] for name in walk(root)}
    return sorted({root / above for name in names if name for above in (name, *map(str, PurePosixPath(name).parents))} - {root})


def only_folder(root: Path) -> Path | None:
    """The folder that a folder holds and nothing else; None where it is not so."""
    there = [path for path in root.iterdir() if not is_hidden(path.name)] if root.is_dir() else []
    return there[0] if len(there) == 1 and there[0].is_dir() else None


def stamp(entry: os.DirEntry | Path) -> Stamp:
    """Of a file; (-1, -1) where nothing is there."""
    try:
        status = entry.stat()
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, status.st_mtime_ns


def read_member(archive: zipfile.ZipFile, path: Path, max_pixels: int, name: PurePosixPath | str) -> bytes:
    """A member of a zip file; its declared size is held against the image's before it is unpacked."""
    try:
        size = archive.getinfo(str(name)).file_size
        check_size(lambda: archive.open(str(name)), f"{path}: {name}", size, max_pixels)
        return archive.read(str(name))
    except ImageFileError:
        raise
    # RuntimeError: encrypted; NotImplementedError: an unknown compression
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ImageFileError(f"{path}: {name} cannot be unpacked ({error}); pack the archive again") from error


def split_by_hash(names: Sequence[str], fractions: Sequence[tuple[str, float]], seed: int) -> dict[str, list[str]]:
    """{split: its names, sorted}, cut from all names in the order of the SHA-256 of "SEED/NAME".

    Which split a name falls into depends on the names alone: adding one moves few others.
    """
    order = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest())
    stops = np.rint(np.cumsum([0.0, *(share for _, share in fractions)]) * len(order)).astype(int)
    return {split: sorted(order[stops[n] : stops[n + 1]]) for n, (split, _) in enumerate(fractions)}


@contextlib.contextmanager
def alone(lock: Path, doing: str) -> Iterator[bool]:
    """Waits until no other process holds this file, and yields whether it is held now: a system or a disk may have no locks.

    doing: what the other one does, "prepares images in ..."; said where it has to wait.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another process that {doing}", file=sys.stderr, flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            held = True
        except (ImportError, OSError):
            held = False
        yield held


def is_replaceable(path: Path) -> bool:
    """Whether a new file may take the place of what is there; a FIFO, a device or a socket is written into."""
    return not path.exists() or path.is_file() or path.is_dir()


def without_links(path: Path) -> Path:
    """The file that is written where a symbolic link to one is given; the link stays."""
    return Path(os.path.realpath(path)) if path.is_symlink() and is_replaceable(path) else path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """`write` fills a temporary file beside `path`, which then takes its name: a kill leaves the old file or the new one.

    What is no file (`is_replaceable`) gets the bytes of one instead.
    """
    if not is_replaceable(path):
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / path.name
            write(made)
            with made.open("rb") as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
        return
    path = without_links(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial{path.suffix}")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)

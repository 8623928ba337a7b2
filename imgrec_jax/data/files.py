"""Files: listing folders and zips, decoding images, cutting splits by hashed names, writing without a torn file."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class Files(NamedTuple):
    """The image files under a root, by their path from there."""

    root: Path
    names: tuple[PurePosixPath, ...]
    read: Callable[[PurePosixPath], bytes]
    size: Callable[[PurePosixPath], int]  # of the file, in bytes


def list_files(root: str | Path) -> Files:
    """The files of a folder, of a zip file, or of the one zip file that a folder holds.

    Raises:
      FileNotFoundError: when there is no such folder or zip file.
    """
    root = Path(root).expanduser()
    zips = [root] if root.is_file() else sorted(root.glob("*.zip"))
    if not root.exists() or (root.is_file() and not zipfile.is_zipfile(root)):
        raise FileNotFoundError(f"{root} is neither a folder nor a zip file; give the folder that holds images and masks")
    if len(zips) == 1 and (root.is_file() or len(list(root.iterdir())) == 1):
        archive = zipfile.ZipFile(zips[0])
        names, read = archive.namelist(), lambda name: archive.read(str(name))
        size = lambda name: archive.getinfo(str(name)).file_size  # noqa: E731
    else:
        names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
        read = lambda name: (root / name).read_bytes()  # noqa: E731
        size = lambda name: (root / name).stat().st_size  # noqa: E731
    names = sorted(PurePosixPath(name) for name in names if not name.endswith("/"))
    hidden = lambda name: any(p.startswith((".", "__MACOSX")) for p in name.parts)  # noqa: E731
    return Files(root, tuple(n for n in names if n.suffix.lower() in IMAGES and not hidden(n)), read, size)


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Encoded image -> uint8 [H, W, 3] RGB, as stored: the orientation tag is ignored, for boxes are drawn on stored pixels.

    Raises:
      ValueError: naming the file, when the bytes are not an image.
    """
    import cv2

    image = None
    if data:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ValueError(f"{name}: {len(data)} bytes that are no image OpenCV can decode; replace the file")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def encoded_size(data: bytes) -> tuple[int, int]:
    """(height, width) from an image's header, without decoding its pixels."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return image.height, image.width


def split_by_hash(names: Sequence[str], fractions: Sequence[tuple[str, float]], seed: int) -> dict[str, list[str]]:
    """{split: its names, sorted}, cut from all names in the order of the SHA-256 of "SEED/NAME".

    Which split a name falls into depends on the names alone: adding one moves few others.
    """
    order = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    stops = np.rint(np.cumsum([0.0, *(share for _, share in fractions)]) * len(order)).astype(int)
    return {split: sorted(order[stops[n] : stops[n + 1]]) for n, (split, _) in enumerate(fractions)}


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """`write` fills a temporary file beside `path`, which then takes its name: a kill leaves the old file or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial{path.suffix}")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)

"""Stores: a folder, zip or tar as names and bytes; links to folders are followed, hidden files are passed over."""

from __future__ import annotations

import functools
import lzma
import posixpath
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, cast

from imgrec_jax.data.files import read_member
from imgrec_jax.data.images import MAX_PIXELS, ImageFileError, read_image_file
from imgrec_jax.data.source import MAX_BYTES_IN_MEMORY
from imgrec_jax.data.walking import Stamp, is_hidden, walked

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class Store(NamedTuple):
    """Files by name.

    Attributes:
      root: the folder or archive.
      stamps: {name from the root, "/" between folders: (bytes, what changes with the content: time, checksum)}, in the order of
        names; (-1, -1) for a link to nothing.
      read: name -> bytes; ImageFileError or FileNotFoundError, naming the file, where it cannot.
      path: name -> how messages call it.
    """

    root: Path
    stamps: dict[str, Stamp]
    read: Callable[[str], bytes]
    path: Callable[[str], str]


def open_store(root: Path, max_pixels: int = MAX_PIXELS) -> Store:
    """The store of a folder or archive.

    Raises:
      FileNotFoundError, ValueError: where there is none, or it cannot be read.
    """
    if root.is_dir():
        return folder_store(root, max_pixels)
    if not root.is_file():
        raise FileNotFoundError(
            f"config.data.manual_dir={root} does not exist; give the folder, table or archive of your images"
        )
    if zipfile.is_zipfile(root):
        return _zip_store(root, max_pixels)
    if _is_tar(root):
        return _tar_store(root)
    raise ValueError(f"{root} is neither a folder nor a zip or tar that can be read; was it copied as a whole?")


def folder_store(root: Path, max_pixels: int = MAX_PIXELS, stamps: dict[str, Stamp] | None = None) -> Store:
    """stamps: of the files that count; None lists the folder. A name may be an absolute path, too."""
    return Store(
        root,
        walked(root) if stamps is None else stamps,
        lambda name: read_image_file(root / name, max_pixels),
        lambda name: str(root / name),
    )


def _zip_store(path: Path, max_pixels: int) -> Store:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ValueError(f"{path}: no zip file that can be read ({error}); was it copied as a whole?") from error
    members = {i.filename: (i.file_size, i.CRC) for i in archive.infolist() if not i.is_dir() and _is_shown(i.filename)}
    return Store(path, dict(sorted(members.items())), functools.partial(read_member, archive, path, max_pixels), _inside(path))


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except (OSError, EOFError, zlib.error, lzma.LZMAError):  # compressed, and damaged
        return False


def _tar_store(path: Path) -> Store:
    """A tar, compressed or not; one that is compressed is unpacked into memory, for nothing in it can be found otherwise."""
    try:
        with tarfile.open(path) as archive:
            members = {name: m for name, m in _unlinked(archive).items() if _is_shown(name)}
            there = {m.offset: m for m in members.values() if m is not None}
            kept = None
            with path.open("rb") as file:
                packed = b"ustar" not in file.read(512)[257:265]
            if packed:
                if (size := sum(member.size for member in there.values())) > MAX_BYTES_IN_MEMORY:
                    raise ValueError(f"{path} holds {size:,} bytes, compressed; unpack it and give the folder")
                kept = {at: cast(IO[bytes], archive.extractfile(member)).read() for at, member in there.items()}
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{path}: no tar file that can be read ({error}); was it copied as a whole?") from error

    def read(name: str) -> bytes:
        if (member := members[name]) is None:
            raise FileNotFoundError(f"{path}: {name} is a link to what is not there")
        if kept is not None:
            return kept[member.offset]
        with path.open("rb") as file:
            file.seek(member.offset_data)
            data = file.read(member.size)
        if len(data) < member.size:
            raise ImageFileError(f"{path}: {name} is cut off; pack the archive again")
        return data

    # Packed with one time for all, members of one size differ in nothing that a tar's heads tell; the archive's own time does.
    times = {int(member.mtime) for member in members.values() if member}
    when = path.stat().st_mtime_ns if len(times) == 1 else 0
    stamps = {name: (m.size, int(m.mtime) ^ when) if m else (-1, -1) for name, m in sorted(members.items())}
    return Store(path, stamps, read, _inside(path))


def _unlinked(archive: tarfile.TarFile) -> dict[str, tarfile.TarInfo | None]:
    """{name: the member that holds its bytes}, links among the members followed; None for a link to what is not there."""
    members = {posixpath.normpath(member.name): member for member in archive}
    files: dict[str, tarfile.TarInfo | None] = {name: member for name, member in members.items() if member.isreg()}
    links = {}
    for name, member in members.items():
        if member.islnk():
            links[name] = posixpath.normpath(member.linkname)
        elif member.issym():
            links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
    folders = {above for name in files for above in map(str, PurePosixPath(name).parents)} - {"."} if links else set()
    for name, target in links.items():
        chain = {name}
        while target in links and target not in chain:
            chain.add(target)
            target = links[target]
        if target in folders:
            below = {f"{name}/{rest.removeprefix(f'{target}/')}": rest for rest in files if rest.startswith(f"{target}/")}
            files |= {linked: files[rest] for linked, rest in below.items() if not name.startswith(f"{target}/")}
        else:
            files[name] = files.get(target)
    return files


def _is_shown(name: str) -> bool:
    return not any(is_hidden(part) for part in name.split("/"))


def _inside(path: Path) -> Callable[[str], str]:
    return lambda name: f"{path}: {name}"

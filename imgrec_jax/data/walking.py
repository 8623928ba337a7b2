"""Listing a folder with many files, also by a process of its own while this one imports what it needs.

As a program (`python -I -S walking.py FOLDER`) it writes what `walk` finds to stdout; it needs the standard library alone.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import marshal
import os
import subprocess
import sys

Stamp = tuple[int, int]  # of a file: bytes, what changes with the content

_LEFT_BEHIND = {"__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir"}
_AHEAD: dict[str, subprocess.Popen] = {}


def is_hidden(name: str) -> bool:
    """Of one folder or file: what systems leave behind."""
    return name.startswith(".") or name in _LEFT_BEHIND


def walk(root: str | os.PathLike) -> dict[str, Stamp]:
    """{name from the root: stamp} of every file below a folder that is not hidden, by name; links to folders are followed.

    Stamps are (-1, -1) for a link to nothing, or to itself.

    Raises:
      ValueError: for a folder that cannot be read.
    """
    found: list[tuple[str, Stamp]] = []
    # (folder, its name from the root, the folders above it: a link to one of them would never end)
    waiting: list[tuple[str, str, frozenset[tuple[int, int]]]] = [(str(root), "", frozenset())]
    while waiting:
        folder, prefix, above = waiting.pop()
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in above:
            continue
        above |= {(here.st_dev, here.st_ino)}
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise ValueError(f"{folder} cannot be read ({error.strerror}); allow it, or move it away") from error
        for entry in entries:  # hundreds of thousands, perhaps: few calls
            name = entry.name
            if name[0] == "." or name in _LEFT_BEHIND:
                continue
            try:
                if entry.is_dir():
                    waiting.append((entry.path, f"{prefix}{name}/", above))
                    continue
                status = entry.stat()
                found.append((prefix + name, (status.st_size, status.st_mtime_ns)))
            except OSError:
                found.append((prefix + name, (-1, -1)))
    return dict(sorted(found))


def begin(root: str | os.PathLike) -> None:
    """Another process begins to walk a folder; `walked` takes what it found."""
    path = _key(root)
    if path not in _AHEAD and os.path.isdir(path):
        command = [sys.executable, "-I", "-S", __file__, path]
        with contextlib.suppress(OSError):  # no room for a process: `walked` walks
            _AHEAD[path] = process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            atexit.register(process.kill)


def walked(root: str | os.PathLike) -> dict[str, Stamp]:
    """As `walk`; what `begin` began is taken once."""
    process = _AHEAD.pop(_key(root), None)
    if process is None:
        return walk(root)
    with process:
        data = process.stdout.read() if process.stdout else b""
    if process.returncode:  # what cannot be listed is told by who asked
        return walk(root)
    joined, sizes, times = marshal.loads(data)
    numbers = array.array("q"), array.array("q")
    for values, packed in zip(numbers, (sizes, times), strict=True):
        values.frombytes(packed)
    return dict(zip(joined.split("\0"), zip(*numbers, strict=True), strict=True)) if joined else {}


def _key(root: str | os.PathLike) -> str:
    return os.path.abspath(os.path.expanduser(root))


def _main(root: str) -> None:
    found = walk(root)
    columns = (array.array("q", column).tobytes() for column in zip(*found.values(), strict=True)) if found else (b"", b"")
    marshal.dump(("\0".join(found), *columns), sys.stdout.buffer)


if __name__ == "__main__":
    _main(sys.argv[1])

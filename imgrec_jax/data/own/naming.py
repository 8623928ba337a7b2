"""Which file of a store a table means."""

from __future__ import annotations

import functools
import os
import posixpath
from collections.abc import Sequence
from pathlib import PurePosixPath

from imgrec_jax.data.own.division import canonical_split, split_in
from imgrec_jax.data.own.listing import PICTURES
from imgrec_jax.data.own.stores import Store
from imgrec_jax.data.walking import walk

_NOWHERE = (-1, -1)
_ENDS = {end: rank for rank, end in enumerate(end for suffix in PICTURES for end in (suffix, suffix.upper()))}


def named(store: Store, folder: PurePosixPath, texts: Sequence[str], splits: Sequence[str]) -> list[tuple[str, str]]:
    """(name in the store, what is wrong with it) of each file that a table in `folder` names; wrong is "" for most.

    From the table's folder or absolute, perhaps without its suffix. Where none of the files is there, the table was written
    for another place: without the folders in front, in which the set lay there; or by an end of the path that one file has.

    Args:
      splits: of each file, "" where nothing tells; it decides where several files have an end.
    """
    places = _Places(store, folder)
    plain = [places.plain(text) if text else "" for text in texts]
    if any(map(places.there, plain)):
        return [(name, "") for name in plain]
    if not any(plain):
        return [("", "")] * len(plain)
    places.look_below()
    found = [places.elsewhere(text, split) for text, split in zip(texts, splits, strict=True)]
    return [other if other[0] or other[1] else (name, "") for name, other in zip(plain, found, strict=True)]


def count_there(store: Store, folder: PurePosixPath, texts: Sequence[str], splits: Sequence[str]) -> int:
    """How many of the texts name a file that is there; as `named`."""
    places = _Places(store, folder)
    return sum(bool(wrong) or places.there(name) for name, wrong in named(store, folder, texts, splits))


class _Places:
    def __init__(self, store: Store, folder: PurePosixPath):
        self._store, self._folder, self._on_disk = store, folder, store.root.is_dir()
        self._listed = bool(store.stamps)  # a table that is given alone has none

    def plain(self, text: str) -> str:
        """The name that is meant, whether it is there or not."""
        absolute = self._on_disk and os.path.isabs(text)
        return self._spelled(text if absolute else str(self._folder / text.replace("\\", "/")))

    def there(self, name: str) -> bool:
        if (stamp := self._store.stamps.get(name)) is not None:
            return stamp != _NOWHERE
        return bool(name) and not self._is_listed(name) and os.path.isfile(os.path.join(self._store.root, name))

    def _spelled(self, name: str) -> str:
        """The name with its suffix, where it is there with one alone."""
        if name.lower().endswith(PICTURES) or self.there(name):
            return name
        if self._is_listed(name):
            return min(self._by_stem.get(name, ((0, name),)))[1]
        return next(filter(self.there, (name + end for end in _ENDS)), name)

    def _is_listed(self, name: str) -> bool:
        """Whether the store's list says if it is there."""
        return not self._on_disk or (self._listed and ".." not in name and not os.path.isabs(name))

    @functools.cached_property
    def _by_stem(self) -> dict[str, list[tuple[int, str]]]:
        """{path without suffix: (the rank of its suffix, path)}."""
        found: dict[str, list[tuple[int, str]]] = {}
        for name, stamp in self._store.stamps.items():
            stem, dot, end = name.rpartition(".")
            if (rank := _ENDS.get(dot + end)) is not None and stamp != _NOWHERE:
                found.setdefault(stem, []).append((rank, name))
        return found

    def look_below(self) -> None:
        """Lists what `elsewhere` looks through."""
        try:
            stamps = self._store.stamps if self._listed else walk(self._store.root) if self._on_disk else {}
        except ValueError:  # some folder beside a table cannot be read: the files are not there, and this is told
            stamps = {}
        names = [name for name, stamp in stamps.items() if stamp != _NOWHERE and name.lower().endswith(PICTURES)]
        self._by_end: dict[str, list[str]] = {}
        for name in names:
            last = posixpath.basename(name)
            for end in (last, posixpath.splitext(last)[0]):
                self._by_end.setdefault(end, []).append(name)
        depth = len(self._folder.parts)
        self._tops = {name.split("/")[depth] for name in names if name.count("/") > depth}
        root = self._store.root
        self._own = {root.name, root.name.split(".")[0], self._folder.name}

    def elsewhere(self, text: str, split: str) -> tuple[str, str]:
        parts = PurePosixPath(text.replace("\\", "/")).parts
        if not parts:
            return "", ""
        for n in range(1, len(parts)):  # what is left may lie here; "x.png" of "any/x.png" may be another file
            if parts[n - 1] in self._tops or canonical_split(parts[n - 1]):
                break
            inside = self._spelled(str(self._folder.joinpath(*parts[n:])))
            if (n < len(parts) - 1 or parts[n - 1] in self._own) and self.there(inside):
                return inside, ""
        end = "/" + "/".join(parts)
        found = [
            n for n in self._by_end.get(parts[-1], ()) if f"/{n}".endswith(end) or f"/{posixpath.splitext(n)[0]}".endswith(end)
        ]
        if len(found) > 1:
            found = [name for name in found if split and split_in(PurePosixPath(name).parent) == split] or found
        if len(found) > 1:
            return "", f"names {text}, which lies at {found[0]} and {found[1]}; give the path from the table"
        return (found[0], "") if found else ("", "")

"""Own images with masks: a folder or zip of images and masks, as it is; the kind of masks, classes and splits are found.

Splits that are not given as folders are cut, seeded, and with what must stay together (groups, files of equal content) in one.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from imgrec_jax.data.files import list_files, only_folder, stamp
from imgrec_jax.data.images import decode_image, read_text
from imgrec_jax.data.own.division import FRACTIONS, SPLITS, connected, divide, group_finder, held_out
from imgrec_jax.data.own.found import (
    Known,
    Problem,
    fold_lines,
    group_lines,
    leak_lines,
    sample,
    settle_problems,
    shown,
    statistics,
)
from imgrec_jax.data.own.index import KEPT_FROM
from imgrec_jax.data.own.memo import Memo
from imgrec_jax.data.sets.find_masks import IMAGE_FOLDERS, MASK_FOLDERS, SUFFIXES, folders_of, listed_in, without_bare_tests
from imgrec_jax.data.sets.mask_folder import (
    CLASS_NAMES,
    check_entry,
    given_splits,
    open_entries,
    refuse_void_alone,
)
from imgrec_jax.data.sets.mask_kinds import held, kind_of, look_into, refuse_no_foreground
from imgrec_jax.data.sets.mask_pairs import Entry, pair, pair_by_difference
from imgrec_jax.data.sets.mask_values import OF_OBJECTS, of_one_object
from imgrec_jax.data.source import Request, Source, parse_split

_SAMPLE = 60
_SAID = {
    "index": "class numbers", "binary": "0 and not 0", "grey": "below 128, and not", "instance_map": "numbers of objects",
    "instances": "a file for each object",
}  # fmt: skip


def survey_masks(
    request: Request,
    *,
    kind: str = "",
    class_names: tuple[str, ...] = (),
    void: int | None = 255,
    fractions: tuple[float, ...] = FRACTIONS,
    split_seed: int = 0,
    depth: int | None = None,
    masks: str = "",
) -> OwnMasks:
    """Looks at own images and masks as a whole.

    Args:
      kind: one of `mask_folder.KINDS`; "" finds it.
      class_names: of classes 0, 1, ...; () numbers those that the masks hold, or takes the lines of classes.txt.
      void: value of kind "index" that is ignored everywhere; None for none.
      fractions: of train, validation and test, where no splits are given.
      split_seed: of cutting them.
      depth: 8 or 16 bits a channel; None: 16 where an image has them. 16 gives float images of 0..1.
      masks: name of the folders of masks; "" takes the one of MASK_FOLDERS, where nothing else may be meant.
    """
    return OwnMasks(request, kind, tuple(class_names), void, tuple(fractions), split_seed, depth, masks)


class OwnMasks:
    """A `data.own.found.Survey` of segmentation."""

    def __init__(
        self, request: Request, kind: str, class_names: tuple[str, ...], void: int | None, fractions: tuple[float, ...],
        seed: int, depth: int | None = None, masks: str = "", whole: str = "",
    ):  # fmt: skip
        """whole: the split that all images are of, or all of those that have that name; "" takes or cuts the splits."""
        self._request, self._void, self._masks, self.title = request, void, masks, str(request.folder)
        self._files, self._find_group = list_files(request.folder, request.max_pixels), group_finder(request.group)
        self.lines: list[str] = []
        self._named = class_names
        self.kind, every = self._paired(kind, masks)
        self.lines.insert(0, f"{self.title}: {len(every):,} images with masks")
        self.depth = depth or 8
        entries = self._usable(every, find_depth=depth is None)
        self.lines += group_lines(
            self.title, request.group, [self._group(entry) for entry in entries], [e.name for e in entries], divided=not whole
        )
        self.kind, values = self._looked_into(entries, self.kind if kind or self.kind == "instances" else "", divided=not whole)
        self.class_names = class_names or self._names(values)
        self._given, words = given_splits(entries, self.kind)
        self.lines += words if not (whole or self._listed) else []
        self.entries = self._of_one_split(entries, whole) if whole else self._divided(entries, fractions, seed)
        self._describe(values)
        self.found = {} if whole else self._found()

    def other(self, folder: Path) -> Source:
        """See `data.own.found.Survey`."""
        request = self._request._replace(manual_dir=folder, fold="")
        made = OwnMasks(request, self.kind, self.class_names, self._void, FRACTIONS, 0, self.depth, self._masks, whole="test")
        made.lines += leak_lines(made._known_by("test"), self._known_by("train", "validation"))
        print("\n".join(f"found: {line}" for line in made.lines), file=sys.stderr, flush=True)
        return made.open("test")

    def _known_by(self, *splits: str) -> Known:
        entries = [entry for split in splits for entry in self.entries.get(split, [])]
        digests = np.array([self._digest(entry) for entry in entries], np.uint64)
        return Known([entry.name for entry in entries], digests, [self._group(entry) for entry in entries])

    def _paired(self, kind: str, masks: str) -> tuple[str, list[Entry]]:
        """The kind, as far as the layout tells it, and the images with their masks."""
        images, masks, unused = folders_of(self._files, self.title, masks, settled=bool(kind and self._named))
        self._files, self._listed, left_out = listed_in(self._files, masks)
        self._files, bare = without_bare_tests(self._files, images, masks)
        self.lines += [*unused, *left_out, *bare]
        kinds = [kind]
        if not kind:
            holders = {name.parts[: name.parts.index(masks)] for name in self._files.names if masks in name.parts[:-1]}
            files = sum(masks in name.parts[:-1] for name in self._files.names)
            whole = sum(images in name.parts[:-1] and masks not in name.parts[:-1] for name in self._files.names)
            one_each = len(holders) == whole and len(holders) > 3
            # A mask an image, each in a folder of its own, is one of objects only where its name is not the image's.
            kinds = ["instances"] if one_each and files > whole else ["index", "instances"] if one_each else ["index"]
        problem: ValueError | None = None
        for kind, suffix in itertools.product(kinds, SUFFIXES):
            try:
                return kind, pair(self._files, kind=kind, images=images, masks=masks, mask_suffix=suffix)
            except ValueError as error:
                problem = problem or error
        assert problem is not None
        if kinds[0] != "instances" and (entries := pair_by_difference(self._files, images, masks)):
            example = f"{entries[0].image} with {entries[0].masks[0]}"
            self.lines.append(f"images and masks are paired by what differs within their folders: {example}")
            return kinds[0], entries
        if self._request.bad_files != "skip":
            raise problem
        kind = kinds[0]
        best: tuple[list[Entry], list[str]] = [], []
        for suffix in SUFFIXES:
            alone: list[str] = []
            with contextlib.suppress(ValueError):
                entries = pair(self._files, kind=kind, images=images, masks=masks, mask_suffix=suffix, alone=alone)
                best = max(best, (entries, alone), key=lambda found: len(found[0]))
        if not best[0]:
            raise problem
        bad = [Problem(str(self._files.root / name), "has no partner") for name in best[1]]
        self.lines += settle_problems(self.title, bad, self._request.bad_files, len(self._files.names))
        return kind, best[0]

    def _usable(self, every: list[Entry], *, find_depth: bool) -> list[Entry]:
        good, bad = [], []
        for entry in every:
            try:
                checked = check_entry(self._files, entry, "binary", self._request.max_pixels)
                good.append(entry)
                if find_depth and checked.deep:
                    self.depth = 16
            except (ValueError, OSError) as error:
                file, _, what = str(error).partition(": ")
                bad.append(Problem(file, what or "cannot be used"))
        self.lines += settle_problems(self.title, bad, self._request.bad_files, len(every))
        return good

    def _looked_into(self, entries: list[Entry], kind: str, *, divided: bool) -> tuple[str, dict[int, int]]:
        """(kind, {value of the masks: how many pixels have it}); divided: False for a test set from elsewhere."""
        if not entries:
            raise ValueError(f"{self.title} holds no image with a mask that can be used")
        if kind == "instances":
            for entry in (entries[n] for n in sample(len(entries), _SAMPLE).tolist()):
                of_one_object(self._files, entry.masks[0])
        if kind in OF_OBJECTS:
            return kind, {}
        masks = [entry.masks[0] for entry in entries]
        name = lambda at: self._files.root / masks[at]  # noqa: E731
        look = lambda: look_into(self._files, masks, self.title)  # noqa: E731
        if len(masks) < KEPT_FROM:
            rows = look()
        else:
            files = masks if self._files.root.is_dir() else [PurePosixPath()]  # a zip is one file
            stamps = np.array([stamp(self._files.root / name) for name in files], np.int64)
            state = ("\0".join(map(str, masks)).encode("utf-8", "surrogateescape"), stamps)
            rows = Memo(self._request.data_dir / "own", self._files.root, state).get("facts", look)
        found = held(rows)
        if kind and divided:
            refuse_no_foreground(found, self.title, name)
        named = bool(self._named) or any(len(names) >= _count(found.values, self._void) - 1 for names in self._lines().values())
        return kind or kind_of(found, self.title, name, named, self._void, self.lines.append), found.values

    def _names(self, values: dict[int, int]) -> tuple[str, ...]:
        if self.kind != "index":
            return CLASS_NAMES
        count = _count(values, self._void)
        for file, names in self._lines().items():
            if len(names) == count - 1:
                names = ["background", *names]  # whose number is 0, and which many lists leave out
            if len(names) >= count:
                return tuple(names)
            self.lines.append(f"{file} has {len(names)} names, and the masks have {count} classes: called by their numbers")
        return ("background", *(f"class {n}" for n in range(1, count)))

    def _lines(self) -> dict[Path, list[str]]:
        """{file: its lines} of what names the classes."""
        folder = self._request.folder
        while (inner := only_folder(folder)) is not None:
            folder = inner
        places = [folder / name for name in ("classes.txt", "labels.txt", "class_names.txt")]
        texts = {place: read_text(place, "names of classes") for place in places if place.is_file()}
        lines = {place: [line.strip() for line in text.splitlines() if line.strip()] for place, text in texts.items()}
        # labelme's first line, whose number is -1
        return {place: names[names[:1] == ["__ignore__"] :] for place, names in lines.items()}

    def _divided(self, entries: list[Entry], fractions: tuple[float, ...], seed: int) -> dict[str, list[Entry]]:
        given = [self._split_of(entry) for entry in entries]
        there = set(given)
        self._check_groups(entries, given)
        divided = np.array([split or "train" for split in given], dtype="U10")
        if "train" not in set(divided.tolist()):
            raise ValueError(f"{self.title} has no training images; it has {sorted(there)}")

        def tied() -> tuple[np.ndarray, tuple[list[str], np.ndarray, np.ndarray]]:
            """(the training images, their names, strata and groups as `divide` takes them)."""
            own = np.flatnonzero(divided == "train")
            names = [entries[i].name for i in own.tolist()]
            groups = [self._group(entries[i]) for i in own.tolist()]
            _, group = np.unique(np.array([g or f"\0{i}" for i, g in enumerate(groups)]), return_inverse=True)
            same = np.array([self._digest(entries[i]) for i in own.tolist()], np.uint64)
            return own, (names, np.zeros(len(own), int), connected(group, same))

        if self._request.fold:
            held = "validation" if "test" in there else "test"
            if held in there:
                raise ValueError(f"config.data.fold={self._request.fold!r}: both validation and test are given; leave it empty")
            own, which = tied()
            out, never = held_out(*which, self._request.fold, seed)
            divided[own[out]] = held
            there.add(held)
            self.lines += fold_lines(self._request.fold, held, int(never.sum()))
        if "validation" not in there:
            absent = [name for name in SPLITS[1:] if name not in there]
            shares = np.array([fractions[0], *(fractions[SPLITS.index(name)] for name in absent)])
            own, which = tied()
            part = divide(*which, shares / shares.sum(), seed)
            for n, name in enumerate(absent, start=1):
                divided[own[part == n]] = name
            self.lines.append(f"cut from the training images (seed {seed}): {' and '.join(absent)}")
        found: dict[str, list[Entry]] = {}
        for entry, split in zip(entries, divided.tolist(), strict=True):
            found.setdefault(split, []).append(entry)
        return found

    def _of_one_split(self, entries: list[Entry], split: str) -> dict[str, list[Entry]]:
        return {split: [e for e in entries if self._split_of(e) == split] or entries}

    def _split_of(self, entry: Entry) -> str:
        return self._listed.get(entry.name) or self._given[entry.name]

    def _group(self, entry: Entry) -> str:
        return self._find_group(str(entry.image))

    def _digest(self, entry: Entry) -> int:
        return int.from_bytes(hashlib.blake2b(self._files.read(entry.image), digest_size=8).digest(), "little")

    def _check_groups(self, entries: list[Entry], given: list[str]) -> None:
        where: dict[str, set[str]] = {}
        content: dict[int, tuple[str, str]] = {}
        leaks = []
        for entry, split in zip(entries, given, strict=True):
            if split:
                where.setdefault(self._group(entry), set()).add(split)
                first = content.setdefault(self._digest(entry), (split, entry.name))
                if first[0] != split:
                    leaks.append(f"{first[1]} = {entry.name}")
        where.pop("", None)
        if torn := [f"{group} ({', '.join(sorted(names))})" for group, names in sorted(where.items()) if len(names) > 1]:
            raise ValueError(f"{self.title}: {len(torn)} groups lie in more than one split: {'; '.join(torn)}")
        if leaks:
            self.lines.append(f"leakage: {len(leaks)} images are equal to one of another split: {shown(leaks)}")

    def open(self, split: str) -> Source:
        """The source of a split."""
        base, _, _ = parse_split(split)
        if base not in self.entries:
            raise ValueError(f"{self.title} has no split {base!r}; it has {sorted(self.entries)}")
        if self.kind == "index" and self._void is not None:
            refuse_void_alone(self._files, [entry for entries in self.entries.values() for entry in entries], self._void)
        return open_entries(
            self._files, self.entries[base], split, kind=self.kind, class_names=self.class_names, void=self._void,
            in_memory=self._request.in_memory, max_pixels=self._request.max_pixels, depth=self.depth,
        )  # fmt: skip

    def _describe(self, values: dict[int, int]) -> None:
        said = _SAID[self.kind]
        self.lines.append(
            f"masks of kind {self.kind!r}: {said}; {len(self.class_names)} classes: {', '.join(self.class_names[:10])}"
        )
        if self.depth == 16:
            self.lines.append("16 bits a channel: images are floats of 0..1")
        if self._void in values and self.kind == "index":
            self.lines.append(f"{self._void} is void: ignored in training and evaluation")
        self.lines.append(
            "splits: " + ", ".join(f"{name} {len(self.entries[name]):,}" for name in SPLITS if name in self.entries)
        )

    def _found(self) -> dict[str, Any]:
        train = self.entries["train"]
        images = [self._decoded(train[i]) for i in sample(len(train), _SAMPLE).tolist()]
        mean, std = statistics(images)
        sides = np.array([image.shape[:2] for image in images])
        side = int(np.clip(np.median(sides.min(1)) // 16 * 16, 32, 128))
        self.lines.append(
            f"(height, width) about {tuple(np.median(sides, axis=0).astype(int).tolist())}; trained on parts of {side} x {side}"
        )
        return {
            "model.num_classes": len(self.class_names),
            "data.options.kind": self.kind,
            "data.options.class_names": self.class_names,
            **({"data.options.depth": 16} if self.depth == 16 else {}),  # 8 is what None stands for
            "data.train_ops.foreground_crop.size": (side * 3 // 2,) * 2,
            "data.train_ops.random_affine.size": (side, side),
            "data.mean": mean,
            "data.std": std,
            "data.validation_split": "validation" if "validation" in self.entries else "",
            "data.test_split": "test" if "test" in self.entries else "",
        }

    def _decoded(self, entry: Entry) -> np.ndarray:
        return decode_image(
            self._files.read(entry.image), str(self._files.root / entry.image), self._request.max_pixels, self.depth
        )


def _count(values: dict[int, int], void: int | None) -> int:
    """Of classes, by the largest number that masks hold."""
    return max((value for value in values if value != void), default=0) + 1


__all__ = ["IMAGE_FOLDERS", "MASK_FOLDERS", "SUFFIXES", "OwnMasks", "survey_masks"]

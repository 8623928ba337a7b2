"""Own images with a label each: any folder, table, npz, zip or tar (see `data.own.choice`), as it is.

Splits are "train", "validation" and "test": those that the folders or the table give, and cut from the training images where
they give none, class by class and with whatever must stay together in one part (groups, and files of equal content). Labels go
by name, from the training split.

Shape letters: N examples, H W C image, K classes.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from imgrec_jax import at_hand
from imgrec_jax.data.own import choice
from imgrec_jax.data.own import index as indices
from imgrec_jax.data.own.division import FRACTIONS, SPLITS, connected, divide, held_out
from imgrec_jax.data.own.found import (
    Known,
    Problem,
    counts_by_class,
    fitting_size,
    fold_lines,
    group_lines,
    leak_lines,
    sample,
    settle_problems,
    shown,
    statistics,
)
from imgrec_jax.data.own.index import Index
from imgrec_jax.data.own.listing import UNKNOWN, Listing, Reading
from imgrec_jax.data.own.memo import Memo
from imgrec_jax.data.own.pictures import NOTES
from imgrec_jax.data.own.prepared import Form
from imgrec_jax.data.own.reading import Examples, Images, Part, picture_of
from imgrec_jax.data.source import ArraySource, Request, Source, SourceInfo, digest, parse_split, split_range

MAX_BYTES_KEPT = 2**29  # of decoded images, that are kept in memory
_EAGER_PIXELS = 300_000_000  # decoded at the start: some seconds
_SAMPLE = 200  # images whose pixels give mean and standard deviation


def survey_images(
    request: Request,
    *,
    class_names: tuple[str, ...] = (),
    size: tuple[int, int] | tuple[()] | None = None,
    channels: int | None = None,
    depth: int | None = None,
    fractions: tuple[float, ...] = FRACTIONS,
    split_seed: int = 0,
    empty: str = "",
    minus_one: str = "",
    separator: str = "|",
    window: tuple[float, ...] = (),
) -> OwnImages:
    """Looks at own images as a whole.

    Args:
      class_names: in label order; () takes those of the training split, sorted.
      size: (height, width) that images are brought to when they are read; None finds one; () leaves them as they are.
      channels: 1 or 3; None: 1 where all images are grey.
      depth: 8 or 16 bits a channel; None: 16 where an image has them. 16 gives float images of 0..1.
      fractions: of train, validation and test, where no splits are given.
      split_seed: of cutting them.
      empty, minus_one: what an empty label of a table, and one of -1, stands for; "" is unknown.
      separator: of several labels in one column.
      window: (centre, width) of DICOM files; () takes each file's own.

    Raises:
      FileNotFoundError, ValueError: for what is wrong with the data, with every file that cannot be used.
    """
    reading = Reading(request.group, request.multi_label, empty, minus_one, separator, request.max_pixels, tuple(class_names))
    listing = choice.read(request.folder, reading)
    return OwnImages(
        request, listing, class_names=tuple(class_names), size=size, channels=channels,
        depth=depth, fractions=tuple(fractions), split_seed=split_seed, reading=reading, window=tuple(window),
    )  # fmt: skip


class OwnImages:
    """A `data.own.found.Survey` of classification."""

    def __init__(
        self, request: Request, listing: Listing, *, class_names: tuple[str, ...], size: tuple[int, int] | tuple[()] | None,
        channels: int | None, depth: int | None, fractions: tuple[float, ...], split_seed: int, reading: Reading,
        window: tuple[float, ...], whole: str = "",
    ):  # fmt: skip
        """whole: the split that all images are of, or all of those that have that name; "" takes or cuts the splits."""
        self._request, self._reading, self.title = request, reading, str(request.folder)
        self.lines: list[str] = [f"{listing.title}: {len(listing.names):,} images", *listing.notes]
        listing, self._index = self._usable(listing)
        listing, self._index = self._known(listing, self._index)
        self.listing = listing
        self.lines += group_lines(listing.title, request.group, listing.groups, listing.names, divided=not whole)
        if not listing.names:
            raise ValueError(
                f"{listing.title} holds no image of a class; expected DIR/CLASS/*.jpg, DIR/train/CLASS/*.jpg, a table of "
                "file,label, or an npz"
            )
        if request.multi_label and listing.marks is None:
            raise ValueError(
                f"{listing.title} has one label an image; use --config=configs/image_folder.py without :multi_label"
            )
        self._same = self._tied()
        self._memo = self._remembered()
        self.splits = self._of_one_split(whole) if whole else self._divided(fractions, split_seed)
        self.class_names, self.labels = self._labelled(class_names)
        table = self._index.table
        self.channels = channels or int(table["channels"].max())
        self.depth = depth or int(table["depth"].max())
        self.size: tuple[int, int] | tuple[()] = fitting_size(table["height"], table["width"]) if size is None else size
        self._images = Images(listing, table, Form(self.size, self.channels, self.depth, request.max_pixels, window))
        self.found = {} if whole else self._found()
        self._describe()
        if request.prepare and not at_hand.is_only() and listing.pixels is None:
            self._images.make_ready(request)

    def other(self, folder: Path) -> Source:
        """See `data.own.found.Survey`."""
        request = self._request._replace(manual_dir=folder, fold="")
        minus_one = self._reading.minus_one or "-1"  # as in training: unknown
        reading = self._reading._replace(minus_one=minus_one, class_names=self.class_names)
        made = OwnImages(
            request, choice.read(folder, reading), class_names=self.class_names, size=self.size, channels=self.channels,
            depth=self.depth, fractions=FRACTIONS, split_seed=0, reading=reading, window=self._images.form.window, whole="test",
        )  # fmt: skip
        made.lines += leak_lines(made._known_by("test"), self._known_by("train", "validation"))
        print("\n".join(f"found: {line}" for line in made.lines), file=sys.stderr, flush=True)
        return made.open("test")

    def _known_by(self, *splits: str) -> Known:
        at = np.flatnonzero(np.isin(self.splits, splits))
        names, groups = ([values[i] for i in at.tolist()] for values in (self.listing.names, self.listing.groups))
        return Known(names, self._index.table["digest"][at], groups)

    def _of_one_split(self, split: str) -> np.ndarray:
        there = np.array(self.listing.splits)
        return np.where((there == split) | ~(there == split).any(), split, "other")

    # What there is

    def _usable(self, listing: Listing) -> tuple[Listing, Index]:
        """What can be decoded; what cannot is told, or stops."""
        if listing.pixels is None:
            found = indices.make(listing.store, listing.names, self._request.data_dir / "own", self._request.max_pixels)
        else:
            found = indices.of_pictures([picture_of(image) for image in listing.pixels])
        bad = [Problem(listing.store.path(listing.names[i]), p) for i, p in enumerate(found.problems) if p]
        bad += [Problem(name if ", line" in name else listing.store.path(name), what) for name, what in listing.strays]
        total = len(listing.names) + len(listing.strays)
        self.lines += settle_problems(listing.title, bad, self._request.bad_files, total)
        return listing.taken(found.good), found.taken(found.good)

    def _known(self, listing: Listing, index: Index) -> tuple[Listing, Index]:
        """Without the images whose label is unknown: there is nothing to learn from them, and nothing to score."""
        if listing.marks is not None:
            known = (listing.marks != UNKNOWN).any(1)
        else:
            known = np.array([label != "" for label in listing.labels], np.bool_)
        if (count := int((~known).sum())) > 0:
            self.lines.append(f"{count:,} images have no known label: left out (data.options.empty, minus_one map them)")
        return listing.taken(known), index.taken(known)

    def _tied(self) -> np.ndarray:
        """int64 [N]: of images that belong together, for their group or their content."""
        digests = self._index.table["digest"]
        if not any(self.listing.groups):
            return np.unique(digests, return_inverse=True)[1]
        _, group = np.unique(np.array([g or f"\0{i}" for i, g in enumerate(self.listing.groups)]), return_inverse=True)
        return connected(group, digests)

    def _remembered(self) -> Memo | None:
        """Of many files: what was found in them when they, and what is said of them, were the same."""
        listing = self.listing
        if listing.pixels is not None or len(listing.names) < indices.KEPT_FROM:
            return None
        texts = (listing.names, listing.labels, listing.splits, listing.groups)
        marks = () if listing.marks is None else (listing.marks,)
        state = (*("\0".join(text).encode("utf-8", "surrogateescape") for text in texts), *marks, self._index.table["digest"])
        return Memo(self._request.data_dir / "own", listing.store.root, state)

    def _kept(self, name: str, find: Callable[[], np.ndarray]) -> np.ndarray:
        return find() if self._memo is None else self._memo.get(name, find)

    # Splits

    def _divided(self, fractions: tuple[float, ...], seed: int) -> np.ndarray:
        """Names of splits, [N]."""
        listing = self.listing
        given = np.array(listing.splits)
        there = set(given.tolist())
        if "" in there and len(there) > 1:
            given = np.where(given == "", "train", given)  # a table that marks only some
        self._check_given(given)
        divided = np.where(given == "", "train", given).astype("U10")
        own = np.flatnonzero(divided == "train")
        if self._request.fold:
            held = "validation" if "test" in there else "test"
            if held in there:
                raise ValueError(
                    f"config.data.fold={self._request.fold!r}: {self.title} has a validation and a test split; leave it empty"
                )
            key = f"fold {self._request.fold} {seed}"
            out, never = self._kept(key, lambda: np.stack(held_out(*self._tied_names(own), self._request.fold, seed)))
            divided[own[out]] = held
            self.lines += fold_lines(self._request.fold, held, int(never.sum()))
            own, there = np.flatnonzero(divided == "train"), there | {held}
        if "validation" not in there:
            shares = fractions if "test" not in there else (fractions[0], fractions[1])
            shares = tuple(share / sum(shares) for share in shares)
            key = f"parts {shares} {seed} {self._request.fold}"
            part_of = self._kept(key, lambda: divide(*self._tied_names(own), shares, seed).astype(np.int8))
            for number, name in enumerate(SPLITS[1 : len(shares)], start=1):
                divided[own[part_of == number]] = name
            cut = " and ".join(SPLITS[1 : len(shares)])
            self.lines.append(
                f"cut from the training images (seed {seed}): {cut}, {', '.join(f'{s:.3g}' for s in shares[1:])} of them"
            )
        if not (divided == "train").any():
            raise ValueError(f"{self.title} has no training images; expected a folder train/, or train in the column split")
        return divided

    def _tied_names(self, at: np.ndarray) -> tuple[list[str], np.ndarray, np.ndarray]:
        """(names, strata, groups), as `divide` takes them."""
        return [self.listing.names[i] for i in at.tolist()], self._strata()[at], self._same[at]

    def _strata(self) -> np.ndarray:
        if self.listing.marks is None:
            return np.array(self.listing.labels)
        # of several labels an image: its rarest one
        yes = self.listing.marks == 1
        rarity = np.where(yes, yes.sum(0), np.iinfo(np.int64).max)
        return np.where(yes.any(1), rarity.argmin(1), -1)

    def _check_given(self, given: np.ndarray) -> None:
        """Raises ValueError for a group in two given splits; tells of files of equal content in two."""
        members: dict[str, set[str]] = {}
        for group, split in zip(self.listing.groups, given.tolist(), strict=True):
            if group and split:
                members.setdefault(group, set()).add(split)
        torn = [f"{group} ({', '.join(sorted(splits))})" for group, splits in sorted(members.items()) if len(splits) > 1]
        if torn:
            otherwise = (
                "leave config.data.group empty" if self._request.group else "call their column or array otherwise than group"
            )
            raise ValueError(
                f"{self.title}: {len(torn)} groups lie in more than one split: {'; '.join(torn)}. What is learnt from "
                f"one part of a group is tested on the other; move each to one split, or {otherwise}"
            )
        _, first, at = np.unique(self._index.table["digest"], return_index=True, return_inverse=True)
        leaks, torn_labels = [], []
        for i in np.flatnonzero(first[at] != np.arange(len(at))).tolist():
            j = int(first[at[i]])
            pair = f"{self.listing.names[j]} = {self.listing.names[i]}"
            if given[i] != given[j]:
                leaks.append(pair)
            if self.listing.marks is None and self.listing.labels[i] != self.listing.labels[j]:
                torn_labels.append(pair)
        if leaks:
            self.lines.append(f"leakage: {len(leaks)} files are equal to one of another split: {shown(leaks)}")
        if torn_labels:
            self.lines.append(f"{len(torn_labels)} files of equal content have different labels: {shown(torn_labels)}")

    # Labels

    def _labelled(self, class_names: tuple[str, ...]) -> tuple[tuple[str, ...], np.ndarray]:
        """(names, int32 [N] or int8 [N, K])."""
        if self.listing.marks is not None:
            return self._marked(class_names)
        labels = np.array(self.listing.labels)
        names = class_names or tuple(sorted(set(labels[self.splits == "train"].tolist())))
        number = {name: n for n, name in enumerate(names)}
        strange = {label: np.flatnonzero(labels == label) for label in set(labels.tolist()) - set(names)}
        for label, at in sorted(strange.items()):
            raise ValueError(
                f"{self.title}: {len(at)} images are of class {label!r} (the first is {self.listing.names[at[0]]}, in "
                f"{self.splits[at[0]]}), which training does not know; it has {list(names)[:20]}; call it as training "
                "does, or move these images away"
            )
        if len(names) < 2:
            raise ValueError(f"{self.title} has one class, {names[0]!r}; expected a folder for each of two or more")
        return names, np.array([number[label] for label in labels.tolist()], np.int32)

    def _marked(self, class_names: tuple[str, ...]) -> tuple[tuple[str, ...], np.ndarray]:
        """(names, int8 [N, K]) of several labels an image, by name; a label that nothing here tells of is unknown."""
        there, marks = self.listing.mark_names, self.listing.marks
        assert marks is not None
        names = class_names or there
        if strange := [name for name in there if name not in names]:
            raise ValueError(
                f"{self.title} has the label {strange[0]!r}, which training does not know; it has {list(names)[:20]}; rename "
                "it or remove it"
            )
        by_name = np.full((len(marks), len(names)), self.listing.unnamed, np.int8)
        by_name[:, [names.index(name) for name in there]] = marks
        return names, by_name

    # Reading

    def open(self, split: str) -> Source:
        """The source of a split; image [H, W, C] and label, or labels and label_known [K]."""
        base, _, _ = parse_split(split)
        whole = np.flatnonzero(self.splits == base)
        if not len(whole):
            raise ValueError(f"{self.title} has no split {base!r}; it has {sorted(set(self.splits.tolist()))}")
        at = whole[slice(*split_range(split, len(whole)))]
        targets = self._targets(at)
        names = tuple(self.listing.names[i] for i in at.tolist())
        meta: dict[str, Any] = {"file_names": names, "targets": targets, "tied": self._same[at]}
        if any(self.listing.groups):
            meta["groups"] = tuple(self.listing.groups[i] or f"\0{names[n]}" for n, i in enumerate(at.tolist()))
        table = self._index.table[at]
        size = None if len(at) == len(whole) else len(whole)
        info = SourceInfo(f"{self.title} {split}", self.class_names, meta, self._identity(whole), size)
        bytes_kept = len(at) * int(np.prod(self.size or (1,))) * self.channels * (4 if self.depth == 16 else 1)
        fits = bool(self.size) and bytes_kept <= MAX_BYTES_KEPT
        keep = self._request.in_memory if self._request.in_memory is not None else fits
        images = Part(self._images, at, keep=keep and bool(self.size))
        pixels = (table["height"].astype(np.int64) * table["width"]).sum()
        if keep and self.size and pixels <= _EAGER_PIXELS:
            return ArraySource({"image": images.all(), **targets}, info)
        return Examples(images, targets, info)

    def _identity(self, at: np.ndarray) -> str:
        names = "\n".join(self.listing.names[i] for i in at.tolist()).encode("utf-8", "surrogateescape")
        return digest("own", (names, self._index.table["digest"][at], *self._targets(at).values()))

    def _targets(self, at: np.ndarray) -> dict[str, np.ndarray]:
        labels = self.labels[at]
        if labels.ndim == 1:
            return {"label": labels}
        return {"labels": (labels == 1).astype(np.uint8), "label_known": labels != UNKNOWN}

    # What is said

    def _found(self) -> dict[str, Any]:
        at = np.flatnonzero(self.splits == "train")
        # where the split lies, and how its images are read
        key = f"statistics {digest('at', (at,))} {tuple(self._images.form)}"
        images = lambda: [self._images[int(at[i])] for i in sample(len(at), _SAMPLE)]  # noqa: E731
        mean, std = map(tuple, self._kept(key, lambda: np.array(statistics(images()))).tolist())
        there = set(self.splits.tolist())
        size = self.size or fitting_size(self._index.table["height"], self._index.table["width"])
        return {
            "model.num_classes": len(self.class_names),
            "data.options.class_names": self.class_names,
            "data.options.size": self.size,
            "data.options.channels": self.channels,
            "data.options.depth": self.depth,
            "data.eval_ops.resize.size": size,
            "data.eval_ops.to_channels.channels": self.channels,
            "data.train_ops.random_affine.size": size,
            "data.train_ops.to_channels.channels": self.channels,
            "data.mean": mean,
            "data.std": std,
            "data.validation_split": "validation" if "validation" in there else "",
            "data.test_split": "test" if "test" in there else "",
        }

    def _describe(self) -> None:
        table, lines = self._index.table, self.lines
        if self.listing.marks is None:
            split, where = ("train", "in training") if (self.splits == "train").any() else ("test", "in this test set")
            train = np.bincount(self.labels[self.splits == split], minlength=len(self.class_names))
            lines.append(f"{len(self.class_names)} classes; {where} {counts_by_class(self.class_names, train.tolist())}")
            if split == "train" and (
                few := [name for name, count in zip(self.class_names, train.tolist(), strict=True) if count == 1]
            ):
                lines.append(f"classes of a single training image: {shown(few, 10)}")
            for split in SPLITS[1:]:
                lacks = set(range(len(self.class_names))) - set(self.labels[self.splits == split].tolist())
                if lacks and (self.splits == split).any():
                    lines.append(f"{split} has no image of {shown([self.class_names[n] for n in sorted(lacks)], 10)}")
        else:
            yes, no = (self.labels == 1).sum(0), (self.labels == 0).sum(0)
            rows = [f"{n} {y:,} of {y + m:,}" for n, y, m in zip(self.class_names, yes.tolist(), no.tolist(), strict=True)]
            lines.append(f"{len(self.class_names)} labels, several an image; yes of known: {', '.join(rows[:20])}")
        counts = Counter(self.splits.tolist())
        lines.append("splits: " + ", ".join(f"{name} {counts[name]:,}" for name in SPLITS if counts[name]))
        if any(self.listing.groups):
            lines.append(f"{len(set(self.listing.groups) - {''}):,} groups, each in one split")
        for bit, name in enumerate(NOTES):
            odd = np.flatnonzero(table["notes"] & (1 << bit))
            if len(odd):
                lines.append(f"{len(odd):,} images: {name}, e.g. {self.listing.names[odd[0]]}")
        grey = int((table["channels"] == 1).sum())
        if 0 < grey < len(table):
            lines.append(f"{grey:,} images are grey among {len(table) - grey:,} in colour")
        sizes = sorted(set(zip(table["height"].tolist(), table["width"].tolist(), strict=True)))
        from_to = f"{sizes[0]}" if len(sizes) == 1 else f"{len(sizes)} sizes from {sizes[0]} to {sizes[-1]}"
        brought = f"; brought to {self.size}" if self.size and sizes != [tuple(self.size)] else ""
        lines.append(
            f"{self.channels} channel{'s' * (self.channels > 1)}, {self.depth} bits; (height, width) {from_to}{brought}"
        )

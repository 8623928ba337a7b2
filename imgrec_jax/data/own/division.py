"""Division of examples into splits and folds: seeded, stratified by class, and never through a group.

Shape letters: N examples, G groups, K classes, S parts.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import PurePath
from typing import TypeVar

import numpy as np

_Named = TypeVar("_Named")

SPLITS = ("train", "validation", "test")
FRACTIONS = (0.8, 0.1, 0.1)  # of each, where nothing is given
# How people call their splits.
SPELLINGS = {
    **dict.fromkeys(("train", "training", "trn", "train_set", "training_set"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "val_set", "validation_set"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "test_set", "testing_set"), "test"),
}
_INNER = r"(?<=[a-z])(?=[A-Z])"  # where a word begins in trainLabels
_FOLD = re.compile(r"^(\d+)/(\d+)$")


def canonical_split(name: str) -> str | None:
    """ "train", "validation" or "test" for any of their spellings; None for what is none."""
    return SPELLINGS.get(re.sub(r"[\s.-]+", "_", name.strip().lower()))


def split_in(path: PurePath) -> str:
    """The split that a word of a name tells of, or one of the folder next to it that tells of one; "" where none does."""
    words = (word for part in reversed(path.parts) for word in re.split(rf"[\W_\d]+|{_INNER}", part))
    return next((name for word in words if word and (name := canonical_split(word))), "")


def splits_of(names: Collection[str]) -> dict[str, str]:
    """{name: its split, or ""} of what lies side by side: by their names; or by a word of each, where all have one, of
    more than one split. `test1` beside `test2`, and `train_station` beside `harbour`, are none.
    """
    words = {name: split_in(PurePath(name)) for name in names}
    if all(words.values()) and len(set(words.values())) > 1:
        return words
    return {name: canonical_split(name) or "" for name in names}


def splits_in(folders: Collection[tuple[str, ...]]) -> tuple[dict[tuple[str, ...], str], list[str]]:
    """({folder, as its parts: the split that the innermost of them tells of, or ""}, lines on words that tell of none).

    Each part goes by those beside it, see `splits_of`.
    """
    beside: dict[tuple[str, ...], set[str]] = {}
    for parts in folders:
        for n, part in enumerate(parts):
            beside.setdefault(parts[:n], set()).add(part)
    told = {above: splits_of(names) for above, names in beside.items()}
    lines = []
    for above, names in sorted(told.items()):
        words = {name: split for name in sorted(names) if (split := split_in(PurePath(name))) and not names[name]}
        if "train" in words.values() and len(set(words.values())) > 1:
            others = ", ".join(sorted(names.keys() - words.keys())[:3])
            listed = ", ".join("/".join((*above, name)) for name in list(words)[:5])
            lines.append(f"{listed} are not read as splits, beside {others}: rename them to train, val and test if they are")
    innermost = lambda parts: (told[parts[:n]][parts[n]] for n in reversed(range(len(parts))))  # noqa: E731
    return {parts: next(filter(None, innermost(parts)), "") for parts in folders}, lines


def called_after(splits: Mapping[_Named, str], name: Callable[[_Named], str]) -> dict[str, list[_Named]]:
    """{split: what is called after it}: what has its very name, else what has a word of it: train before train_extra.

    Args:
      splits: of each, "" for none.
      name: of one.
    """
    of: dict[str, list[_Named]] = {}
    for one, split in splits.items():
        if split:
            of.setdefault(split, []).append(one)
    return {split: [one for one in every if canonical_split(name(one))] or every for split, every in of.items()}


def without_split(name: str) -> str:
    """A name with a star for each word of a split, and without digits: what `a/train2017.json` and `a/val.json` share."""
    name = re.sub(_INNER, "_", re.sub(r"\d+", "", name))
    return re.sub(r"[^\W\d_]+", lambda word: "*" if canonical_split(word[0]) else word[0], name)


def parse_fold(text: str) -> tuple[int, int]:
    """ "2/5" -> (2, 5): the second of five.

    Raises:
      ValueError: for anything else.
    """
    match = _FOLD.match(text.strip())
    number, of = map(int, match.groups()) if match else (0, 0)
    if not (of >= 2 and 1 <= number <= of):
        raise ValueError(f"config.data.fold={text!r}; expected e.g. '2/5', the second of five folds")
    return number, of


def connected(*keys: np.ndarray) -> np.ndarray:
    """The finest grouping in which examples that share a value of any of `keys`, each int [N], share a group: int64 [N]."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(keys[0])
    rows, columns, start = [], [], count
    for key in keys:
        _, at = np.unique(np.asarray(key), return_inverse=True)
        rows.append(np.arange(count))
        columns.append(start + at)
        start += int(at.max(initial=-1)) + 1
    edges = (np.ones(count * len(keys), np.int8), (np.concatenate(rows), np.concatenate(columns)))
    return connected_components(coo_matrix(edges, shape=(start, start)), directed=False)[1][:count].astype(np.int64)


def divide(
    names: Sequence[str], strata: np.ndarray, groups: np.ndarray, shares: Sequence[float] | np.ndarray | int, seed: int
) -> np.ndarray:
    """The part of every example, int64 [N].

    Examples that are groups of their own are cut class by class, in the order of the SHA-256 of "SEED/NAME": a class of as many
    as there are parts is in every part, and what is added moves few others. Larger groups go first, the largest ahead, each to
    the part where it leaves the class counts closest to their shares. For folds an example goes where its class, and then all,
    have fewest.

    Args:
      names: of the examples.
      strata: classes, int [N].
      groups: int [N].
      shares: of the parts, S of them; they add up to 1. The first part takes what is left. A whole number: that many folds.
      seed: of the order.
    """
    folds = isinstance(shares, int)
    shares = np.full(shares, 1 / shares) if isinstance(shares, int) else np.asarray(shares, np.float64)
    part_of = np.full(len(names), -1, np.int64)
    salt = f"{seed}/".encode()
    keys = [hashlib.sha256(salt + name.encode("utf-8", "surrogateescape")).digest() for name in names]
    _, group_at, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    _, class_at = np.unique(strata, return_inverse=True)
    classes = int(class_at.max(initial=-1)) + 1
    wanted = np.outer(shares, np.bincount(class_at, minlength=classes))  # [S, K]
    have = np.zeros_like(wanted)
    first: dict[int, bytes] = {}
    members: dict[int, list[int]] = {}
    for index in np.flatnonzero(sizes[group_at] > 1).tolist():
        group = int(group_at[index])
        members.setdefault(group, []).append(index)
        first[group] = min(first.get(group, keys[index]), keys[index])
    scale = np.maximum(wanted.sum(0), 1)
    for group in sorted(members, key=lambda g: (-len(members[g]), first[g])):
        counts = np.bincount(class_at[members[group]], minlength=classes)
        gap = (wanted - have) / scale
        cost = (np.square(gap - counts / scale) - np.square(gap)).sum(1)
        equal = cost <= cost.min() + 1e-9
        part = int(np.where(equal, have.sum(1) / np.maximum(shares, 1e-9), np.inf).argmin())
        part_of[members[group]] = part
        have[part] += counts
    alone = np.flatnonzero(part_of < 0)
    alone = alone[np.argsort(np.frombuffer(b"".join(keys), "S32")[alone], kind="stable")]
    for label in range(classes):
        mine = alone[class_at[alone] == label]
        if folds:
            rest = _dealt(have[:, label], have.sum(1), len(mine))
        else:
            rest = _counts(wanted[:, label] - have[:, label], len(mine), least=not have[:, label].any())
        part_of[mine] = np.repeat(np.arange(len(shares)), rest)
        have[:, label] += rest
    return _none_empty(part_of, class_at, group_at, len(shares))


def held_out(
    names: Sequence[str], strata: np.ndarray, groups: np.ndarray, fold: str, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(whether the fold, e.g. "2/5", holds an example out; whether none does, for its group is the only one of a class).

    Both are bool [N]; arguments: see `divide`.

    Raises:
      ValueError: for a fold that holds nothing out.
    """
    number, of = parse_fold(fold)
    pairs = np.unique(np.stack([np.unique(strata, return_inverse=True)[1], groups]), axis=1)
    only = np.bincount(pairs[0])[pairs[0]] == 1
    never = np.isin(groups, pairs[1, only])
    held = np.zeros(len(names), np.bool_)
    free = np.flatnonzero(~never)
    parts = divide([names[i] for i in free.tolist()], strata[free], groups[free], of, seed)
    held[free[parts == number - 1]] = True
    if not held.any():
        raise ValueError(
            f"config.data.fold={fold!r} holds nothing out: {len(np.unique(groups[free]))} of {len(np.unique(groups))} images "
            "or groups can leave the training split without taking a class along; give fewer folds, or more images"
        )
    return held, never


def group_finder(regex: str) -> Callable[[str], str]:
    """path -> what the regex finds in it, in its first parentheses where it has some; "" for nothing.

    Raises:
      ValueError: for what is no regex, naming the key of the config.
    """
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise ValueError(f"config.data.group={regex!r} is no regular expression ({error})") from error

    def find(path: str) -> str:
        match = pattern.search(path) if regex else None
        return "" if match is None else match.group(min(pattern.groups, 1)) or ""

    return find


def _dealt(of_class: np.ndarray, of_all: np.ndarray, total: int) -> np.ndarray:
    """How many of `total` examples of a class each part gets, where these are what the parts have: int64 [S]."""
    counts = np.zeros(len(of_class), np.int64)
    heap = [(float(mine), float(whole), part) for part, (mine, whole) in enumerate(zip(of_class, of_all, strict=True))]
    heapq.heapify(heap)
    for _ in range(total):
        mine, whole, part = heap[0]
        counts[part] += 1
        heapq.heapreplace(heap, (mine + 1, whole + 1, part))
    return counts


def _none_empty(part_of: np.ndarray, class_at: np.ndarray, group_at: np.ndarray, parts: int) -> np.ndarray:
    """A part that got nothing gets the smallest group of the largest part whose classes all stay there, if there is one."""
    for part in range(parts):
        if not len(part_of) or (part_of == part).any():
            continue
        largest = np.flatnonzero(part_of == np.bincount(part_of, minlength=parts).argmax())
        there = np.bincount(class_at[largest])
        groups, at, sizes = np.unique(group_at[largest], return_inverse=True, return_counts=True)
        table = np.zeros((len(groups), len(there)), np.int64)
        np.add.at(table, (at, class_at[largest]), 1)
        spare = ((table == 0) | (table < there)).all(1)
        if spare.any():
            part_of[group_at == groups[np.where(spare, sizes, len(part_of) + 1).argmin()]] = part
    return part_of


def _counts(wanted: np.ndarray, total: int, least: bool) -> np.ndarray:
    """Whole numbers that add up to `total`, about in proportion to what is wanted; least: one each, if that is possible."""
    wanted = np.maximum(wanted, 0)
    wanted = wanted / max(wanted.sum(), 1e-12) * total if wanted.sum() else np.eye(len(wanted))[0] * total
    counts = np.rint(wanted).astype(np.int64)
    if least and total >= len(counts):
        counts = np.maximum(counts, 1)
    elif total and not counts.any():
        counts[0] = total
    while counts.sum() != total:  # the part that is farthest off gives or takes
        off = counts - wanted
        if counts.sum() > total:
            counts[int(np.where(counts > (1 if least and total >= len(counts) else 0), off, -np.inf).argmax())] -= 1
        else:
            counts[int(off.argmin())] += 1
    return counts

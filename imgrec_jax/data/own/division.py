"""Division of examples into splits and folds: seeded, stratified by class, and never through a group.

Shape letters: N examples, G groups, K classes, S parts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

# How people call their splits.
SPELLINGS = {
    **dict.fromkeys(("train", "training", "trn", "train_set", "training_set"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "val_set", "validation_set"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "test_set", "testing_set"), "test"),
}
_FOLD = re.compile(r"^(\d+)/(\d+)$")


def canonical_split(name: str) -> str | None:
    """ "train", "validation" or "test" for any of their spellings; None for what is none."""
    return SPELLINGS.get(re.sub(r"[\s.-]+", "_", name.strip().lower()))


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
    names: Sequence[str], strata: np.ndarray, groups: np.ndarray, shares: Sequence[float] | np.ndarray, seed: int
) -> np.ndarray:
    """The part of every example, int64 [N].

    Examples that are groups of their own are cut class by class, in the order of the SHA-256 of "SEED/NAME": every class of
    three or more is in every part, and what is added moves few others. Larger groups go first, the largest ahead, each to
    the part where it leaves the class counts closest to their shares.

    Args:
      names: of the examples.
      strata: classes, int [N].
      groups: int [N].
      shares: of the parts, S of them; they add up to 1. The first part takes what is left.
      seed: of the order.
    """
    part_of = np.full(len(names), -1, np.int64)
    keys = [hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest() for name in names]
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
        part = int(cost.argmin())
        part_of[members[group]] = part
        have[part] += counts
    for label in range(classes):
        mine = [i for i in np.flatnonzero(class_at == label).tolist() if part_of[i] < 0]
        mine.sort(key=keys.__getitem__)
        rest = _counts(wanted[:, label] - have[:, label], len(mine), least=not have[:, label].any())
        part_of[mine] = np.repeat(np.arange(len(shares)), rest)
    return _none_empty(part_of, group_at, sizes, len(shares))


def _none_empty(part_of: np.ndarray, group_at: np.ndarray, sizes: np.ndarray, parts: int) -> np.ndarray:
    """A part that got nothing gets the smallest group of the largest part, as long as that has another one."""
    for part in range(parts):
        largest = int(np.bincount(part_of, minlength=parts).argmax()) if len(part_of) else part
        groups = np.unique(group_at[part_of == largest])
        if not (part_of == part).any() and len(groups) > 1:
            part_of[group_at == groups[sizes[groups].argmin()]] = part
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

"""What is found in own data: values for the config, and lines to print."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from imgrec_jax.data.own.division import parse_fold
from imgrec_jax.data.source import Source

LONGEST = 128  # pixels of a side, where images are larger: small networks without pretrained weights learn well from as much
_SHOWN = 10


class Survey(Protocol):
    """Own data, looked at as a whole.

    Attributes:
      found: {key of the config: value} of what only the data tell.
      lines: what was found, to print.
    """

    found: dict[str, Any]
    lines: list[str]

    def open(self, split: str) -> Source:
        """The source of "train", "validation[:100]", ..."""

    def other(self, folder: Path) -> Source:
        """Another folder as a test set, with the classes and sizes of this one."""


class Problem(NamedTuple):
    """A file that cannot be an example."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


BAD_FILES = ("stop", "skip")


def settle_problems(title: str, problems: Sequence[Problem], policy: str, total: int) -> list[str]:
    """Lines on what is skipped.

    Raises:
      ValueError: where the policy is to stop; the message lists every file.
    """
    if not problems:
        return []
    if policy == "stop":
        listed = "\n  ".join(map(str, problems))
        raise ValueError(
            f"{len(problems)} of {total} files of {title} cannot be used:\n  {listed}\n"
            "Replace or remove them, or leave them out with config.data.bad_files=skip"
        )
    return [f"{len(problems)} of {total} files are left out (data.bad_files=skip): {shown([str(p) for p in problems])}"]


def group_lines(title: str, group: str, groups: Sequence[str], names: Sequence[str], *, divided: bool) -> list[str]:
    """A line on the images without a group, where `config.data.group` says what it is.

    Args:
      divided: the images are cut into splits; False for a test set from elsewhere.

    Raises:
      ValueError: where no image that is divided has one: what must stay together would be torn apart, and nobody told.
    """
    lacking = [name for name, found in zip(names, groups, strict=True) if not found]
    if not group or not lacking:
        return []
    if divided and len(lacking) == len(names):
        raise ValueError(
            f"config.data.group={group!r} is found in no path of {title}, e.g. {names[0]!r}, and no column or header of that "
            "name tells one; expected a regex whose (first) group is what must stay together, or such a name"
        )
    return [f"{len(lacking):,} of {len(names):,} images have no group (data.group={group}), each its own: {shown(lacking)}"]


class Known(NamedTuple):
    """What tells images apart, or that they belong together: names; digests of their files, uint64 [N]; groups, "" for none."""

    names: Sequence[str]
    digests: np.ndarray
    groups: Sequence[str]


def leak_lines(test: Known, mine: Known) -> list[str]:
    """Lines on what a test set from elsewhere shares with the images that are trained on or chosen by."""
    lines = []
    if again := np.flatnonzero(np.isin(test.digests, mine.digests)).tolist():
        names = [test.names[i] for i in again]
        lines.append(f"leakage: {len(again)} files are equal to ones that are trained on or chosen by: {shown(names)}")
    if groups := sorted((set(test.groups) & set(mine.groups)) - {""}):
        lines.append(f"leakage: {len(groups)} groups are trained on or chosen by, too, if these are the same: {shown(groups)}")
    return lines


def fold_lines(fold: str, held: str, never: int) -> list[str]:
    """fold: "2/5"; held: the split it is; never: images that are in no fold."""
    number, of = parse_fold(fold)
    lines = [f"fold {number} of {of} is the {held} split"]
    if never:
        lines.append(f"{never:,} images stay in training in every fold: a class has no others, or none of another group")
    return lines


def shown(items: Sequence[str], most: int = 3) -> str:
    return "; ".join(items[:most]) + (f"; and {len(items) - most} more" if len(items) > most else "")


def fitting_size(heights: np.ndarray, widths: np.ndarray) -> tuple[int, int]:
    """(height, width) to bring images to: their median, or where a side is longer than LONGEST, their median shape of that
    length, in multiples of 8; 16 at least."""
    height, width = float(np.median(heights)), float(np.median(widths))
    longest = max(height, width)
    if longest <= LONGEST:
        return max(round(height), 16), max(round(width), 16)
    fit = lambda side: max(8 * round(side * LONGEST / longest / 8), 16)  # noqa: E731
    return fit(height), fit(width)


def statistics(images: Sequence[np.ndarray]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, standard deviation) of the pixels of [H, W, C] images in 0..1, per channel.

    To three decimals; what is below a hundredth, as of few photons in 16 bits, to three digits.
    """
    total, squares, count = 0.0, 0.0, 0
    for image in images:
        values = image.reshape(-1, image.shape[2]).astype(np.float64) / (255 if image.dtype == np.uint8 else 1)
        total, squares, count = total + values.sum(0), squares + np.square(values).sum(0), count + len(values)
    mean = np.asarray(total / count)
    std = np.sqrt(np.maximum(squares / count - np.square(mean), 0))
    short = lambda v: round(v, 3) if v >= 0.01 else float(f"{v:.3g}")  # noqa: E731
    return tuple(map(short, mean.tolist())), tuple(short(v) if v > 1e-6 else 0.001 for v in std.tolist())


def counts_by_class(names: Sequence[str], counts: Sequence[int]) -> str:
    pairs = [f"{name} {count:,}" for name, count in zip(names, counts, strict=True)]
    return ", ".join(pairs[:_SHOWN]) + (f", ... {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else "")


def sample(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` positions, evenly spread."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, most)).astype(int))


Reader = Callable[[int], np.ndarray]

"""What is found in own data: values for the config, and lines to print."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

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
    """(mean, standard deviation) of the pixels of [H, W, C] images in 0..1, per channel, to three decimals."""
    total, squares, count = 0.0, 0.0, 0
    for image in images:
        values = image.reshape(-1, image.shape[2]).astype(np.float64) / (255 if image.dtype == np.uint8 else 1)
        total, squares, count = total + values.sum(0), squares + np.square(values).sum(0), count + len(values)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - np.square(mean), 0))
    return tuple(np.round(mean, 3).tolist()), tuple(np.maximum(np.round(std, 3), 0.001).tolist())


def counts_by_class(names: Sequence[str], counts: Sequence[int]) -> str:
    pairs = [f"{name} {count:,}" for name, count in zip(names, counts, strict=True)]
    return ", ".join(pairs[:_SHOWN]) + (f", ... {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else "")


def sample(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` positions, evenly spread."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, most)).astype(int))


Reader = Callable[[int], np.ndarray]

"""Masks as bits: bool [..., H, W] as uint8 [..., H, ceil(W / 8)], the first of eight columns in the highest bit.

A hundred objects on a canvas of 800 x 1344 pixels take 13 MB so, 107 MB as bool and 430 MB as float32. Whoever changes masks
unpacks one at a time.

Shape letters: H W image, N masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np


def pack(masks: np.ndarray) -> np.ndarray:
    """bool [..., H, W] -> uint8 [..., H, ceil(W / 8)]."""
    return np.packbits(masks, axis=-1)


def pack_each(masks: Iterable[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Masks bool [H, W] of one `size`, taken one at a time -> uint8 [N, H, ceil(W / 8)]."""
    packed = [pack(mask) for mask in masks]
    return np.stack(packed) if packed else empty(0, size)


def empty(count: int, size: tuple[int, int]) -> np.ndarray:
    """Masks without a pixel, uint8 [count, H, ceil(W / 8)]."""
    return np.zeros((count, size[0], -(-size[1] // 8)), np.uint8)


def unpack(packed: np.ndarray, width: int) -> np.ndarray:
    """uint8 [..., H, ceil(width / 8)] -> bool [..., H, width]."""
    return np.unpackbits(packed, axis=-1, count=width).view(np.bool_)


def each(packed: np.ndarray, width: int) -> Iterator[np.ndarray]:
    """uint8 [N, H, ceil(width / 8)] -> bool [H, width], one at a time."""
    return (unpack(mask, width) for mask in packed)


def areas(packed: np.ndarray) -> np.ndarray:
    """uint8 [N, H, w] -> how many pixels each mask has, int64 [N]."""
    return np.bitwise_count(packed).sum((1, 2), dtype=np.int64)

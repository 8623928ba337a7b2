"""Which pixel of `old` torch's nearest-neighbour interpolation takes for each of `new`: a checksum for many pairs of lengths.

python -m tests.goldens.make_nearest   (torch 2.13.0)
"""

import zlib
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("nearest.npz")
COUNT = 400


def checksum(rows: np.ndarray) -> int:
    return zlib.crc32(np.asarray(rows, "<i4").tobytes())


def main() -> None:
    import torch

    rng = np.random.default_rng(0)
    pairs = rng.integers(1, 1400, (COUNT // 2, 2))
    differ: list[tuple[int, int]] = []
    while len(differ) < COUNT // 2:  # where an index in float64 rounds to another pixel
        old, new = rng.integers(2, 1400, 2).tolist()
        wide = (np.arange(new) * np.float64(np.float32(old / new))).astype(np.int64)
        if not np.array_equal(_of_torch(torch, old, new), np.minimum(wide, old - 1)):
            differ.append((old, new))
    pairs = np.concatenate([pairs, np.array(differ)]).astype(np.int32)
    sums = np.array([checksum(_of_torch(torch, *pair)) for pair in pairs.tolist()], np.uint32)
    np.savez_compressed(FILE, pairs=pairs, sums=sums)


def _of_torch(torch, old: int, new: int) -> np.ndarray:
    line = torch.arange(old, dtype=torch.float32)[None, None, :, None]
    return torch.nn.functional.interpolate(line, size=(new, 1), mode="nearest")[0, 0, :, 0].numpy().astype(np.int64)


if __name__ == "__main__":
    main()

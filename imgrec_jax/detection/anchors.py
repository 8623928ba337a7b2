"""Anchors: the boxes of fixed sizes and ratios that a region proposal network starts from (Ren et al. 2015).

Plain NumPy on static shapes: inside `jit` the result is a constant.

Shape letters: H W cells of a feature map, A anchors per cell, N = H * W * A, L levels.
The numbers follow torchvision/models/detection/anchor_utils.py; `rounded=False` with fixed strides is detectron2's.
"""

from collections.abc import Sequence

import numpy as np


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float], rounded: bool = True) -> np.ndarray:
    """Anchors around the origin, [A, 4] float32 with A = len(ratios) * len(sizes), ratio by ratio.

    Args:
      sizes: square roots of the areas, in pixels.
      ratios: height / width.
      rounded: corners are rounded to whole pixels, halves to even, as torchvision's released weights expect.
    """
    heights_per_size = np.sqrt(np.asarray(ratios, np.float32))
    heights = np.outer(heights_per_size, np.asarray(sizes, np.float32)).ravel()
    widths = np.outer(1.0 / heights_per_size, np.asarray(sizes, np.float32)).ravel()
    cell = np.stack([-widths, -heights, widths, heights], axis=1) / np.float32(2.0)
    return np.round(cell) if rounded else cell


def grid_anchors(cell: np.ndarray, grid_size: Sequence[int], stride: tuple[int, int], offset: float = 0.0) -> np.ndarray:
    """`cell` [A, 4] moved to every cell of a feature map, [H * W * A, 4] in the order (row, column, anchor).

    Args:
      grid_size: (H, W) of the feature map.
      stride: pixels per cell (vertically, horizontally).
      offset: position of the centre inside its cell in units of the stride: 0 is the top-left corner, 0.5 the middle.
    """
    y = (np.arange(grid_size[0], dtype=np.float32) + np.float32(offset)) * np.float32(stride[0])
    x = (np.arange(grid_size[1], dtype=np.float32) + np.float32(offset)) * np.float32(stride[1])
    y, x = np.meshgrid(y, x, indexing="ij")
    shifts = np.stack([x, y, x, y], axis=-1)
    return (shifts[:, :, None] + cell).reshape(-1, 4)


def pyramid_anchors(
    cells: Sequence[np.ndarray],
    grid_sizes: Sequence[Sequence[int]],
    image_size: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    offset: float = 0.0,
) -> list[np.ndarray]:
    """One [N, 4] array per level. Give either `image_size` or `strides`.

    With `image_size`, the padded (height, width) of the network's input, the stride of a level is the integer quotient
    of image and grid, as in torchvision; it is 61 and not 64 on the coarsest of an 800-row image's five levels.
    `strides` fixes them instead.
    """
    if image_size is not None and strides is None:
        steps = [(image_size[0] // h, image_size[1] // w) for h, w in grid_sizes]
    elif strides is not None and image_size is None:
        steps = [(stride, stride) for stride in strides]
    else:
        raise ValueError(f"give either image_size or strides, not both or neither: {image_size=}, {strides=}")
    return [grid_anchors(cell, grid_size, step, offset) for cell, grid_size, step in zip(cells, grid_sizes, steps, strict=True)]

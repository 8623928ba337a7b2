"""The batch contract between data, tasks and the loop.

A batch is a flat dict of arrays that share the leading axis B, of static shape, with explicit boolean validity. Everything
is numpy on the host; the loop puts it on the devices unchanged.

Shape letters: B batch, H W C image, G ground-truth boxes, P proposals, K foreground classes.

| key | dtype, shape | meaning |
| --- | --- | --- |
| image | uint8 0..255 or float32 0..1, [B, H, W, C] | normalised on the device by the task |
| example_valid | bool [B] | False for the padding of a last batch |
| index | int32 [B] | position in the split; the source maps it to file names or image ids |
| label | int32 [B] | class (classification) |
| labels, label_known | uint8, bool [B, K] | several labels an image: yes (1) or no; False where unknown |
| label_b, mix | int32 [B], float32 [B] | second label and the weight of the first (mixup, cutmix) |
| image_size, original_size | int32 [B, 2] | true (height, width) of the resized image without its padding, and of the file |
| boxes | float32 [B, G, 4] | x1, y1, x2, y2 in absolute pixels of the resized image |
| box_label | int32 [B, G] | 1..K; 0 is background |
| box_valid, box_crowd | bool [B, G] | which rows are boxes; which are COCO crowd regions |
| box_mask | uint8 [B, G, H, ceil(W / 8)] | bits of the mask of each box on the resized image, the first column highest |
| proposals, proposal_valid | float32 [B, P, 4], bool [B, P] | external proposals |
| window, image_index | int32 [B, 4], [B] | of a window: (top, left, height, width), and the position of its picture |
| segmentation, pixel_valid | int32, bool [B, H, W] | class of each pixel; False where void, padded or outside |
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

Batch = dict[str, np.ndarray]


def stack(examples: Sequence[dict[str, Any]]) -> Batch:
    """Stacks examples of equal shapes.

    Raises:
      ValueError: naming the key and the shapes, when they differ.
    """
    batch = {}
    for key in examples[0]:
        values = [np.asarray(example[key]) for example in examples]
        shapes = sorted({value.shape for value in values})
        if len(shapes) > 1:
            raise ValueError(
                f"examples of one batch differ in the shape of {key!r}: {shapes[:4]}; add a resize or crop to data.train_ops"
            )
        batch[key] = np.stack(values)
    return batch


def examples_per_process(batch_size: int, process_count: int, device_count: int) -> int:
    """Rows of the global batch that one process reads.

    Raises:
      ValueError: when the batch does not divide among the devices; names the nearest sizes that do.
    """
    if batch_size % device_count:
        lower = batch_size // device_count * device_count
        nearest = [size for size in (lower, lower + device_count) if size]
        raise ValueError(f"batch size {batch_size} does not divide among {device_count} devices; the nearest are {nearest}")
    return batch_size // process_count

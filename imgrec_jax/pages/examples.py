"""Examples and batch rows as pictures, whatever their targets are.

Shape letters: H W image, B rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from imgrec_jax.data.ops import bits
from imgrec_jax.inference import drawing

Example = Mapping[str, Any]


def drawn(example: Example, class_names: Sequence[str]) -> tuple[np.ndarray, str]:
    """(the image with its boxes or its class areas drawn, its labels as text).

    example: of a source, or a row of a batch (`rows`). class_names: of labels 0, 1, ...; for boxes of labels 1, 2, ...
    """
    image = drawing.as_rgb(np.asarray(example["image"]))
    if "box_label" in example:
        valid = np.asarray(example.get("box_valid", np.ones(len(example["boxes"]), bool)))
        labels = np.asarray(example["box_label"])[valid].tolist()
        names = [_name(class_names, label - 1) for label in labels]
        crowd = np.asarray(example.get("box_crowd", np.zeros(len(valid), bool)))[valid]
        texts = [f"{name} (crowd)" if many else name for name, many in zip(names, crowd, strict=True)]
        colours = [drawing.colour_of(n) for n in labels]
        if "box_mask" in example:
            colours = [drawing.colour_of(n + 1) for n in range(len(labels))]  # neighbours of one class apart
            packed = np.asarray(example["box_mask"])[valid][:, : image.shape[0]]
            image = drawing.films(image, bits.each(packed, image.shape[1]), colours)
        picture = drawing.boxes(image, np.asarray(example["boxes"])[valid], colours, texts)
        return picture, f"{len(labels)} boxes"
    if "segmentation" in example:
        classes = np.asarray(example["segmentation"])
        if "pixel_valid" in example:
            classes = np.where(example["pixel_valid"], classes, 0)
        return drawing.areas(image, classes, class_names), ""
    if "labels" in example:  # several an image
        return image, ", ".join(_name(class_names, int(k)) for k in np.flatnonzero(np.asarray(example["labels"]) > 0)) or "none"
    text = _name(class_names, int(example["label"]))
    if "mix" in example and float(example["mix"]) < 1:
        share, other = float(example["mix"]), _name(class_names, int(example["label_b"]))
        text = f"{share:.2f} {text} + {1 - share:.2f} {other}"
    return image, text


def _name(names: Sequence[str], label: int) -> str:
    return names[label] if 0 <= label < len(names) else str(label)


def rows(batch: Mapping[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """The valid rows of a batch, images cut to their true size."""
    valid = batch.get("example_valid", np.ones(len(batch["image"]), bool))
    for row in np.flatnonzero(valid):
        example = {key: np.asarray(value)[row] for key, value in batch.items()}
        if "image_size" in example:
            height, width = (int(v) for v in example["image_size"])
            example["image"] = example["image"][:height, :width]
        yield example

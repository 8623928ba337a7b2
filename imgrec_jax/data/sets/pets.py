"""Oxford-IIIT Pets (Parkhi et al. 2012) for segmentation, from the TFDS set `oxford_iiit_pet`."""

from __future__ import annotations

from typing import Any

import numpy as np

from imgrec_jax.data.ops.photometric import colour
from imgrec_jax.data.sets import tfds
from imgrec_jax.data.source import Request, Source

PET_CLASSES = ("background", "pet", "border")


def pet_example(record: dict[str, Any], *, border: str) -> dict:
    """oxford_iiit_pet: trimap 1 pet, 2 background, 3 border -> classes as PET_CLASSES, or the border void."""
    trimap = np.asarray(record["segmentation_mask"])[..., 0]
    segmentation = np.array([0, 1, 0, 2 if border == "class" else 0], np.int32)[trimap]
    valid = trimap > 0 if border == "class" else np.isin(trimap, (1, 2))
    return {"image": colour(record["image"]), "segmentation": segmentation, "pixel_valid": valid}


def open_pets(request: Request, *, border: str = "class") -> Source:
    """oxford_iiit_pet (TFDS 4, splits train and test). border: "class" (the third) or "void".

    Raises:
      FileNotFoundError: when it is not prepared.
    """
    if border not in ("class", "void"):
        raise ValueError(f"data.border={border!r}; expected 'class' or 'void'")
    names = PET_CLASSES if border == "class" else PET_CLASSES[:2]
    setup = lambda _: (names, lambda record: pet_example(record, border=border))  # noqa: E731
    return tfds.opened_or_prepared(lambda: tfds.open_converted(request, setup), request.name, request.data_dir)

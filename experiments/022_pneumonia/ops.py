"""Ops of this experiment alone: any config may name a file of one's own."""

import cv2
import numpy as np


def equalise(*, size: int = 0):
    """Histogram equalisation of grey images: how bright and how full of contrast a picture was taken no longer shows."""

    def op(example, rng):
        image = np.asarray(example["image"])
        return {**example, "image": cv2.equalizeHist(image[..., 0])[..., None]}

    return op

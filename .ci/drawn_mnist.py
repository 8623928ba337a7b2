"""drawn_mnist.py FOLDER: a data_dir with MNIST of 2,000 + 500 digits drawn with OpenCV, so that a run needs no download."""

import sys
from pathlib import Path

import cv2
import numpy as np

from imgrec_jax.data.sets import mnist, tfds

for split, count, seed in (("train", 2000, 0), ("test", 500, 1)):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count)
    images = np.zeros((count, 28, 28, 1), np.uint8)
    for image, label in zip(images, labels, strict=True):
        place = (int(rng.integers(2, 7)), int(rng.integers(21, 26)))
        cv2.putText(image, str(label), place, cv2.FONT_HERSHEY_SIMPLEX, 0.9, int(rng.integers(150, 256)), 2)
    decoded = {"image": images, "label": labels.astype(np.int64)}
    tfds.save_decoded(decoded, mnist.CLASS_NAMES, mnist.NAME, split, Path(sys.argv[1]))
